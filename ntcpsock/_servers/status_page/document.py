"""What the page shows, as one JSON document: numbers, and no address, name or key of a node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from ntcpsock._address import encode_node_id
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.outcomes import BOUNDS, Outcomes
from ntcpsock._servers.status_page.history import History
from ntcpsock._servers.stun import StunCounters
from ntcpsock._version import __version__

#: Of the numbers of `sample`, those that go up and down.
GAUGES: Final = frozenset({"nodes", "names", "pairs", "connections", "memory"})


def sample(sources: Sources) -> dict[str, float]:
    """The numbers of now: gauges, and counters since the start."""
    found: dict[str, float] = {"memory": memory_bytes()}
    if (core := sources.core) is not None:
        found |= {
            "nodes": len(core),
            "names": core.name_count,
            "introductions": core.counters.introductions,
            "registrations": core.counters.registrations,
            "refused": sum(core.counters.refused.values()) + sum(core.dropped.values()),
        }
    if (relay := sources.relay) is not None:
        found |= {"pairs": relay.pairs, "relay_bytes": relay.counters.bytes}
    if sources.web is not None:
        found["connections"] = sources.web.open
    if sources.stun:
        found["stun"] = sum(counters.udp_requests + counters.tcp_requests for counters in sources.stun)
    return found


def memory_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def make_document(
    title: str, sources: Sources, history: History, *, state: str, started: float, now: float
) -> dict[str, Any]:
    """title: which server; state: "ready", or why not; started, now: of one clock."""
    document: dict[str, Any] = {
        "title": title,
        "version": __version__,
        "state": state,
        "uptime": round(now - started, 1),
        "interval": history.interval,
        "now": sample(sources),
        "history": history.rows(),
    }
    if (core := sources.core) is not None:
        document |= _broker(core, now)
    if (relay := sources.relay) is not None:
        document["relay"] = {
            "load": relay.load,
            "joined": relay.counters.joined,
            "refused": _counts(relay.counters.refused),
        }
    if sources.stun:
        document["stun"] = {
            entry.name: sum(getattr(counters, entry.name) for counters in sources.stun)
            for entry in fields(StunCounters)
        }
    return document


def _broker(core: BrokerCore, now: float) -> dict[str, Any]:
    policy = core.gate.policy
    return {
        "key": encode_node_id(core.key),
        "policy": policy.names + (", private" if policy.private else ""),
        "bans": len(core.gate.bans),
        "refused": _counts(core.counters.refused),
        "dropped": _counts(core.dropped),
        "relays": [
            {"place": "this one" if not place.port else str(place), "load": place.load}
            for place in core.relays.told(now)[1]
        ],
        "outcomes": _outcomes(core.outcomes),
    }


def _outcomes(outcomes: Outcomes) -> dict[str, Any]:
    return {
        "techniques": [
            {"technique": technique, "kind": kind, "count": count}
            for (technique, kind), count in outcomes.connected.most_common()
        ],
        "failed": outcomes.failed,
        "pairs": [
            {"dialer": dialer, "listener": listener, "direct": direct, "relay": relay, "failed": failed}
            for (dialer, listener), (direct, relay, failed) in sorted(outcomes.by_pair.items())
        ],
        "seconds": [[bound, count] for bound, count in zip((*BOUNDS, None), outcomes.counts, strict=True)],
    }


def _counts(counts: Mapping[str, int]) -> list[list[Any]]:
    return [[reason, count] for reason, count in sorted(counts.items(), key=lambda entry: -entry[1])[:12]]
