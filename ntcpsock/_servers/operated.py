"""A server as its operator has it: settings that are read again, bans that are carried out, and `ntcp admin`."""

from __future__ import annotations

import logging
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import trio

from ntcpsock._config import default_state_dir
from ntcpsock._servers.admin.desk import AdminDesk
from ntcpsock._servers.admin.driver import serve_admin
from ntcpsock._servers.admin.nodes import end_banned
from ntcpsock._servers.bans import BanFile, BanList
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.relay import RelayDesk, RelayLimits
from ntcpsock._servers.reloading import (
    Prepare,
    Reloader,
    Settings,
    reload_bans,
    reload_certificate,
    reload_gate,
    reload_logs,
)
from ntcpsock._servers.running import Service
from ntcpsock._servers.stun import StunCounters

_logger = logging.getLogger("ntcpsock.server")

_BAN_INTERVAL: Final = 5.0


@dataclass(frozen=True, slots=True)
class Operated:
    """A running service with what its operator needs. admin: the socket of `ntcp admin`, where there is one."""

    service: Service
    reloader: Reloader
    admin: Path | None = None

    @property
    def ready(self) -> str:
        """The line that says so, and one that says where `ntcp admin` finds it."""
        line = self.service.ready
        return line if self.admin is None or line.startswith("{") else f"{line}\nadmin {self.admin}"

    async def drain(self, seconds: float) -> None:
        await self.service.drain(seconds)

    def reload(self) -> None:
        """Raises ConfigurationError, and nothing has changed then."""
        self.reloader.reload()


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a server its operator acts upon."""

    core: BrokerCore | None = None
    relay: RelayDesk | None = None
    certificate: CertificateFiles | None = None


def make_gate(settings: Settings, ban_file: BanFile) -> Gate:
    """As settings and the file of bans say. Raises ConfigurationError."""
    gate = Gate()
    reload_gate(gate)(settings)()
    ban_file.load(gate.bans, time.time())
    return gate


def make_bans(settings: Settings, ban_file: BanFile) -> BanList:
    """For a server without a gate. Raises ConfigurationError."""
    bans = BanList()
    reload_bans(bans)(settings)()
    ban_file.load(bans, time.time())
    return bans


def relay_limits(settings: Settings) -> RelayLimits:
    """Those of a relay's settings; what is not among them has its default."""
    usual = RelayLimits()
    return RelayLimits(
        sessions=settings.get("sessions") or usual.sessions,
        sessions_of_a_node=settings.get("sessions_of_a_node") or usual.sessions_of_a_node,
        bytes_per_second=settings.get("rate"),
        sessions_of_an_address=settings.get("sessions_of_an_address"),
        bytes_per_second_of_an_address=settings.get("rate_of_an_address"),
    )


async def operate(
    nursery: trio.Nursery,
    service: Service,
    settings: Namespace,
    program: str,
    parts: Parts,
    *,
    ban_file: BanFile | None = None,
    status: Callable[[], dict[str, Any]] = dict,
    further: Sequence[Prepare] = (),
) -> Operated:
    """Start what an operator needs beside a running service, in `nursery`.

    settings: of `parse_arguments`; further: what else SIGHUP concerns.

    Raises OSError where the socket that the settings name cannot be had; the usual one is done without, with a word in
    the log.
    """
    ban_file = ban_file or BanFile(None)
    bans = None
    if parts.core is not None:
        bans = parts.core.gate.bans
    elif parts.relay is not None:
        bans = parts.relay.bans
    if parts.relay is not None and bans is not None:
        parts.relay.bans = bans
    if bans is not None:
        nursery.start_soon(_keep_bans, bans, ban_file, parts)
    reloader = Reloader(settings.source, [*_prepares(parts), *further])
    desk = AdminDesk(
        program,
        lambda: _status(parts) | status(),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
        parts.core,
        parts.relay,
        bans,
        ban_file,
    )
    return Operated(service, reloader, await _open_admin(nursery, settings, program, desk))


def _prepares(parts: Parts) -> Sequence[Prepare]:
    prepares: list[Prepare] = [reload_logs, reload_certificate(parts.certificate)]
    if parts.core is not None:
        prepares.append(reload_gate(parts.core.gate))
    if parts.relay is not None:
        relay = parts.relay
        prepares.append(lambda settings: _reload_relay(relay, settings))
        if parts.core is None:
            prepares.append(reload_bans(relay.bans))
    return prepares


def _reload_relay(relay: RelayDesk, settings: Settings) -> Callable[[], None]:
    limits = relay_limits(settings)

    def commit() -> None:
        if limits != relay.limits:
            relay.configure(limits)

    return commit


async def _open_admin(
    nursery: trio.Nursery, settings: Namespace, program: str, desk: AdminDesk
) -> Path | None:
    given: Path | None = settings.socket
    try:
        folder = getattr(settings, "state_dir", None) or default_state_dir()
        path = given or folder / f"admin-{program}.sock"
        if given is None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened: Path = await nursery.start(serve_admin, path, desk)
        return opened
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        if given is not None:
            raise
        _logger.info("no socket for ntcp admin: %s", error)
        return None


async def _keep_bans(bans: BanList, ban_file: BanFile, parts: Parts) -> None:
    """Lift bans whose time is over, and end what belongs to those who were banned in the settings."""
    known = bans.edition
    while True:
        await trio.sleep(_BAN_INTERVAL)
        if bans.expire(time.time()):
            try:
                ban_file.save(bans)
            except OSError as error:
                _logger.warning("bans are not saved: %s", error)
        if bans.edition != known:
            known = bans.edition
            await carry_out_bans(bans, parts)


async def carry_out_bans(bans: BanList, parts: Parts) -> None:
    """End the sessions and relayed connections of those who are banned."""
    if parts.core is not None:
        await end_banned(parts.core)
    if parts.relay is not None:
        parts.relay.end_banned()


def stun_status(counters: Sequence[StunCounters]) -> dict[str, Any]:
    """What the STUN servers of a process have done, together."""
    return {
        "stun": {
            entry.name: sum(getattr(counter, entry.name) for counter in counters)
            for entry in fields(StunCounters)
        }
    }


def _status(parts: Parts) -> dict[str, Any]:
    found: dict[str, Any] = {"pid": os.getpid()}
    if (core := parts.core) is not None:
        now = trio.current_time()
        found["broker"] = {
            "nodes": len(core),
            "names": core.name_count,
            "sessions": core.counters.sessions,
            "registrations": core.counters.registrations,
            "lookups": core.counters.lookups,
            "introductions": core.counters.introductions,
            "refused": sum(core.counters.refused.values()),
            "dropped": sum(core.dropped.values()),
            "policy": core.gate.policy.names + (", private" if core.gate.policy.private else ""),
            "bans": len(core.gate.bans),
        }
        found["relays"] = [{"place": str(place), "load": place.load} for place in core.relays.told(now)[1]]
    if (relay := parts.relay) is not None:
        found["relay"] = {
            "pairs": relay.pairs,
            "connections": relay.counters.open,
            "joined": relay.counters.joined,
            "bytes": relay.counters.bytes,
            "load": relay.load,
            "refused": sum(relay.counters.refused.values()),
        }
    return found
