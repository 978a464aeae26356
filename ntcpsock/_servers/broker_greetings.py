"""Before a session: who proves its key and its address gets one, and nobody else gets more than it sent."""

from __future__ import annotations

import hashlib
import hmac

from ntcpsock._servers.broker_state import BrokerState, words
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.sources import Datagram, Source, endpoint_of
from ntcpsock._traversal.broker.fields import (
    COOKIE_LENGTH,
    MIN_TTL,
    NO_SESSION,
    SESSION_LENGTH,
)
from ntcpsock._traversal.broker.frame import (
    decode_key_request_untrusted,
    encode_key_reply,
)
from ntcpsock._traversal.broker.message import (
    Challenge,
    ClientEnvelope,
    Hello,
    Prove,
    Proved,
    Reason,
    Refused,
    Welcome,
    encode_from_broker,
)

#: A cookie is good in its own slot of time and in the next one: 30 to 60 seconds.
_COOKIE_SLOT = MIN_TTL // 2


class Greetings(BrokerState):
    """Hello, Prove, and requests for our key."""

    def _key_request(self, datagram: bytes, source: Source, now: float) -> list[Datagram]:
        nonce = decode_key_request_untrusted(datagram)
        if not self._greetings.take(source.host, now):
            return self._drop("too many greetings")
        return [(encode_key_reply(nonce, self.key), source)]

    def _hello(
        self,
        datagram: bytes,
        key: bytes,
        envelope: ClientEnvelope,
        hello: Hello,
        source: Source,
        now: float,
    ) -> list[Datagram]:
        if not self._is_fresh(hello.cookie, key, source, now):
            return self._challenge(datagram, key, envelope.request, source, now)
        self.round_trips.answered(source, now)
        reason = self.gate.refuses(key, hello.token, self.key)
        if reason is not None:
            return self._turn_away(key, envelope.request, reason, source)
        node = self._registry.instance(key, hello.instance, now)
        if node is None:
            self.counters.sessions += 1
            session = self._random_bytes(SESSION_LENGTH)
            shared = self._sealer.shared_key(key)
            node = self._registry.add(key, shared, hello.instance, session, source, now)
            if node is None:
                return self._drop("full")
            self._sealer.settled(key)
        if not node.accept(envelope.counter):
            return self._drop("replay")
        # The session stays the same where one is open: a Welcome may have been lost, or the address
        # may have changed, and neither is a reason to forget what is registered.
        node.source = source
        node.hidden = hello.hidden
        self._registry.touch(node, now)
        self.was_in_session = True
        observed = endpoint_of(source)
        elsewhere = tuple(place for place in self._elsewhere if place.is_ipv6 != observed.is_ipv6)
        spoofs = self._spoofing is not None
        edition, relays = self.relays.told(now)
        welcome = Welcome(node.session, observed, self._stun, elsewhere, spoofs, relays, edition)
        return [self._to(node, envelope.request, welcome)]

    def _turn_away(self, key: bytes, request: int, reason: Reason, source: Source) -> list[Datagram]:
        """An answer to a Hello from a proved address: no session, and why."""
        self.counters.refused[words(reason)] += 1
        frame = self._sealer.seal(key, encode_from_broker(NO_SESSION, 0, request, Refused(reason)))
        return [(frame, source)]

    def _prove(
        self,
        datagram: bytes,
        node: NodeRecord,
        envelope: ClientEnvelope,
        prove: Prove,
        source: Source,
        now: float,
    ) -> list[Datagram]:
        if not self._is_fresh(prove.cookie, node.key, source, now):
            return self._challenge(datagram, node.key, envelope.request, source, now)
        if not node.accept(envelope.counter):
            return self._drop("replay")
        node.prove(source.host, now)
        frame, _ = self._to(node, envelope.request, Proved())
        return [(frame, source)]

    def _challenge(
        self, datagram: bytes, key: bytes, request: int, source: Source, now: float
    ) -> list[Datagram]:
        cookie = self._cookie(int(now // _COOKIE_SLOT), key, source)
        # No counter: there is no state to count in. The echoed request number tells a replay.
        frame = self._sealer.seal(key, encode_from_broker(NO_SESSION, 0, request, Challenge(cookie)))
        if len(frame) > len(datagram):
            return self._drop("answer larger than question")
        self.round_trips.challenged(source, now)
        return [(frame, source)]

    def _cookie(self, slot: int, key: bytes, source: Source) -> bytes:
        """Proof that its holder receives at `source`, which costs us no memory."""
        text = f"{slot} {source.port} {source.host}".encode()
        return hashlib.blake2b(text + key, key=self._cookie_secret, digest_size=COOKIE_LENGTH).digest()

    def _is_fresh(self, cookie: bytes, key: bytes, source: Source, now: float) -> bool:
        slot = int(now // _COOKIE_SLOT)
        return any(
            hmac.compare_digest(cookie, self._cookie(number, key, source)) for number in (slot, slot - 1)
        )
