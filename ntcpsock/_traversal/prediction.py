"""Which ports a NAT will use next, out of what it used last (pure).

Whoever punches through mappings that change must say where its next connections will come from. The evidence
are the mappings of fresh local ports, in the order in which they were made, observed a moment ago from the
machine that will punch: predictions from older or other observations miss by thousands of ports (facts from a
carrier's NAT, 2026). The three shapes are those of Guha and Francis (2005) and of today's port-block NATs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from ntcpsock._address import Endpoint, may_be_dialled
from ntcpsock._errors import BadMessage

Shape = Literal["exact", "single", "sequential", "band"]

#: Sockets that one side holds at once for one round, and ports of the other side that it aims at.
MAX_SESSIONS = 512
#: Fresh ports that one side looks at before.
MAX_OBSERVATIONS = 17
#: Ports that show how wide a band is.
BAND_SAMPLES = 12
#: Seconds between two sessions: a home router takes some thousand new ones a second, not more.
PACE = 0.0005
#: Connections of a sequential NAT that may be missing or foreign between the observation and the punch.
SEQUENTIAL_WINDOW = 16
# Steps between the ports of a sequential NAT; more looks like a band.
_LONGEST_STEP = 64
# Both sides aim at each other with n sessions; the expected number of hits (RFC 5128 has no number) that makes
# a miss rarer than 1 in 50: 1 - exp(-4) = 0.98.
_EXPECTED_HITS = 4.0
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535


@dataclass(frozen=True, slots=True)
class Observation:
    """One mapping: a local port, the server that was asked, and what it saw."""

    local_port: int
    server: Endpoint
    mapped: Endpoint


class Prediction(msgspec.Struct, frozen=True, array_like=True):
    """Where the next connections will come from.

    exact: from `low`; single: from `low`, but only to the first port that is aimed at; sequential: the next ones
    step by `step` from `low`, of which `high` is the one to aim at; band: anywhere from `low` to `high`, and who
    aims at one port of it only is best off with `aim`.

    most: how many ports of the band may be taken now; None says nothing. again: the name of the last round's burst,
    which can be repeated; 0 where there is none. leaves: whether packets to the other side get through our own network,
    where that could be seen.
    """

    shape: Shape
    host: Annotated[str, msgspec.Meta(max_length=45)]
    low: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    high: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    step: Annotated[int, msgspec.Meta(ge=-_LONGEST_STEP, le=_LONGEST_STEP)] = 0
    aim: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    most: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    again: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    leaves: bool | None = None

    @property
    def width(self) -> int:
        return self.high - self.low + 1 if self.shape == "band" else 1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Prediction)


def encode_prediction(prediction: Prediction) -> bytes:
    return _encoder.encode(prediction)


def decode_prediction_untrusted(data: bytes, proven_host: str) -> Prediction:
    """A peer's prediction; it may aim us at its proven host only. Raises BadMessage."""
    try:
        prediction = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(f"prediction: {error}") from error
    if prediction.host != proven_host:
        raise BadMessage(f"prediction: {prediction.host} is not where the broker sees the peer")
    if prediction.high < prediction.low and prediction.shape == "band":
        raise BadMessage("prediction: the band ends before it begins")
    if prediction.aim and not prediction.low <= prediction.aim <= prediction.high:
        raise BadMessage("prediction: it aims beside its band")
    if not may_be_dialled(Endpoint(prediction.host, prediction.low)) and prediction.host != "127.0.0.1":
        raise BadMessage(f"prediction: {prediction.host} is no address to dial")
    return prediction


def predict(
    observations: Sequence[Observation], spare: int, taken: Collection[int] = ()
) -> Prediction | None:
    """What the mappings say, oldest first; None without any. taken: further ports of the NAT that are ours.

    The last local port should have been seen by two servers (the first of them first): equal mappings then mean
    that the port is known exactly. Where fresh local ports all keep one distance, the one of `spare`, which no NAT
    has seen yet, is known; see `punching_port`. A band is the wider of what these mappings and those around them say.
    """
    if not observations:
        return None
    last = observations[-1]
    host = last.mapped.host
    if _seen_alike(observations):
        return Prediction("exact", host, last.mapped.port, last.mapped.port)
    # What a local port got first: many NATs keep it for one destination, and take the next free one for others.
    first = {item.local_port: item for item in reversed(observations)}
    offsets = Counter(item.mapped.port - item.local_port for item in first.values())
    offset, count = offsets.most_common(1)[0]
    # One of several may have met a port that the NAT had given to somebody else.
    if count > 1 and count >= max(len(first) - 1, min(3, len(first))):
        port = _within(spare + offset)
        return Prediction("exact" if len(first) == len(observations) else "single", host, port, port)
    ports = [item.mapped.port for item in observations if item.mapped.host == host]
    step = _step(ports)
    if step is not None and not _is_behind(ports[-1], step, taken):
        target = _within(ports[-1] + step * (SEQUENTIAL_WINDOW - 2))
        return Prediction("sequential", host, _within(ports[-1] + step), target, step)
    ports += _near(ports, taken)
    low, high = _band(ports)
    aim = _free_in_the_middle(ports)
    return Prediction("band", host, low, high, aim=aim if low <= aim <= high else 0)


def knows_band(observations: Sequence[Observation], taken: Collection[int]) -> bool:
    """Whether enough mappings are known around those observed to say how wide a band is: each further look would take
    ports of it."""
    ports = [item.mapped.port for item in observations]
    return bool(ports) and len(_near(ports, taken)) >= BAND_SAMPLES


def _near(ports: Sequence[int], taken: Collection[int]) -> list[int]:
    """Those of `taken` that may be of the same block as the ports."""
    low, high = min(ports), max(ports)
    around = high - low + 1
    return [port for port in taken if low - around <= port <= high + around]


def punching_port(observations: Sequence[Observation], spare: int) -> int:
    """The local port whose mapping an exact or single prediction foretells."""
    return observations[-1].local_port if _seen_alike(observations) else spare


def _seen_alike(observations: Sequence[Observation]) -> bool:
    """Whether two servers saw the last local port as the same."""
    mapped = [item.mapped for item in observations if item.local_port == observations[-1].local_port]
    return len(mapped) > 1 and len(set(mapped)) == 1


def _free_in_the_middle(ports: Sequence[int]) -> int:
    """A port that surely belongs to the band and that none of the mappings known of holds; 0 where there is none."""
    ordered = sorted(set(ports))
    gaps = [(before + after) // 2 for before, after in itertools.pairwise(ordered) if after - before > 1]
    return gaps[len(gaps) // 2] if gaps else 0


def aim_within(band: Prediction, taken: Collection[int]) -> Prediction:
    """The band of a look that was made before, aimed at a port that none of the mappings known of holds."""
    aim = _free_in_the_middle([port for port in taken if band.low <= port <= band.high])
    return msgspec.structs.replace(band, aim=aim or band.aim)


def _step(ports: Sequence[int]) -> int | None:
    """The step of a sequential NAT. Other connections of the same network may lie between ours: the smallest
    difference counts, and all must have its sign and be multiples of it, or a few steps long."""
    steps = [after - before for before, after in itertools.pairwise(ports)]
    if len(steps) < 2 or 0 in steps:
        return None
    if len({step > 0 for step in steps}) > 1 or max(map(abs, steps)) > _LONGEST_STEP:
        return None
    return math.gcd(*steps) * (1 if steps[0] > 0 else -1)


def left_between(
    observations: Sequence[Observation], between: tuple[int, int] | None, prediction: Prediction
) -> bool | None:
    """Whether a NAT that counts has counted a packet that left between the observations of two local ports; None where
    it does not count, or was not seen."""
    first: dict[int, int] = {}
    for item in observations:
        first.setdefault(item.local_port, item.mapped.port)
    if between is None or prediction.shape != "sequential" or not first.keys() >= set(between):
        return None
    # Packets may overtake each other on the way to the NAT.
    return any(
        abs(after - before) > abs(prediction.step) for before, after in itertools.pairwise(first.values())
    )


def _is_behind(last: int, step: int, taken: Collection[int]) -> bool:
    """Whether the NAT has been where it would be next: few ports of a band may happen to look like steps."""
    ahead = [port - last if step > 0 else last - port for port in taken]
    # What lies just ahead, step by step, it may have given since.
    return any(
        0 < distance <= _LONGEST_STEP * SEQUENTIAL_WINDOW
        and (distance > SEQUENTIAL_WINDOW * abs(step) or distance % step)
        for distance in ahead
    )


def _band(ports: Sequence[int]) -> tuple[int, int]:
    """The interval that the ports are drawn from: a block aligned to a power of two where one fits closely, as
    port-block NATs (RFC 7753) use them, else the spread widened by what n samples miss on average."""
    low, high = min(ports), max(ports)
    spread = high - low + 1
    size = 1 << (spread - 1).bit_length()
    if low // size == high // size and size <= 2 * spread:
        return _within(low // size * size), _within(low // size * size + size - 1)
    missing = math.ceil(spread / max(1, len(ports) - 1))
    return _within(low - missing), _within(high + missing)


def _within(port: int) -> int:
    return max(_LOWEST_PORT, min(_HIGHEST_PORT, port))


@dataclass(frozen=True, slots=True)
class Spray:
    """What one side does: `local_ports` sockets, each to every one of `targets` (ports of the other side)."""

    local_ports: int
    targets: tuple[int, ...]


def plan_spray(ours: Prediction, theirs: Prediction, *, sessions: int = MAX_SESSIONS) -> Spray:
    """Our part of the round. Both sides come to matching parts out of the same two predictions.

    A hit needs one of our sessions to come from a port that the other side aims at, while it aims at a port
    that one of its sessions comes from. A known port is aimed at by all. Towards a changing side, one port in
    the middle of what it will use is enough when its sessions cover the neighbourhood (sequential).

    Towards a band, a side whose port is known aims at many ports: each is an entry in its NAT, and no port. The band's
    sessions cost it ports of its block, so they are few. Where both sides change, each session has its own port, so
    more targets bring no more hits: one port is aimed at, and a band's sessions take as many of its ports as there
    are. No port is drawn twice while it is held, so a whole block is sure to contain it.
    """
    targets = _sample(theirs, _aimed_at(theirs, ours, sessions))
    return Spray(_held(ours, theirs, sessions), targets)


def expected_hits(ours: Prediction, theirs: Prediction, *, sessions: int = MAX_SESSIONS) -> float:
    """How many of a round's sessions may be expected to meet, if all ports of a band are equally likely."""
    pairs = 1.0
    for side, other in ((ours, theirs), (theirs, ours)):
        if side.shape == "band":
            share = _held(side, other, sessions) * _aimed_at(side, other, sessions) / side.width
            pairs *= share if other.shape == "exact" else min(1.0, share)
    return pairs


def is_costly(ours: Prediction, theirs: Prediction) -> bool:
    """Whether the round takes most of a block's ports."""
    return any(
        side.shape == "band" and other.shape != "exact" for side, other in ((ours, theirs), (theirs, ours))
    )


def is_scarce(ours: Prediction, theirs: Prediction, *, sessions: int = MAX_SESSIONS) -> bool:
    """Whether a side may not take enough ports of its block: half of what it would take."""
    return any(
        side.most is not None and side.most < min(_wanted(side, other, sessions), side.width) / 2
        for side, other in ((ours, theirs), (theirs, ours))
    )


def _aimed_at(side: Prediction, other: Prediction, sessions: int) -> int:
    """How many ports of `side` the other one aims at."""
    if side.shape != "band" or other.shape != "exact":
        return 1
    # As many local ports as targets need the fewest sessions of both together.
    return min(side.width, max(sessions // 2, _root(side.width, sessions)))


def _held(side: Prediction, other: Prediction, sessions: int) -> int:
    """How many local ports `side` holds."""
    wanted = _wanted(side, other, sessions)
    return wanted if side.most is None else min(wanted, side.most)


def _wanted(side: Prediction, other: Prediction, sessions: int) -> int:
    """How many it would hold, had its block ports without end."""
    if side.shape in ("exact", "single"):
        return 1
    if side.shape == "sequential":
        return SEQUENTIAL_WINDOW
    if other.shape == "exact":
        return min(sessions, math.ceil(_EXPECTED_HITS * side.width / _aimed_at(side, other, sessions)))
    # The width is an estimate, and others behind the same NAT hold ports too.
    return min(sessions, 2 * side.width)


def _root(width: int, sessions: int) -> int:
    return min(sessions, math.ceil(math.sqrt(_EXPECTED_HITS * width)))


def _sample(side: Prediction, count: int) -> tuple[int, ...]:
    if side.shape in ("exact", "single"):
        return (side.low,)
    if side.shape == "sequential":
        return (side.high,)
    if count == 1 and side.aim:
        return (side.aim,)
    step = side.width / count
    return tuple(side.low + int(number * step) for number in range(count))
