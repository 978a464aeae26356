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
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.node_record import HIDDEN, RECORD, REGISTERED, SHOWN, decode_offered
from ntcpsock._servers.node_sealer import NodeSealer
from ntcpsock._servers.registry import Registry
from ntcpsock._servers.relay_book import RelayBook
from ntcpsock._servers.sources import host_of
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.frame import (
    HEADER_LENGTH,
    KEY_LENGTH,
    KEY_REQUEST,
    KEY_REQUEST_LENGTH,
    OVERHEAD,
    SEALED,
)
from ntcpsock._traversal.broker.message import (
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
    from ntcpsock._servers.broker_state import BrokerCounters

#: A frame, and the packed source to send it to.
Packed = tuple[bytes, bytes]

# Of the record: highest counter, window, sent, registration, expires.
_COUNTERS: Final = struct.Struct("<Q16sQQd")
_COUNTERS_AT: Final = 110
_SENT: Final = struct.Struct("<Q")
_SENT_AT: Final = _COUNTERS_AT + 24
_ACK: Final = KeepAliveAck()
_MOST_HOSTS: Final = 1024
_KEY_REQUEST: Final = bytes((KEY_REQUEST,))


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
        self._sealer = sealer
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
            edition, relays = self._relays.told(now)
            told = _ACK if body.relays == edition else KeepAliveAck(relays, edition)
            answers: list[Packed] = []
            ack = encode_from_broker(session, sent + 1, envelope.request, told)
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
        dialer: tuple[Any, ...],
        envelope: ClientEnvelope,
        offer: Introduce,
        now: float,
    ) -> tuple[Packed, Introduced] | None:
        """The delivery, and the answer to the dialer."""
        if self._gate.meters_introductions:
            return None
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
        if offered.allow is not None or not (self._is_alone or offer.port in offered.ports):
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
            self._tickets(own_key, key, now),
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
