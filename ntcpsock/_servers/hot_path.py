"""The requests that make a broker's load, answered in one go: keep-alives, and Introduce to an open node.

`BrokerCore.receive` answers them as well, and a test compares both octet by octet. This is the same in a quarter of the
time: one read of each packed record, no objects for what is only passed on. It takes nothing but the plain case, and
changes nothing before it is sure of that; whatever else there is (a replay, a stranger, a changed address, an allow
list, a limit) is None here, and goes the long way.

What goes out is not sealed yet: whoever sends it does that in the very memory from which it leaves.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2s
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from ntcpsock._errors import BadMessage
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.node_record import (
    ALL_SEEN,
    HIDDEN,
    PLACE_LENGTH,
    RECORD,
    REGISTERED,
    SHOWN,
    decode_offered,
    decode_shared,
    decode_shown,
)
from ntcpsock._servers.node_sealer import NodeSealer
from ntcpsock._servers.registry import Registry
from ntcpsock._servers.relay_book import RelayBook
from ntcpsock._servers.sources import PACKED_LENGTH, host_of
from ntcpsock._traversal.broker.fields import INSTANCE_LENGTH, MAX_DATAGRAM, SESSION_LENGTH, RelayPlace
from ntcpsock._traversal.broker.frame import (
    HEADER_LENGTH,
    KEY_LENGTH,
    KEY_REQUEST,
    KEY_REQUEST_LENGTH,
    OVERHEAD,
    SEALED,
)
from ntcpsock._traversal.broker.message import (
    NO_MESSAGE,
    BrokerEnvelope,
    Deliver,
    Introduce,
    Introduced,
    KeepAlive,
    KeepAliveAck,
    decode_envelope,
    encode_envelope,
)
from ntcpsock._traversal.broker.replay import advance
from ntcpsock._traversal.broker.short_keep_alive import (
    PROVED_LENGTH,
    PURPOSE,
    SHORT_ACK,
    SHORT_KEEP_ALIVE,
)

if TYPE_CHECKING:
    from ntcpsock._servers.broker_state import BrokerCounters


#: A frame to be: its payload, the key and the shared key of its receiver, and the packed source to send it to.
Unsealed = tuple[bytes, bytes, bytes, bytes]


# Of the record, without its key and what only the registry reads: shared key, instance, session, source | highest
# counter, window, sent, expires | next, ttl, flags.
_SENDER: Final = struct.Struct(
    f"<{KEY_LENGTH}x32s{INSTANCE_LENGTH}s{SESSION_LENGTH}s{PACKED_LENGTH}sQ16sQd12xIHB"
)
# shared key, session, source | highest counter, window, sent, expires | ttl
_KEPT: Final = struct.Struct(
    f"<{KEY_LENGTH}x32s{INSTANCE_LENGTH}x{SESSION_LENGTH}s{PACKED_LENGTH}sQ16sQd16xH"
)
# shared key, instance, session, source | sent, expires | next, flags
_TARGET: Final = struct.Struct(
    f"<{KEY_LENGTH}x32s{INSTANCE_LENGTH}s{SESSION_LENGTH}s{PACKED_LENGTH}s24xQd12xI2xB"
)
_SIZE: Final = RECORD.size
_COUNTERS_AT: Final = KEY_LENGTH + 32 + INSTANCE_LENGTH + SESSION_LENGTH + PACKED_LENGTH
_COUNTERS: Final = struct.Struct("<Q16sQd")
_SENT: Final = struct.Struct("<Q")
_SENT_AT: Final = _COUNTERS_AT + 24
_ACK: Final = KeepAliveAck()
_NOTHING: Final = (BadMessage, *NO_MESSAGE)
_MOST_HOSTS: Final = 1024
_KEY_REQUEST: Final = bytes((KEY_REQUEST,))
# A short keep-alive: kind | session, counter | number | relays | proof.
_SHORT: Final = struct.Struct(f">B{SESSION_LENGTH}sQ4sI16s")
_SHORT_ACK: Final = bytes((SHORT_ACK,))


class HotPath:
    """One broker's."""

    def __init__(
        self,
        registry: Registry,
        sealer: NodeSealer,
        requests: RateLimit,
        counters: BrokerCounters,
        tickets: Callable[[bytes, bytes, float], tuple[bytes, bytes] | None],
        relays: RelayBook,
        gate: Gate,
        greetings: RateLimit,
        dropped: Counter[str],
        *,
        is_alone: bool = True,
    ) -> None:
        """is_alone: no other broker may have an instance that fits better."""
        self._registry = registry
        self._records = registry.records
        self._place_of = registry.places.get
        self._own_key = sealer.public_key
        self._open = sealer.boxes.open_untrusted
        self._requests = requests
        self._counters = counters
        self._tickets = tickets
        self._relays = relays
        self._gate = gate
        self._greetings = greetings
        #: By packed source, of those who come often.
        self._hosts: dict[bytes, str] = {}
        self._dropped = dropped
        self._is_alone = is_alone
        self._told_at = -1.0
        self._told: tuple[int, tuple[RelayPlace, ...]] = 0, ()

    def answer(self, frame: bytes, origin: bytes, now: float) -> list[Unsealed] | None:
        """What goes out, or None: nothing has happened, and it is not for here."""
        key = frame[1 : 1 + KEY_LENGTH]
        place = self._place_of(key)
        if place is None:
            return self._stranger(frame, origin, now)
        if not OVERHEAD <= len(frame) <= MAX_DATAGRAM or frame[0] != SEALED:
            return None
        packed = self._records.packed
        at = place * _SIZE
        shared, instance, session, source, highest, seen, sent, expires, older, ttl, flags = (
            _SENDER.unpack_from(packed, at)
        )
        if older or expires <= now:
            return None
        if source != origin:
            return self._stranger(frame, origin, now)
        # A frame of ours that came back would open.
        if frame[1 + KEY_LENGTH] & 1 != (key > self._own_key):
            return None
        try:
            envelope = decode_envelope(
                self._open(frame[HEADER_LENGTH:], frame[1 + KEY_LENGTH : HEADER_LENGTH], shared)
            )
        except _NOTHING:
            return None
        if envelope.session != session:
            return None
        counter = envelope.counter
        # The next one of somebody of whom nothing has got lost lately changes nothing but the highest.
        if counter != highest + 1 or seen != ALL_SEEN:
            window = advance(highest, int.from_bytes(seen, "little"), counter)
            if window is None:
                return None
            counter, seen = window[0], window[1].to_bytes(16, "little")
        body = envelope.body
        if type(body) is KeepAlive:
            edition, relays = self._relays_at(now)
            told = _ACK if body.relays == edition else KeepAliveAck(relays, edition)
            ack = encode_envelope(BrokerEnvelope(session, sent + 1, envelope.request, told))
            answers: list[Unsealed] = [(ack, key, shared, source)]
        elif type(body) is Introduce:
            introduced = self._introduce(place, key, instance, source, flags, body, now)
            if introduced is None:
                return None
            delivery, introduction = introduced
            ack = encode_envelope(BrokerEnvelope(session, sent + 1, envelope.request, introduction))
            answers = [delivery, (ack, key, shared, source)]
        else:
            return None
        _COUNTERS.pack_into(packed, at + _COUNTERS_AT, counter, seen, sent + 1, now + ttl)
        return answers

    def answer_keep_alives(self, frames: Sequence[tuple[bytes, bytes]], now: float) -> list[bytes | None]:
        """The answers to short ones, of whose length all frames are; b"": none. None: that one is for `receive`."""
        count, packed = len(self._records.offered), self._records.packed
        own_edition = self._relays_at(now)[0]
        answers: list[bytes | None] = []
        add = answers.append
        for frame, origin in frames:
            kind, session, counter, number, edition, proof = _SHORT.unpack(frame)
            if kind != SHORT_KEEP_ALIVE:
                add(None)
                continue
            place = int.from_bytes(session[:PLACE_LENGTH], "little")
            if place >= count:
                add(self._no_answer("keep-alive of no session"))
                continue
            at = place * _SIZE
            shared, own_session, source, highest, seen, sent, expires, ttl = _KEPT.unpack_from(packed, at)
            if own_session != session or source != origin or expires <= now:
                add(self._no_answer("keep-alive of no session"))
                continue
            proved = blake2s(frame[:PROVED_LENGTH], key=shared, person=PURPOSE).digest()
            if not compare_digest(proved[:16], proof):
                add(self._no_answer("keep-alive of another key"))
                continue
            if edition != own_edition:
                add(None)
                continue
            if counter != highest + 1 or seen != ALL_SEEN:
                if not highest:
                    add(None)
                    continue
                window = advance(highest, int.from_bytes(seen, "little"), counter)
                if window is None:
                    add(self._no_answer("replay"))
                    continue
                counter, seen = window[0], window[1].to_bytes(16, "little")
            _COUNTERS.pack_into(packed, at + _COUNTERS_AT, counter, seen, sent, now + ttl)
            add(_SHORT_ACK + number + proved[16:])
        return answers

    def _no_answer(self, reason: str) -> bytes:
        self._dropped[reason] += 1
        return b""

    def _relays_at(self, now: float) -> tuple[int, tuple[RelayPlace, ...]]:
        """Asked for once in a batch, which has one time."""
        if now != self._told_at:
            self._told_at, self._told = now, self._relays.told(now)
        return self._told

    def _stranger(self, frame: bytes, origin: bytes, now: float) -> list[Unsealed] | None:
        """Nothing at all, where that is the whole answer: a flood is to cost as little as it can."""
        length = len(frame)
        if length > MAX_DATAGRAM or (frame[:1] == _KEY_REQUEST and length != KEY_REQUEST_LENGTH):
            return None
        host = self._hosts.get(origin)
        if host is None:
            if len(self._hosts) >= _MOST_HOSTS:
                self._hosts.clear()
            host = self._hosts[origin] = host_of(origin)
        if self._greetings.is_exhausted(host, now):
            self._dropped["too many greetings"] += 1
            return []
        return None

    def _introduce(
        self,
        place: int,
        own_key: bytes,
        own_instance: bytes,
        own_source: bytes,
        own_flags: int,
        offer: Introduce,
        now: float,
    ) -> tuple[Unsealed, Introduced] | None:
        """The delivery, and the answer to the dialer."""
        if not own_flags & SHOWN or self._gate.meters_introductions:
            return None
        key = offer.to
        target_place = self._place_of(key)
        if target_place is None or target_place == place:
            return None
        records = self._records
        at = target_place * _SIZE
        shared, instance, session, source, sent, expires, older, flags = _TARGET.unpack_from(
            records.packed, at
        )
        if older or not flags & REGISTERED or expires <= now:
            return None
        packed = records.offered[target_place]
        if packed is None:
            return None
        offered = decode_shared(packed)
        if offered.allow is not None:
            return None
        if not self._is_alone and offer.port not in decode_offered(packed).ports:
            return None
        if offer.name is not None:
            name = self._registry.names.get(offer.name)
            if name is None or name.key != key or name.allow is not None:
                return None
        own_host = host_of(own_source)
        # Last, because it counts.
        if not self._requests.take(own_host, now):
            return None
        self._counters.introductions += 1
        own = records.offered[place]
        deliver = Deliver(
            own_key,
            own_instance,
            offer.sealed,
            None if own is None else decode_shown(own).shown,
            "" if own_flags & HIDDEN else own_host,
            self._proved(place, own_flags, own_host, now) if records.proved else (),
        )
        host = host_of(source)
        introduced = Introduced(
            key,
            instance,
            offered.card,
            "" if flags & HIDDEN else host,
            self._proved(target_place, flags, host, now) if records.proved else (),
            self._tickets(own_key, key, now) if self._relays_at(now)[1] else None,
        )
        _SENT.pack_into(records.packed, at + _SENT_AT, sent + 1)
        payload = encode_envelope(BrokerEnvelope(session, sent + 1, 0, deliver))
        return (payload, key, shared, source), introduced

    def _proved(self, place: int, flags: int, here: str, now: float) -> tuple[str, ...]:
        """As `NodeRecord.whereabouts` tells it."""
        proved = self._records.proved.get(place)
        if proved is None or flags & HIDDEN:
            return ()
        return tuple(host for host, until in proved if until > now and host != here)
