"""What a broker keeps of each instance of a node: 170 packed bytes, and what it has registered.

A million objects with their strings and numbers would take three times as much, and each full garbage collection a
fifth of a second. So the records of all nodes are one bytearray; `NodeRecord` is how one of them is read and written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from ntcpsock._servers.sources import PACKED_LENGTH, Source, host_of, pack_source, unpack_source
from ntcpsock._traversal.broker.fields import INSTANCE_LENGTH, MAX_PROVED, MIN_TTL, SESSION_LENGTH
from ntcpsock._traversal.broker.frame import KEY_LENGTH
from ntcpsock._traversal.broker.message import Register
from ntcpsock._traversal.broker.replay import WINDOW, advance

#: key | shared key | instance | session | source | highest counter | window | sent | expires | registration | due |
#: next | ttl | flags
RECORD: Final = struct.Struct(
    f"<{KEY_LENGTH}s32s{INSTANCE_LENGTH}s{SESSION_LENGTH}s{PACKED_LENGTH}sQ16sQdQIIHB"
)

#: Of a record, from `EXPIRES_AT`: when it is over, and the second in which the registry looks at it next.
EXPIRES_AND_DUE: Final = struct.Struct("<d8xI")
EXPIRES_AT: Final = struct.calcsize(
    f"<{KEY_LENGTH}s32s{INSTANCE_LENGTH}s{SESSION_LENGTH}s{PACKED_LENGTH}sQ16sQ"
)

#: A window without gaps, as that of most nodes is at most times.
ALL_SEEN: Final = b"\xff" * (WINDOW // 8)

HIDDEN: Final = 1
REGISTERED: Final = 2
#: The name to show is in `Offered.shown`; else it is to be asked for.
SHOWN: Final = 4

#: How the session begins: its record's place in the table. What follows is random.
PLACE_LENGTH: Final = 3
MOST_RECORDS: Final = 2 ** (8 * PLACE_LENGTH)

_T = TypeVar("_T")


class Offered(msgspec.Struct, frozen=True, array_like=True):
    """The part of a record whose length varies, kept in MessagePack. shown: the first of all names of its key."""

    shown: str | None = None
    allow: bytes | None = None
    card: bytes | None = None
    ports: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


class Shown(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The beginning of `Offered`, for whoever needs no more."""

    shown: str | None


class Shared(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some more of it."""

    shown: str | None
    allow: bytes | None
    card: bytes | None


NOTHING_OFFERED: Final = Offered()
encode_offered: Final = msgspec.msgpack.Encoder().encode
decode_offered: Final = msgspec.msgpack.Decoder(Offered).decode
decode_shown: Final = msgspec.msgpack.Decoder(Shown).decode
decode_shared: Final = msgspec.msgpack.Decoder(Shared).decode


@dataclass(slots=True)
class Records:
    """The memory of all records. `proved` has few: nodes with addresses beside the one of their session."""

    packed: bytearray = field(default_factory=bytearray)
    #: Of each place; None: nothing is offered.
    offered: list[bytes | None] = field(default_factory=list)
    proved: dict[int, tuple[tuple[str, float], ...]] = field(default_factory=dict)

    def write(
        self,
        place: int,
        key: bytes,
        shared: bytes,
        instance: bytes,
        session: bytes,
        source: Source,
        expires: float,
    ) -> None:
        """A new record."""
        RECORD.pack_into(
            self.packed, place * RECORD.size, key, shared, instance, session, pack_source(source), 0,
            ALL_SEEN, 0, expires, 0, 0, 0, MIN_TTL, 0,
        )  # fmt: skip
        self.clear(place)

    def clear(self, place: int) -> None:
        self.offered[place] = None
        self.proved.pop(place, None)


class _Field(Generic[_T]):
    """One field of the packed record."""

    def __init__(self, index: int) -> None:
        codes = ("32s", "32s", "8s", "8s", "30s", "Q", "16s", "Q", "d", "Q", "I", "I", "H", "B")
        self.offset = struct.calcsize("<" + "".join(codes[:index]))
        self._struct = struct.Struct("<" + codes[index])

    def __get__(self, node: NodeRecord, owner: type) -> _T:
        value: _T = self._struct.unpack_from(node.records.packed, node.place * RECORD.size + self.offset)[0]
        return value

    def __set__(self, node: NodeRecord, value: Any) -> None:
        self._struct.pack_into(node.records.packed, node.place * RECORD.size + self.offset, value)


class NodeRecord:
    """One instance of a node, at one proved address. Good until its node is removed: do not keep it."""

    __slots__ = ("place", "records")

    key = _Field[bytes](0)
    #: What frames to and from it are sealed with; see `Sealer`.
    shared = _Field[bytes](1)
    instance = _Field[bytes](2)
    session = _Field[bytes](3)
    packed_source = _Field[bytes](4)
    _highest = _Field[int](5)
    _seen = _Field[bytes](6)
    #: The counter of our last frame to it.
    sent = _Field[int](7)
    expires = _Field[float](8)
    #: The counter of the latest Register or Bye: one that was overtaken on the way is void.
    registration = _Field[int](9)
    #: The second in which the registry looks at it next.
    due = _Field[int](10)
    #: One more than the place of the next older instance of its key; 0: there is none.
    next = _Field[int](11)
    ttl = _Field[int](12)
    flags = _Field[int](13)

    def __init__(self, records: Records, place: int) -> None:
        self.records = records
        self.place = place

    @property
    def source(self) -> Source:
        return unpack_source(self.packed_source)

    @source.setter
    def source(self, source: Source) -> None:
        self.packed_source = pack_source(source)

    @property
    def host(self) -> str:
        """The address of its session."""
        return host_of(self.packed_source)

    @property
    def hidden(self) -> bool:
        """Whether nobody is to be told where it is."""
        return bool(self.flags & HIDDEN)

    @hidden.setter
    def hidden(self, hidden: bool) -> None:
        self.flags = self.flags & ~HIDDEN | HIDDEN * hidden

    @property
    def registered(self) -> bool:
        """Whether others are introduced to it."""
        return bool(self.flags & REGISTERED)

    @property
    def offered(self) -> Offered:
        """What it has registered."""
        packed = self.records.offered[self.place]
        return NOTHING_OFFERED if packed is None else decode_offered(packed)

    @offered.setter
    def offered(self, offered: Offered) -> None:
        if offered == NOTHING_OFFERED:
            self.records.offered[self.place] = None
        else:
            # A copy: the encoder's own bytes have been shrunk in a larger piece of memory, whose rest stays unused.
            self.records.offered[self.place] = bytes(memoryview(encode_offered(offered)))

    @property
    def names(self) -> tuple[str, ...]:
        return self.offered.names

    @property
    def ports(self) -> tuple[int, ...]:
        return self.offered.ports

    @property
    def card(self) -> bytes | None:
        return self.offered.card

    @card.setter
    def card(self, card: bytes | None) -> None:
        self.offered = msgspec.structs.replace(self.offered, card=card)

    @property
    def allow(self) -> bytes | None:
        return self.offered.allow

    @property
    def proved(self) -> Sequence[tuple[str, float]]:
        """Further addresses that it has proved, the newest last, and until when each is believed."""
        return self.records.proved.get(self.place, ())

    def accept(self, counter: int) -> bool:
        """Whether this counter of a frame of its is new, over all its hellos; from then on it is old."""
        if not self._highest and counter:
            # Its first: what it has sent before that it has sent in vain.
            self._highest, self._seen = counter, ALL_SEEN
            return True
        window = advance(self._highest, int.from_bytes(self._seen, "little"), counter)
        if window is None:
            return False
        self._highest, seen = window
        self._seen = seen.to_bytes(WINDOW // 8, "little")
        return True

    def prove(self, host: str, now: float) -> None:
        """It is at `host` too."""
        others = [entry for entry in self.proved if entry[0] != host and entry[1] > now]
        self.records.proved[self.place] = (*others, (host, now + self.ttl))[-MAX_PROVED:]

    def whereabouts(self, now: float) -> tuple[str, tuple[str, ...]]:
        """What others are told: the address of its session, and where it is beside; nothing of one that hides."""
        if self.hidden:
            return "", ()
        here = self.host
        return here, tuple(host for host, until in self.proved if until > now and host != here)

    def register(self, counter: int, registration: Register) -> None:
        """Replace what it offered before."""
        self.flags |= REGISTERED
        self.registration = counter
        self.offered = Offered(
            self.offered.shown, registration.allow, registration.card, registration.ports, registration.names
        )
        self.ttl = registration.ttl

    def leave(self, counter: int) -> None:
        """After Bye: no introductions, but the counters stay until no recorded Hello can pass."""
        self.flags &= ~(REGISTERED | SHOWN)
        self.registration = max(self.registration, counter)
        self.records.clear(self.place)
        self.ttl = MIN_TTL

    def show(self, name: str | None) -> None:
        """Remember the first of all names of its key."""
        self.offered = msgspec.structs.replace(self.offered, shown=name)
        self.flags |= SHOWN
