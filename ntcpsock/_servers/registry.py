"""Who is connected: one small record for each instance of each node, and who may know of it.

Pure: `now` comes in, nothing goes out.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

from ntcpsock._servers.key_index import KeyIndex
from ntcpsock._servers.names import NameRecord, NameStore
from ntcpsock._servers.node_record import (
    EXPIRES_AND_DUE,
    EXPIRES_AT,
    MOST_RECORDS,
    PLACE_LENGTH,
    RECORD,
    SHOWN,
    NodeRecord,
    Records,
)
from ntcpsock._servers.sources import Source
from ntcpsock._traversal.broker.allow_list import allowed_digest, allows, key_digest
from ntcpsock._traversal.broker.fields import MIN_TTL

#: Instances of one key: processes that share a state directory.
MAX_INSTANCES = 16
# Records that are made at once where there is none left.
_GROWTH = 1024
_DUE = struct.Struct("<I")
_DUE_AT = EXPIRES_AT + EXPIRES_AND_DUE.size - _DUE.size
# Records looked at in one go: a second's worth of a million nodes at once would keep the others waiting.
_SWEEP = 8


class Asker:
    """A sender as allow lists see it: its key and its names, as digests, computed once for a request."""

    def __init__(self, key: bytes, names: tuple[str, ...]) -> None:
        self.key = key
        self.names = names
        self._key_digest = key_digest(key)
        self._name_digests = [allowed_digest(name) for name in names]

    def is_admitted(self, owner: bytes, allow: bytes | None) -> bool:
        """Whether `owner`'s list lets it in. One's own key always is."""
        return (
            allow is None
            or owner == self.key
            or allows(allow, self._key_digest)
            or any(allows(allow, digest) for digest in self._name_digests)
        )

    def name_for(self, allow: bytes | None) -> str | None:
        """The name to show: one that the list has, so that the listener can check it too."""
        if allow is not None:
            for name, digest in zip(self.names, self._name_digests, strict=True):
                if allows(allow, digest):
                    return name
        return self.names[0] if self.names else None


class Registry:
    """The connected instances, bounded and expiring; and the names."""

    def __init__(self, names: NameStore, *, max_nodes: int) -> None:
        self.names = names
        self.records = Records()
        #: Where the record of the newest instance of each key is; the others follow it.
        self.places = KeyIndex(self.records.packed)
        self._max_nodes = min(max_nodes, MOST_RECORDS)
        self._count = 0
        self._free = array("I")
        # Places to look at in a given second. Not moved at each frame: looked at, and put off.
        self._due: dict[int, array[int]] = {}
        self._sweeping: tuple[int, array[int]] = (0, array("I"))
        # When `expire` has something to do.
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NodeRecord]:
        """All records, those that are over but not yet swept included. Nothing may be added or removed meanwhile."""
        for place in self.places.values():
            yield from self._chain(place + 1)

    def keys(self) -> list[bytes]:
        """Those of which any instance is here."""
        return [NodeRecord(self.records, place).key for place in self.places.values()]

    def newest(self) -> list[int]:
        """Where the newest instance of each key is now, for `living_at`: quick, for whoever looks at all in turns."""
        return list(self.places.values())

    def living_at(self, place: int, now: float) -> tuple[NodeRecord, ...]:
        """The instance at a place and older ones of its key, as far as they are not over; those of another key by
        then, or none, are no error."""
        return tuple(node for node in self._chain(place + 1) if node.expires > now)

    def knows(self, key: bytes) -> bool:
        """Whether any instance of `key` is here."""
        return key in self.places

    def is_at(self, key: bytes, packed_source: bytes) -> bool:
        """Whether an instance of `key` has its session at that source."""
        return any(node.packed_source == packed_source for node in self._chain(self._first(key)))

    def shared_key(self, key: bytes) -> bytes | None:
        """What frames to and from `key` are sealed with, if any instance of it is here."""
        place = self.places.get(key)
        return None if place is None else NodeRecord(self.records, place).shared

    def by_session(self, session: bytes, now: float) -> NodeRecord | None:
        """The record of a session that is not over."""
        place = int.from_bytes(session[:PLACE_LENGTH], "little")
        if place >= len(self.records.offered):
            return None
        node = NodeRecord(self.records, place)
        return node if node.session == session and node.expires > now else None

    def instances(self, key: bytes, now: float) -> tuple[NodeRecord, ...]:
        """The living records of a key, newest last."""
        found = [node for node in self._chain(self._first(key)) if node.expires > now]
        return tuple(reversed(found))

    def instance(self, key: bytes, instance: bytes, now: float) -> NodeRecord | None:
        """One of them."""
        for node in self._chain(self._first(key)):
            if node.instance == instance and node.expires > now:
                return node
        return None

    def add(
        self, key: bytes, shared: bytes, instance: bytes, session: bytes, source: Source, now: float
    ) -> NodeRecord | None:
        """A new record; None where the broker has as many as it may have.

        shared: what frames are sealed with. Of `session`, which is random, the first three bytes give way to the
        record's place: a session need not be found by a table, and nobody can guess the rest.
        """
        if self._count >= self._max_nodes:
            return None
        siblings = list(self._chain(self._first(key)))
        if len(siblings) >= MAX_INSTANCES:
            # A program that is started again and again must not lock itself out.
            self.remove(min(siblings, key=lambda node: (node.registered, node.expires)))
        place = self._new_place()
        session = place.to_bytes(PLACE_LENGTH, "little") + session[PLACE_LENGTH:]
        self.records.write(place, key, shared, instance, session, source, now + MIN_TTL)
        node = NodeRecord(self.records, place)
        node.next = self._first(key)
        self.places[key] = place
        self._count += 1
        self._look_at(place, node.expires)
        return node

    def touch(self, node: NodeRecord, now: float) -> None:
        """A frame came from it."""
        node.expires = now + node.ttl

    def route(self, key: bytes, port: int, asker: Asker, now: float) -> NodeRecord | None:
        """The instance to introduce `asker` to: the newest with that port, else the newest.

        None alike where nobody is registered and where nobody lets the asker in.
        """
        open_ones = [
            node
            for node in self.instances(key, now)
            if node.registered and asker.is_admitted(key, node.allow)
        ]
        for node in reversed(open_ones):
            if port in node.ports:
                return node
        return open_ones[-1] if open_ones else None

    def visible_name(self, name: str, asker: Asker) -> NameRecord | None:
        """Who has `name`, as far as `asker` may know."""
        record = self.names.get(name)
        if record is None or not asker.is_admitted(record.key, record.allow):
            return None
        return record

    def names_changed(self, key: bytes) -> None:
        """The names of `key` may be others now: what is shown of its instances is asked for again."""
        for node in self._chain(self._first(key)):
            node.flags &= ~SHOWN

    def expire(self, now: float, most: int = _SWEEP) -> None:
        """Forget who has been silent for too long; looks at `most` records at a time."""
        if now < self._next_sweep:
            return
        second, places = self._sweeping
        packed, read = self.records.packed, EXPIRES_AND_DUE.unpack_from
        while most > 0:
            if not places:
                due = [number for number in self._due if number <= now]
                if not due:
                    self._next_sweep = int(now) + 1
                    break
                second = min(due)
                places = self._due.pop(second)
            place = places.pop()
            most -= 1
            expires, due = read(packed, place * RECORD.size + EXPIRES_AT)
            # Removed meanwhile, or another's record by now, which is looked at in its own time.
            if due != second:
                continue
            if expires > now:
                self._look_at(place, expires)
            else:
                self.remove(NodeRecord(self.records, place))
        self._sweeping = second, places

    def remove(self, node: NodeRecord) -> None:
        """Forget it at once."""
        key = node.key
        newest = self.places[key]
        if newest == node.place:
            if node.next:
                self.places[key] = node.next - 1
            else:
                del self.places[key]
        else:
            for other in self._chain(newest + 1):
                if other.next == node.place + 1:
                    other.next = node.next
        self.records.clear(node.place)
        start = node.place * RECORD.size
        self.records.packed[start : start + RECORD.size] = bytes(RECORD.size)
        self._free.append(node.place)
        self._count -= 1

    def _first(self, key: bytes) -> int:
        """One more than the place of the newest instance of a key; 0: there is none."""
        place = self.places.get(key)
        return 0 if place is None else place + 1

    def _chain(self, following: int) -> Iterator[NodeRecord]:
        """The instances of a key, newest first, from one more than the place of the first."""
        while following:
            node = NodeRecord(self.records, following - 1)
            following = node.next
            yield node

    def _look_at(self, place: int, expires: float) -> None:
        second = int(expires) + 1
        _DUE.pack_into(self.records.packed, place * RECORD.size + _DUE_AT, second)
        places = self._due.get(second)
        if places is None:
            places = self._due[second] = array("I")
        places.append(place)

    def _new_place(self) -> int:
        if not self._free:
            first = len(self.records.offered)
            self.records.packed += bytes(_GROWTH * RECORD.size)
            self.records.offered += [None] * _GROWTH
            # The lowest is taken first.
            self._free.extend(range(first + _GROWTH - 1, first - 1, -1))
        return self._free.pop()
