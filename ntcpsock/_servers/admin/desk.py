"""Carries out what `ntcp admin` asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from ntcpsock._address import decode_node_id, encode_node_id, normalize_name
from ntcpsock._errors import ConfigurationError, NTCPError
from ntcpsock._servers.admin import message, nodes
from ntcpsock._servers.bans import Ban, BanFile, BanList, normal_subject
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.relay import RelayDesk
from ntcpsock._traversal.relay.message import node_tag


@dataclass(slots=True)
class AdminDesk:
    """What there is in this process. program: its name; status: how it is, for `ntcp admin status`; drain: what SIGTERM
    does."""

    program: str
    status: Callable[[], dict[str, Any]]
    drain: Callable[[], None]
    core: BrokerCore | None = None
    relay: RelayDesk | None = None
    bans: BanList | None = None
    ban_file: BanFile = field(default_factory=lambda: BanFile(None))
    wall_clock: Callable[[], float] = time.time

    async def carry_out(self, request: message.Request) -> message.Answer:
        """The answer; never raises but for cancellation."""
        try:
            return message.Answer(await self._carry_out(request))
        except (NTCPError, OSError, ValueError) as error:
            return message.Answer(error=str(error))

    async def _carry_out(self, request: message.Request) -> dict[str, Any]:
        match request:
            case message.Status():
                return {"program": self.program, **self.status()}
            case message.ListNodes(match, limit):
                return await self._list(match, limit)
            case message.Show(who):
                return self._show(who)
            case message.Drop(who):
                return await self._drop(who)
            case message.Bans():
                return {"bans": [self._describe(ban) for ban in self._bans]}
            case message.AddBan(who, seconds, why):
                return await self._ban(who, seconds, why)
            case message.LiftBan(who):
                return self._lift(who)
            case message.ListNames(match, limit):
                rows = self._core.registry.names.search(match, limit + 1)
                names = [
                    {"name": name, "node_id": encode_node_id(key), "since": since}
                    for name, key, since in rows
                ]
                return {"names": names[:limit], "total": self._core.name_count, "more": len(names) > limit}
            case message.GiveName(name, node_id):
                return self._give(name, node_id)
            case message.FreeName(name):
                return self._free(name)
            case message.Drain():
                self.drain()
                return {"draining": True}

    @property
    def _core(self) -> BrokerCore:
        if self.core is None:
            raise ConfigurationError(f"{self.program} is no broker: it knows no nodes and no names")
        return self.core

    @property
    def _bans(self) -> BanList:
        if self.bans is None:
            raise ConfigurationError(f"{self.program} has no bans: it limits each address by itself")
        return self.bans

    async def _list(self, match: str, limit: int) -> dict[str, Any]:
        core, now = self._core, trio.current_time()
        wanted = match.lower().removesuffix(".ntcp")
        rows: list[dict[str, Any]] = []
        async for node in nodes.all_nodes(core):
            if len(rows) > limit:
                break
            row = nodes.describe(core, node, now)
            if not wanted or any(wanted in text for text in (row["node_id"], row["host"], *row["names"])):
                rows.append(row)
        return {"nodes": rows[:limit], "total": len(core), "more": len(rows) > limit}

    def _show(self, who: str) -> dict[str, Any]:
        core, now = self._core, trio.current_time()
        key = nodes.key_of(core, who)
        return {
            "node_id": encode_node_id(key),
            "names": list(core.registry.names.names_of(key)),
            "banned": core.gate.bans.has_key(key),
            "instances": [nodes.details(core, node, now) for node in core.registry.instances(key, now)],
        }

    async def _drop(self, who: str) -> dict[str, Any]:
        network = nodes.network_of(who)
        sessions = connections = 0
        if network is not None:
            if self.core is not None:
                sessions = await nodes.end_sessions_in(self.core, network)
            if self.relay is not None:
                connections = self.relay.end_in(network)
        else:
            key = self._key(who)
            if self.core is not None:
                sessions = nodes.end_sessions_of(self.core, key)
            if self.relay is not None:
                connections = self.relay.end_of(node_tag(key))
        return {"sessions": sessions, "relayed_connections": connections}

    def _key(self, who: str) -> bytes:
        if self.core is not None:
            return nodes.key_of(self.core, who)
        key = decode_node_id(who.lower().removesuffix(".ntcp"))
        if key is None:
            raise ConfigurationError(
                f"{who}: {self.program} knows no names: give a node id, an address or a network"
            )
        return key

    async def _ban(self, who: str, seconds: float | None, why: str) -> dict[str, Any]:
        bans = self._bans
        subject = who if nodes.network_of(who) is not None else encode_node_id(self._key(who))
        until = None if seconds is None else self.wall_clock() + seconds
        ban = Ban(normal_subject(subject), until, why)
        bans.add(ban)
        ended = await self._drop(ban.subject)
        return {"ban": self._describe(ban), **ended, **self._save()}

    def _lift(self, who: str) -> dict[str, Any]:
        bans = self._bans
        subject = who if nodes.network_of(who) is not None else encode_node_id(self._key(who))
        ban = bans.lift(normal_subject(subject))
        if ban is None:
            raise ConfigurationError(f"{who} is not banned; `ntcp admin bans` shows who is")
        return {"ban": self._describe(ban), **self._save()}

    def _save(self) -> dict[str, Any]:
        try:
            self.ban_file.save(self._bans)
        except OSError as error:
            return {"warning": f"in force, and gone at the next start: {error.strerror}: {error.filename}"}
        return {}

    def _describe(self, ban: Ban) -> dict[str, Any]:
        left = None if ban.until is None else round(ban.until - self.wall_clock())
        return {"who": ban.subject, "seconds_left": left, "why": ban.why, "in_settings": ban.from_file}

    def _give(self, name: str, node_id: str) -> dict[str, Any]:
        core, label = self._core, normalize_name(name)
        key = decode_node_id(node_id.lower().removesuffix(".ntcp"))
        if key is None:
            raise ConfigurationError(f"{node_id!r} is no node id: `ntcp id` prints a node's")
        before = core.registry.names.assign(label, key)
        core.registry.names_changed(key)
        ended = 0 if before in (None, key) else nodes.end_sessions_of(core, before)
        return {
            "name": label,
            "node_id": encode_node_id(key),
            "before": None if before is None else encode_node_id(before),
            "sessions": ended,
        }

    def _free(self, name: str) -> dict[str, Any]:
        core, label = self._core, normalize_name(name)
        before = core.registry.names.release(label)
        if before is None:
            raise ConfigurationError(f"nobody has the name {label}; `ntcp admin names list` shows all")
        # It hears that it has the name no more when it comes again, and may get it again where names are open.
        return {
            "name": label,
            "before": encode_node_id(before),
            "sessions": nodes.end_sessions_of(core, before),
        }
