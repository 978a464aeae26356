"""What bursts of prediction cost our NAT, and how one that was in vain is made again (pure).

Where both sides' ports change, a side whose NAT draws from a block opens nearly as many sessions as the block has
ports. The NAT keeps them for minutes, though none was met: the block has no more for a second burst then, nor for
anything else that is behind that NAT. So a node counts what it has taken, leaves a reserve, and repeats the same
sessions: the same local port to the same remote one goes through the same mapping, and costs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from ntcpsock._traversal.prediction import MAX_SESSIONS, Prediction, aim_within, encode_prediction, is_costly
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.recent import KEPT_FOR

#: Of a block's ports so many are never taken: the relay, the broker and everybody else behind the NAT need some.
RESERVED_SHARE: Final = 12
LEAST_RESERVED: Final = 8
#: Blocks of more ports are not worth sparing.
NARROW: Final = 2 * MAX_SESSIONS
#: Seconds for which a block that was seen is known, and is not looked at: each look takes ports of it.
BAND_KNOWN_FOR: Final = 60.0
#: Seconds for which a burst is repeated. One that has met nobody by then has missed: the ports were others.
REPEATED_FOR: Final = 120.0
#: Ports that a NAT that counts may be behind the one that is aimed at; and further sessions, for what else counts.
MOST_STEPS: Final = 64
SPARE_STEPS: Final = 2
#: Nodes whose bursts are remembered.
MOST_PEERS: Final = 64


@dataclass(frozen=True, slots=True)
class Burst:
    """One that was made. sessions: local port and port of the other side, of each; made: when, the first time."""

    ours: Prediction
    theirs: Prediction
    sessions: tuple[tuple[int, int], ...]
    made: float

    @property
    def name(self) -> int:
        """The same at both sides, and never 0."""
        words = sorted(encode_prediction(plain(side)) for side in (self.ours, self.theirs))
        return zlib.crc32(b"".join(words)) or 1


def plain(prediction: Prediction) -> Prediction:
    """What it foretells, without what is said of this moment."""
    return replace(prediction, most=None, again=0, leaves=None)


def reserved(width: int) -> int:
    """Ports of a block that stay free."""
    return max(LEAST_RESERVED, width // RESERVED_SHARE)


class Bursts:
    """Of one node, in one network."""

    def __init__(self) -> None:
        #: By when it was made the first time: when the last time, and of how many ports.
        self._spent: dict[Transport, dict[float, tuple[float, int]]] = {"tcp": {}, "udp": {}}
        self._bands: dict[Transport, tuple[Prediction, float]] = {}
        self._made: dict[tuple[bytes, Transport], Burst] = {}
        self._ports: dict[bytes, tuple[int, int]] = {}

    # -- our block

    def looked(self, transport: Transport, prediction: Prediction, now: float) -> None:
        """The NAT was looked at."""
        self._bands.pop(transport, None)
        if prediction.shape == "band" and prediction.width <= NARROW:
            self._bands[transport] = plain(prediction), now

    def known_band(self, transport: Transport, taken: Collection[int], now: float) -> Prediction | None:
        """The narrow block that was seen a moment ago. taken: ports of the NAT that are ours, to aim at none."""
        band, when = self._bands.get(transport, (None, 0.0))
        if band is None or now - when >= BAND_KNOWN_FOR:
            return None
        return aim_within(band, taken)

    def spend(self, transport: Transport, count: int, made: float, now: float) -> None:
        """A burst of so many ports of the block begins, or begins again."""
        spent = self._spent[transport]
        for earlier in [earlier for earlier, (when, _) in spent.items() if now - when >= KEPT_FOR]:
            del spent[earlier]
        spent[made] = now, count

    def left(self, transport: Transport, band: Prediction, taken: Collection[int], now: float) -> int:
        """How many ports of the block we may take still."""
        known = sum(band.low <= port <= band.high for port in taken)
        spent = sum(count for when, count in self._spent[transport].values() if now - when < KEPT_FOR)
        return max(0, band.width - reserved(band.width) - known - spent)

    def is_short(self, transport: Transport, taken: Collection[int], now: float) -> bool:
        """Whether our NAT has a narrow block of which we have taken all that we may."""
        band, when = self._bands.get(transport, (None, 0.0))
        return band is not None and now - when < KEPT_FOR and not self.left(transport, band, taken, now)

    # -- what was in vain

    def keep(self, key: bytes, transport: Transport, burst: Burst) -> None:
        """One is made towards the node `key`."""
        self._made.pop((key, transport), None)
        self._made[key, transport] = burst
        while len(self._made) > MOST_PEERS:
            del self._made[next(iter(self._made))]

    def made(self, key: bytes, transport: Transport, now: float) -> Burst | None:
        """The one that may be repeated."""
        burst = self._made.get((key, transport))
        return burst if burst is not None and now - burst.made < REPEATED_FOR else None

    def is_held(self, key: bytes, now: float) -> bool:
        """Whether a NAT of ours or of the node `key` has few ports left because of one that has met nobody."""
        bursts = (burst for (peer, _), burst in self._made.items() if peer == key)
        return any(now - burst.made < KEPT_FOR and is_costly(burst.ours, burst.theirs) for burst in bursts)

    def dials(self, key: bytes, tcp: int, udp: int) -> None:
        """A dial to the node `key` comes from these ports of ours; 0 for none."""
        self._ports.pop(key, None)
        self._ports[key] = tcp, udp
        while len(self._ports) > MOST_PEERS:
            del self._ports[next(iter(self._ports))]

    def ports_again(self, key: bytes, now: float) -> tuple[int, int] | None:
        """Those that the next dial comes from too, while a burst is held: others would take further ports of a NAT, at
        either end."""
        return self._ports.get(key) if self.is_held(key, now) else None

    def drop(self, key: bytes, transport: Transport) -> None:
        """It has met the other side: its sessions are in use, or closed."""
        self._made.pop((key, transport), None)

    def forget(self) -> None:
        """The network is another one."""
        for spent in self._spent.values():
            spent.clear()
        self._bands.clear()
        self._made.clear()
        self._ports.clear()


class PeerBursts:
    """Those towards one node."""

    def __init__(self, bursts: Bursts | None = None, key: bytes = b"") -> None:
        self.own = bursts or Bursts()
        self._key = key

    def made(self, transport: Transport, now: float) -> Burst | None:
        """The one that may be repeated."""
        return self.own.made(self._key, transport, now)

    def begin(self, transport: Transport, burst: Burst, now: float) -> None:
        """It is made, or made again, at this moment."""
        count = len(burst.sessions) if burst.ours.shape == "band" else 0
        self.own.spend(transport, count, burst.made, now)
        self.own.keep(self._key, transport, burst)

    def met(self, transport: Transport) -> None:
        """One has met the other side."""
        self.own.drop(self._key, transport)


def steps_to_aim(made: Prediction, present: Prediction) -> int:
    """Sessions that a side whose NAT counts needs besides, so that one comes from the port that the other side aims at
    since the first time: where our own network let nothing out, or less than was counted, the NAT is not there yet. 0
    where it has been there."""
    if made.shape != "sequential" or present.shape != "sequential" or made.step != present.step:
        return 0
    steps, rest = divmod(made.high - present.low, made.step)
    return 0 if rest or not 0 <= steps < MOST_STEPS else steps + 1 + SPARE_STEPS
