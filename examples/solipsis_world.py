"""The world of solipsis.py, without any network: its geometry, what its entities say, and what each makes of it.

The world is a square of 1 x 1 whose opposite edges are joined. Nobody knows all of it. An entity wants to know

* whoever is within its awareness radius, and the nearest in each sixth of the directions (local awareness);
* somebody on each side: no half of the plane around it is empty, so it lies within the convex hull of those it knows
  (global connectivity: whatever happens anywhere, somebody it knows is nearer to that).

Everybody tells those around it, again and again, where it is and who lives near *them*. A newcomer that knows one
entity anywhere hears so of nearer ones, and of nearer ones from these. What is lost is said again half a second later.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import msgspec

INTERVAL = 0.5  # seconds between two messages to a neighbour
SILENCE = 5.0  # seconds without a message after which somebody is forgotten
RETRY = 2.0  # seconds until somebody who did not answer is tried again

SECTORS = 6  # With the nearest of each sixth known, somebody known is nearer to any place than oneself.
HALF = math.pi - 1e-9  # Opposite ones do not enclose anything, whatever the last bit says.
MAX_NEAR = 6  # entities named in one message for being near
MAX_AHEAD = 2  # and for filling a gap
MAX_MESSAGE = 1100  # bytes; what one packet carries
MAX_KNOWN = 40
MAX_TRIES = 4  # strangers addressed in an interval: whoever names many does not make us a cannon

# -- geometry

Coordinate = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Place(NamedTuple):
    x: Coordinate
    y: Coordinate

    def moved(self, dx: float, dy: float) -> Place:
        """Over the edges too. `% 1` of a tiny negative number is 1.0, which is no coordinate."""
        x, y = (self.x + dx) % 1, (self.y + dy) % 1
        return Place(x if x < 1 else 0.0, y if y < 1 else 0.0)

    def way_to(self, other: Place) -> tuple[float, float]:
        """The shortest one, in -0.5..0.5 each."""
        return (other.x - self.x + 0.5) % 1 - 0.5, (other.y - self.y + 0.5) % 1 - 0.5

    def distance(self, other: Place) -> float:
        return math.hypot(*self.way_to(other))

    def bearing(self, other: Place) -> float:
        """Radians, counter-clockwise from east."""
        x, y = self.way_to(other)
        return math.atan2(y, x)


def empty_half(bearings: Iterable[float]) -> float | None:
    """The middle of the widest gap between `bearings` if it is a half-plane or more; None: the origin lies within the
    convex hull of points in these directions."""
    ordered = sorted(bearing % math.tau for bearing in bearings)
    if not ordered:
        return 0.0
    gaps = [(after - before, before) for before, after in itertools.pairwise(ordered)]
    gaps.append((ordered[0] + math.tau - ordered[-1], ordered[-1]))
    width, start = max(gaps)
    return math.remainder(start + width / 2, math.tau) if width >= HALF else None


def gap_at(bearing: float, bearings: Iterable[float]) -> float:
    """How wide the gap between `bearings` is in which a direction lies: all around where there are none."""
    around = [(other - bearing) % math.tau for other in bearings]
    return min(around) + min(-angle % math.tau for angle in around) if around else math.tau


def is_ahead(bearing: float, towards: float) -> bool:
    """Whether a direction lies in the half-plane in front of somebody who looks `towards`."""
    return math.cos(bearing - towards) > 0


def neighbours(here: Place, others: Mapping[str, Place], radius: float) -> set[str]:
    """Whom one who lives `here` wants to know, of all these."""
    chosen: dict[str, float] = {}
    sectors = set()
    for distance, name in sorted((here.distance(place), name) for name, place in others.items()):
        bearing = here.bearing(others[name])
        sector = int(bearing % math.tau / math.tau * SECTORS)
        if distance <= radius or sector not in sectors or gap_at(bearing, chosen.values()) >= HALF:
            chosen[name] = bearing
            sectors.add(sector)
    return set(chosen)


# -- what is said

Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_-]{1,63}\Z")]  # the label of a node
Bearing = Annotated[float, msgspec.Meta(ge=-math.pi, le=math.pi)]


class Sighting(NamedTuple):
    """Somebody told of by somebody else."""

    name: Name
    at: Place


class Here(msgspec.Struct, frozen=True, tag="here", tag_field="say"):
    """I am `at`. keep: whether I want to go on hearing from you; gap: where I know nobody; near: some that I know near
    you, and in your gap. Who says it the datagram's sender tells, whom ntcpsock has proven."""

    at: Place
    keep: bool
    gap: Bearing | None
    near: Annotated[tuple[Sighting, ...], msgspec.Meta(max_length=MAX_NEAR + MAX_AHEAD)]


class Bye(msgspec.Struct, frozen=True, tag="bye", tag_field="say"):
    """I leave."""


class BadMessage(ValueError):
    """Not a message of ours."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Here | Bye)


def encode(message: Here | Bye) -> bytes:
    return _encoder.encode(message)


def decode_untrusted(data: bytes) -> Here | Bye:
    """Raises BadMessage, and nothing else."""
    if len(data) > MAX_MESSAGE:
        raise BadMessage("too long")
    try:
        return _decoder.decode(data)
    # ValueError: msgspec lets UnicodeDecodeError out.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(str(error)) from error


def check_name(sender: str) -> None:
    """Raises BadMessage for one that we could not tell others of."""
    try:
        msgspec.convert(sender, Name)
    except msgspec.ValidationError as error:
        raise BadMessage(str(error)) from error


# -- an entity


@dataclass(slots=True)
class Known:
    """Somebody whom we have heard. keeps: whether it wants to hear from us; near: whom it told of, last."""

    at: Place
    heard: float
    keeps: bool
    gap: float | None
    near: tuple[Sighting, ...]


Outgoing = list[tuple[str, bytes]]  # to whom, what


@dataclass
class Entity:
    """One that lives on the world. Its methods take the time in seconds and return what is to be sent.

    entry: the name of one that may be there already, the only thing it knows at first. velocity: in worlds a second.
    """

    name: str
    at: Place
    entry: str | None = None
    radius: float = 0.2
    velocity: tuple[float, float] = (0.0, 0.0)
    known: dict[str, Known] = field(default_factory=dict)
    received: int = 0
    bad: int = 0
    _tried: dict[str, float] = field(default_factory=dict)
    _last_tick: float | None = None
    _has_entered: bool = False

    def receive(self, sender: str, data: bytes, now: float) -> Outgoing:
        """A datagram of `sender` has come."""
        try:
            message = decode_untrusted(data)
            check_name(sender)
        except BadMessage:
            self.bad += 1
            return []
        if sender == self.name:
            return []
        self.received += 1
        if isinstance(message, Bye):
            self.known.pop(sender, None)
            return []
        is_new = sender not in self.known
        self._has_entered |= sender == self.entry
        self.known[sender] = Known(message.at, now, message.keep, message.gap, message.near)
        if len(self.known) > MAX_KNOWN:
            # Not one of those that hold the world together, as long as there are others.
            places = self._places()
            droppable = places.keys() - neighbours(self.at, places, radius=0)
            del self.known[max(droppable, key=lambda name: self.at.distance(places[name]))]
        # An answer at once brings a newcomer to its neighbours in round trips rather than in intervals.
        return [self._here(sender)] if is_new and sender in self.known else []

    def tick(self, now: float) -> Outgoing:
        """To be called every INTERVAL: moves, forgets, and speaks to everybody it should."""
        elapsed = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        self.at = self.at.moved(self.velocity[0] * elapsed, self.velocity[1] * elapsed)
        self.known = {name: one for name, one in self.known.items() if now - one.heard < SILENCE}
        self._tried = {name: when for name, when in self._tried.items() if now - when < RETRY}
        addressed = self.wanted() | {name for name, one in self.known.items() if one.keeps}
        strangers = [name for name in self._wanted_strangers() if name not in self._tried][:MAX_TRIES]
        # Whom others have found before it found its entry, it would else live on an island with them.
        if self.entry is not None and self.entry not in self.known and not (self._has_entered and self.known):
            strangers.append(self.entry)
        self._tried.update(dict.fromkeys(strangers, now))
        return [self._here(name) for name in (*sorted(addressed), *strangers)]

    def leave(self) -> Outgoing:
        """The last words."""
        return [(name, encode(Bye())) for name in self.known]

    def wanted(self) -> set[str]:
        """Its neighbours: of those it has heard, whom it wants to know."""
        return neighbours(self.at, self._places(), self.radius)

    def nearest(self) -> str | None:
        return min(self.known, key=lambda name: self.at.distance(self.known[name].at), default=None)

    def _places(self) -> dict[str, Place]:
        return {name: one.at for name, one in self.known.items()}

    def _wanted_strangers(self) -> list[str]:
        """Whom it was told of and would want to know, the nearest first. Only those who speak for themselves are
        passed on, so nobody can be invented for longer than his inventor lives."""
        places = self._places()
        told = {
            sighting.name: sighting.at
            for one in self.known.values()
            for sighting in one.near
            if sighting.name not in places and sighting.name != self.name
        }
        wanted = neighbours(self.at, told | places, self.radius) - set(places)
        return sorted(wanted, key=lambda name: self.at.distance(told[name]))

    def _here(self, to: str) -> tuple[str, bytes]:
        places = self._places()
        there = self.known.get(to)
        centre = self.at if there is None else there.at
        others = sorted(
            (name for name in places if name != to), key=lambda name: centre.distance(places[name])
        )
        near = others[:MAX_NEAR]
        if there is not None and there.gap is not None:
            ahead = [name for name in others if is_ahead(centre.bearing(places[name]), there.gap)]
            near += [name for name in ahead[:MAX_AHEAD] if name not in near]
        message = Here(
            at=self.at,
            keep=there is None or to in self.wanted(),
            gap=empty_half(self.at.bearing(places[name]) for name in places),
            near=tuple(Sighting(name, places[name]) for name in near),
        )
        return to, encode(message)
