"""For whom the broker sends a SYN-ACK under another address than its own (pure): the rules of `tcp-stunt1`.

A broker that did so for anybody would be a tool for attacks. Here two nodes have to agree: both have proved their
keys and that they receive at their addresses, each asks for its own address alone, as this broker sees it, and
both ask for the same connection of the same dial within a few seconds. So a segment goes only to somebody who
waits for it, and bears only the address of somebody who wants it.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from ntcpsock._address import Endpoint, may_be_dialled
from ntcpsock._raw.packet import Syn
from ntcpsock._servers.limits import RateLimit
from ntcpsock._traversal.broker.message import Spoof, SpoofOutcome

#: Seconds within which both sides have to ask.
LIFETIME = 5.0
#: Requests that wait for their other half.
MAX_WAITING = 1024
#: Pairs of segments for one dial: the first may be lost.
MAX_SENDS = 4
#: Requests a second and at once from one address, and of all of them together.
RATE, BURST = 1.0, 16.0
TOTAL_RATE, TOTAL_BURST = 50.0, 200.0
#: Below, services listen; no NAT lends such a port.
LOWEST_PORT = 1024


@dataclass(frozen=True, slots=True)
class SynAck:
    """A segment from `source`, whose node sent the SYN `ours`, to `target`, whose node sent `theirs`."""

    source: Endpoint
    target: Endpoint
    ours: Syn
    theirs: Syn


@dataclass(slots=True)
class _Half:
    """What one side has asked for."""

    request: Spoof
    expires: float
    sends: int = 0


class SpoofingDesk:
    """The requests that wait, and the rules."""

    def __init__(self) -> None:
        # (dial id, who asks) -> what; oldest first.
        self._halves: OrderedDict[tuple[bytes, bytes], _Half] = OrderedDict()
        self._by_host = RateLimit(RATE, BURST)
        self._total = RateLimit(TOTAL_RATE, TOTAL_BURST, size=1)

    def ask(
        self, key: bytes, host: str, request: Spoof, now: float
    ) -> tuple[SpoofOutcome, tuple[SynAck, ...]]:
        """What becomes of a request of the node `key`, which the broker sees at `host`, and what is to be sent."""
        if not _is_permitted(key, host, request):
            return SpoofOutcome.FORBIDDEN, ()
        self._expire(now)
        if not self._by_host.take(host, now) or not self._total.take("all", now):
            return SpoofOutcome.BUSY, ()
        mine = self._halves.pop((request.dial_id, key), None)
        if mine is None or mine.request != request:
            mine = _Half(request, now + LIFETIME, 0 if mine is None else mine.sends)
        if len(self._halves) >= MAX_WAITING:
            return SpoofOutcome.BUSY, ()
        mine.expires = now + LIFETIME
        self._halves[request.dial_id, key] = mine
        other = self._halves.get((request.dial_id, request.peer))
        if other is None or not _is_mirrored(other.request, key, request):
            return SpoofOutcome.WAITING, ()
        sends = max(mine.sends, other.sends)
        if sends >= MAX_SENDS:
            return SpoofOutcome.BUSY, ()
        mine.sends = other.sends = sends + 1
        return SpoofOutcome.SENT, (
            SynAck(request.remote, request.local, other.request.syn, request.syn),
            SynAck(request.local, request.remote, request.syn, other.request.syn),
        )

    def _expire(self, now: float) -> None:
        while self._halves:
            key, half = next(iter(self._halves.items()))
            if half.expires > now:
                return
            del self._halves[key]


def _is_permitted(key: bytes, host: str, request: Spoof) -> bool:
    local, remote = request.local, request.remote
    return (
        local.host == host
        # Between two ports of one address a segment would look as if a host had sent it to itself.
        and remote.host != local.host
        and request.peer != key
        and all(_is_ordinary(endpoint) for endpoint in (local, remote))
    )


def _is_ordinary(endpoint: Endpoint) -> bool:
    return (
        ipaddress.ip_address(endpoint.host).version == 4
        and may_be_dialled(endpoint)
        and endpoint.port >= LOWEST_PORT
    )


def _is_mirrored(other: Spoof, key: bytes, request: Spoof) -> bool:
    return other.peer == key and other.local == request.remote and other.remote == request.local
