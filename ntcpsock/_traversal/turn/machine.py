"""One allocation at a TURN server (RFC 8656), from its first request to its last, without sockets and without a clock.

Five verbs, as in `stun/machine.py`: `handle_unit` and `handle_timeout` go in with `now`, `datagrams_to_send`,
`next_timeout` and `next_event` come out. What peers send comes out of `handle_unit` itself, and what goes to them
is made by `encode`: that is the way of every datagram, and costs no queue.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter, deque
from collections.abc import Callable

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import AlternateDomain, AlternateServer, XorMappedAddress
from ntcpsock._traversal.stun.constants import TRANSACTION_ID_LENGTH, ErrorCode, MessageClass, Method
from ntcpsock._traversal.stun.message import Message, encode_message
from ntcpsock._traversal.turn.credentials import TurnCredentials
from ntcpsock._traversal.turn.events import (
    Allocated,
    Ended,
    Event,
    PeerPermitted,
    PeerRefused,
    Redirected,
    Refusal,
)
from ntcpsock._traversal.turn.message import (
    ChannelNumber,
    Data,
    Lifetime,
    TurnErrorCode,
    TurnMethod,
    XorPeerAddress,
    XorRelayedAddress,
    allocate_attributes,
    decode_channel_data_untrusted,
    decode_turn_untrusted,
    encode_channel_data,
    is_channel_data,
    send_indication,
)
from ntcpsock._traversal.turn.peers import (
    MAX_HOSTS,
    Channel,
    Peers,
    Permission,
)
from ntcpsock._traversal.turn.requests import Outcome, Requests

#: RFC 8656 section 3.2, seconds: what a server gives by default, and what we ask for.
LIFETIME = 600
#: A server's word for a lifetime is taken between these bounds, in seconds: a shorter one would have us ask all the
#: time, a longer one leave a dead allocation unnoticed.
SHORTEST_LIFETIME = 2.0
LONGEST_LIFETIME = 3600.0
#: Seconds before its end that an allocation is refreshed, where it lasts twice as long; a request may take 40 s.
REFRESH_AHEAD = 60.0

#: Seconds without a word from the server, while we send, after which it is asked whether it still knows us: a restarted
#: one drops ChannelData without a sound.
SUSPICIOUS_SILENCE = 5.0

#: Seconds without anything sent, after which a Binding indication keeps the NAT's mapping (RFC 8445 section 11).
KEEP_ALIVE = 20.0


class TurnMachine:
    """The client's side of one allocation, over UDP or (reliable) a stream.

    ipv6: the family of the relayed address, and so of the peers. lifetime: what is asked for, in seconds. new_id: makes
    transaction ids. dropped: how many units were not taken, by reason.
    """

    def __init__(
        self,
        credentials: TurnCredentials,
        *,
        now: float,
        reliable: bool = False,
        ipv6: bool = False,
        lifetime: int = LIFETIME,
        new_id: Callable[[], bytes] = lambda: secrets.token_bytes(TRANSACTION_ID_LENGTH),
    ) -> None:
        self._reliable = reliable
        self._ipv6 = ipv6
        self._lifetime = lifetime
        self._new_id = new_id
        self.dropped: Counter[str] = Counter()
        self._requests = Requests(credentials, reliable=reliable, new_id=new_id, dropped=self.dropped)
        self._peers = Peers()
        self._events: deque[Event] = deque()
        self._indications: list[bytes] = []
        self._allocated = False
        self._closing = False
        self._ended = False
        self._refresh_due: float | None = None
        self._expires = math.inf
        # Of the first unit sent since the server was last heard; of the last one sent.
        self._sent_unanswered: float | None = None
        self._last_sent = now
        self._requests.ask(TurnMethod.ALLOCATE, allocate_attributes(lifetime=lifetime, ipv6=ipv6), None, now)

    # --- what the owner wants ------------------------------------------------------------------

    def permit(self, host: str, now: float) -> bool:
        """Let `host` in (RFC 8656 section 9): `PeerPermitted` or `PeerRefused` follows. False: too many."""
        if host not in self._peers.permissions:
            if len(self._peers.permissions) >= MAX_HOSTS:
                return False
            self._peers.permissions[host] = Permission(due=now)
            self._ask_what_is_due(now)
        return True

    def bind(self, peer: Endpoint, now: float) -> bool:
        """Bind a channel to `peer` (section 12), whose host is permitted already. False: too many; indications are used
        for it then, as they are until the channel is bound."""
        bound = self._peers.add_channel(peer, now) is not None
        self._ask_what_is_due(now)
        return bound

    def forget(self, peer: Endpoint) -> None:
        """Keep the channel of `peer` alive no more."""
        self._peers.retire_channel(peer)

    def is_permitted(self, host: str, now: float) -> bool:
        return not self._ended and self._peers.is_permitted(host, now)

    def encode(self, peer: Endpoint, data: bytes | memoryview, now: float) -> bytes | None:
        """What brings `data` (up to 65,500 octets) to `peer` by way of the server; None where the server would drop it,
        which is counted."""
        channel = self._peers.channels.get(peer)
        if channel is not None and channel.is_in_force(now):
            unit = encode_channel_data(channel.number, data, padded=self._reliable)
        elif self.is_permitted(peer.host, now):
            unit = encode_message(send_indication(self._new_id(), XorPeerAddress(peer), bytes(data)))
        else:
            self.dropped["sent without permission"] += 1
            return None
        self._note_sent(now)
        return unit

    def close(self, now: float) -> None:
        """Give the allocation back (section 8, lifetime 0); `Ended` follows. Nothing else is asked from here on."""
        if self._closing or self._ended:
            return
        self._closing = True
        self._refresh_due = None
        if not self._allocated and self._requests.is_asking_signed(TurnMethod.ALLOCATE):
            return  # the server may have made it already: its answer is waited for
        self._requests.clear()
        if self._allocated:
            self._requests.ask(TurnMethod.REFRESH, (Lifetime(0),), None, now)
        else:
            self._end(None)

    # --- what arrives --------------------------------------------------------------------------

    def handle_unit(self, data: bytes, now: float) -> tuple[Endpoint, bytes] | None:
        """Take one STUN or ChannelData message. A peer's datagram is returned, with whom it is from."""
        try:
            if is_channel_data(data):
                return self._handle_channel_data_untrusted(data)
            message = decode_turn_untrusted(data)
            if message.message_class == MessageClass.INDICATION:
                return self._handle_indication(message, now)
            outcome = self._requests.handle_response_untrusted(data, message, now)
        except BadMessage:
            self.dropped["bad message"] += 1
            return None
        if outcome is not None:
            self._sent_unanswered = None
            self._handle_outcome(outcome, now)
        return None

    def _handle_channel_data_untrusted(self, data: bytes) -> tuple[Endpoint, bytes] | None:
        number, body = decode_channel_data_untrusted(data)
        peer = self._peers.by_number.get(number)
        if peer is None:
            self.dropped["unknown channel"] += 1
            return None
        self._sent_unanswered = None
        return peer, body

    def _handle_indication(self, message: Message, now: float) -> tuple[Endpoint, bytes] | None:
        """RFC 8656 section 11.4: only of peers that were let in, whoever else the server may know."""
        peer, body = message.get(XorPeerAddress), message.get(Data)
        if message.method != TurnMethod.DATA or peer is None or body is None or message.unknown_required:
            self.dropped["unusable indication"] += 1
            return None
        if not self._peers.is_permitted(peer.endpoint.host, now):
            self.dropped["peer without permission"] += 1
            return None
        self._sent_unanswered = None
        return peer.endpoint, body.value

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`: repeat requests, refresh, or find that the server is gone."""
        if self._ended:
            return
        if now >= self._expires:
            self._end(
                Refusal(None, "the server did not let us refresh the allocation in time: it has expired")
            )
            return
        for outcome in self._requests.handle_timeout(now):
            self._handle_outcome(outcome, now)
        self._ask_what_is_due(now)
        if self._keep_alive_due() is not None and now >= self._last_sent + KEEP_ALIVE:
            # No answer comes to it, so silence after it means nothing.
            indication = Message(Method.BINDING, MessageClass.INDICATION, self._new_id())
            self._indications.append(encode_message(indication))
            self._last_sent = now

    # --- what the driver does ------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What to send to the server now; each is handed out once."""
        requests = self._requests.datagrams_to_send()
        if requests:
            self._note_sent(now)
        outgoing, self._indications = requests + self._indications, []
        return outgoing

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do, absolute; None when the allocation has ended."""
        if self._ended:
            return None
        moments = [self._requests.next_timeout()]
        if self._allocated and not self._closing:
            moments += [self._refresh_due, self._probe_due(), self._peers.next_due(), self._keep_alive_due()]
        if self._expires < math.inf:
            moments.append(self._expires)
        return min((moment for moment in moments if moment is not None), default=None)

    def next_event(self) -> Event | None:
        """The next thing that has happened, once; None where there is none."""
        return self._events.popleft() if self._events else None

    # --- what came of requests -----------------------------------------------------------------

    def _handle_outcome(self, outcome: Outcome, now: float) -> None:
        if self._ended:
            return
        if self._closing and outcome.method == TurnMethod.ALLOCATE and outcome.refusal is None:
            self._requests.ask(TurnMethod.REFRESH, (Lifetime(0),), None, now)
        elif self._closing:
            # Whatever the server says, it has dropped the allocation or will by itself.
            self._end(None)
        elif outcome.refusal is not None:
            self._handle_refusal(outcome, outcome.refusal)
        elif outcome.response is not None:
            self._handle_success(outcome, outcome.response, now)

    def _handle_success(self, outcome: Outcome, response: Message, now: float) -> None:
        if outcome.method == TurnMethod.ALLOCATE:
            relayed, mapped = response.get(XorRelayedAddress), response.get(XorMappedAddress)
            if relayed is None or mapped is None or relayed.endpoint.is_ipv6 != self._ipv6:
                reason = "the answer has no relayed address of the family asked for"
                self._end(Refusal(ErrorCode.BAD_REQUEST, reason))
                return
            self._allocated = True
            lifetime = self._take_lifetime(response, now)
            self._events.append(Allocated(relayed.endpoint, mapped.endpoint, lifetime, outcome.rtt))
        elif outcome.method == TurnMethod.REFRESH:
            self._take_lifetime(response, now)
        elif isinstance(outcome.subject, Endpoint):
            self._peers.take_channel(outcome.subject, now)
            self._take_permission(outcome.subject.host, now)
        elif outcome.subject is not None:
            self._take_permission(outcome.subject, now)

    def _take_permission(self, host: str, now: float) -> None:
        if self._peers.take_permission(host, now):
            self._events.append(PeerPermitted(host))

    def _take_lifetime(self, response: Message, now: float) -> float:
        said = response.get(Lifetime)
        lifetime = float(self._lifetime if said is None else said.seconds)
        lifetime = min(max(lifetime, SHORTEST_LIFETIME), LONGEST_LIFETIME)
        self._refresh_due = now + max(lifetime - REFRESH_AHEAD, lifetime / 2)
        self._expires = now + lifetime
        return lifetime

    def _handle_refusal(self, outcome: Outcome, refusal: Refusal) -> None:
        """A request that came to nothing, for good."""
        if refusal.code == ErrorCode.TRY_ALTERNATE and outcome.method == TurnMethod.ALLOCATE:
            alternate = outcome.response.get(AlternateServer) if outcome.response else None
            if outcome.response is not None and alternate is not None:
                domain = outcome.response.get(AlternateDomain)
                self._end(refusal, Redirected(alternate.endpoint, domain.text if domain else None))
                return
        if outcome.subject is None or refusal.code in (None, TurnErrorCode.ALLOCATION_MISMATCH):
            self._end(refusal)
        elif isinstance(outcome.subject, Endpoint):
            # Without a channel indications do the same.
            self.dropped["channel refused"] += 1
            self._peers.drop_channel(outcome.subject)
        else:
            self._peers.drop_host(outcome.subject)
            self._events.append(PeerRefused(outcome.subject, refusal))

    def _end(self, refusal: Refusal | None, redirected: Redirected | None = None) -> None:
        self._ended = True
        self._requests.clear()
        self._events.append(redirected or Ended(None if self._closing else refusal))

    # --- time ----------------------------------------------------------------------------------

    def _note_sent(self, now: float) -> None:
        self._last_sent = now
        if self._sent_unanswered is None:
            self._sent_unanswered = now

    def _probe_due(self) -> float | None:
        """When silence gets suspicious; None while nothing was sent, or the server is being asked already."""
        if self._sent_unanswered is None or self._requests.is_asking(TurnMethod.REFRESH):
            return None
        return self._sent_unanswered + SUSPICIOUS_SILENCE

    def _keep_alive_due(self) -> float | None:
        if self._reliable or not self._allocated or self._closing:
            return None
        return self._last_sent + KEEP_ALIVE

    def _ask_what_is_due(self, now: float) -> None:
        if not self._allocated or self._closing or self._ended:
            return
        due = [moment for moment in (self._refresh_due, self._probe_due()) if moment is not None]
        if due and now >= min(due) and not self._requests.is_asking(TurnMethod.REFRESH):
            self._refresh_due = None
            self._requests.ask(TurnMethod.REFRESH, (Lifetime(self._lifetime),), None, now)
        for peer, channel in self._peers.channels.items():
            if _is_due(channel, now):
                channel.due = None
                attributes = (ChannelNumber(channel.number), XorPeerAddress(peer))
                self._requests.ask(TurnMethod.CHANNEL_BIND, attributes, peer, now)
        for host, permission in self._peers.permissions.items():
            if _is_due(permission, now):
                permission.due = None
                self._requests.ask(
                    TurnMethod.CREATE_PERMISSION, (XorPeerAddress(Endpoint(host, 0)),), host, now
                )


def _is_due(entry: Channel | Permission, now: float) -> bool:
    return entry.due is not None and now >= entry.due
