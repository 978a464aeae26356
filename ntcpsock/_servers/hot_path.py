"""The two requests that make a broker's load, answered in one go: KeepAlive, and Introduce to an open node.

`BrokerCore.receive` answers them as well, and a test compares both octet by octet. This is the same in a quarter of the
time: one read of each packed record, no objects for what is only passed on. It takes nothing but the plain case, and
changes nothing before it is sure of that; whatever else there is (a replay, a stranger, a changed address, an allow
list, a limit) is None here, and goes the long way.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ntcpsock._errors import BadMessage
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.node_record import HIDDEN, RECORD, REGISTERED, SHOWN, decode_offered
from ntcpsock._servers.node_sealer import NodeSealer
from ntcpsock._servers.registry import Registry
from ntcpsock._servers.sources import host_of
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, KEY_LENGTH, KEY_REQUEST, OVERHEAD, SEALED
from ntcpsock._traversal.broker.message import (
    MAX_DATAGRAM,
    ClientEnvelope,
    Deliver,
    Introduce,
    Introduced,
    KeepAlive,
    KeepAliveAck,
    decode_from_node,
    encode_from_broker,
)
from ntcpsock._traversal.broker.replay import advance

if TYPE_CHECKING:
    from ntcpsock._servers.broker_core import BrokerCounters

#: A frame, and the packed source to send it to.
Packed = tuple[bytes, bytes]

# Of the record: highest counter, window, sent, registration, expires.
_COUNTERS: Final = struct.Struct("<Q16sQQd")
_COUNTERS_AT: Final = 110
_SENT: Final = struct.Struct("<Q")
_SENT_AT: Final = _COUNTERS_AT + 24
_ACK: Final = KeepAliveAck()
_KEY_REQUEST: Final = bytes((KEY_REQUEST,))


class HotPath:
    """One broker's."""

    def __init__(
        self,
        registry: Registry,
        sealer: NodeSealer,
        requests: RateLimit,
        counters: BrokerCounters,
        tickets: Callable[[bytes, bytes], tuple[bytes, bytes] | None],
        greetings: RateLimit,
        strangers: RateLimit,
        dropped: Counter[str],
    ) -> None:
        self._registry = registry
        self._records = registry.records
        self._sealer = sealer
        self._requests = requests
        self._counters = counters
        self._tickets = tickets
        self._greetings = greetings
        self._strangers = strangers
        self._dropped = dropped

    def answer(self, frame: bytes, origin: bytes, now: float) -> list[Packed] | None:
        """What goes out, or None: nothing has happened, and it is not for here."""
        if now >= self._registry.next_sweep:
            self._registry.expire(now)
        claimed = frame[1 : 1 + KEY_LENGTH]
        place = self._registry.places.get(claimed)
        if place is None:
            return self._stranger(frame, claimed, origin, now)
        if not OVERHEAD <= len(frame) <= MAX_DATAGRAM or frame[0] != SEALED:
            return None
        record = RECORD.unpack_from(self._records.packed, place * RECORD.size)
        key, shared, _, session, source, highest, seen, sent, registration, expires, _, older, ttl, _ = record
        if older or source != origin or expires <= now:
            return None
        try:
            payload = self._sealer.open_with(
                shared, key, frame[1 + KEY_LENGTH : HEADER_LENGTH], frame[HEADER_LENGTH:]
            )
            envelope = decode_from_node(payload)
        except BadMessage:
            return None
        if envelope.session != session:
            return None
        window = advance(highest, int.from_bytes(seen, "little"), envelope.counter)
        if window is None:
            return None
        body = envelope.body
        if type(body) is KeepAlive:
            answers: list[Packed] = []
            ack = encode_from_broker(session, sent + 1, envelope.request, _ACK)
        elif type(body) is Introduce:
            introduced = self._introduce(place, record, envelope, body, now)
            if introduced is None:
                return None
            delivery, introduction = introduced
            answers = [delivery]
            ack = encode_from_broker(session, sent + 1, envelope.request, introduction)
        else:
            return None
        _COUNTERS.pack_into(
            self._records.packed,
            place * RECORD.size + _COUNTERS_AT,
            window[0],
            window[1].to_bytes(16, "little"),
            sent + 1,
            registration,
            now + ttl,
        )
        answers.append((self._sealer.seal_with(shared, key, ack), source))
        return answers

    def _stranger(self, frame: bytes, claimed: bytes, origin: bytes, now: float) -> list[Packed] | None:
        """Nothing at all, where that is the whole answer: a flood is to cost as little as it can."""
        if frame[:1] == _KEY_REQUEST or len(frame) > MAX_DATAGRAM or self._sealer.knows(claimed):
            return None
        host = host_of(origin)
        if self._greetings.is_exhausted(host, now):
            self._dropped["too many greetings"] += 1
            return []
        if self._strangers.is_exhausted("", now) and self._greetings.take(host, now):
            self._dropped["too many strangers"] += 1
            return []
        return None

    def _introduce(
        self,
        place: int,
        dialer: tuple[Any, ...],
        envelope: ClientEnvelope,
        offer: Introduce,
        now: float,
    ) -> tuple[Packed, Introduced] | None:
        """The delivery, and the answer to the dialer."""
        target_place = self._registry.places.get(offer.to)
        if target_place is None or target_place == place:
            return None
        target = RECORD.unpack_from(self._records.packed, target_place * RECORD.size)
        key, shared, instance, session, source, _, _, sent, _, expires, _, older, _, flags = target
        if older or not flags & REGISTERED or expires <= now:
            return None
        packed = self._records.offered[target_place]
        own = self._records.offered[place]
        own_key, _, own_instance, _, own_source, *_, own_flags = dialer
        if packed is None or not own_flags & SHOWN:
            return None
        offered = decode_offered(packed)
        if offered.allow is not None:
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
        shown = None if own is None else decode_offered(own).shown
        deliver = Deliver(
            own_key,
            own_instance,
            offer.sealed,
            shown,
            "" if own_flags & HIDDEN else own_host,
            self._proved(place, own_flags, own_host, now),
        )
        host = host_of(source)
        introduced = Introduced(
            key,
            instance,
            offered.card,
            "" if flags & HIDDEN else host,
            self._proved(target_place, flags, host, now),
            self._tickets(own_key, key),
        )
        _SENT.pack_into(self._records.packed, target_place * RECORD.size + _SENT_AT, sent + 1)
        delivery = self._sealer.seal_with(shared, key, encode_from_broker(session, sent + 1, 0, deliver))
        return (delivery, source), introduced

    def _proved(self, place: int, flags: int, here: str, now: float) -> tuple[str, ...]:
        """As `NodeRecord.whereabouts` tells it."""
        proved = self._records.proved.get(place)
        if proved is None or flags & HIDDEN:
            return ()
        return tuple(host for host, until in proved if until > now and host != here)
