"""A node's session with its broker, without I/O: datagrams and `now` in, datagrams and events out.

    KeyRequest -> KeyReply                     only where the broker's key is unknown
    Hello -> Challenge -> Hello(cookie) -> Welcome
    request -> answer, retransmitted; Deliver at any time
    short keep-alive -> its answer; where none comes, KeepAlive -> KeepAliveAck

A Challenge inside a session says that the broker knows it no more (it was restarted, or our NAT gave us
another address): the machine says hello with that cookie and registers again, one round trip in all.
Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from hmac import compare_digest

from msgspec import structs

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker import events
from ntcpsock._traversal.broker.fields import INSTANCE_LENGTH, MIN_TTL, NO_SESSION, RelayPlace
from ntcpsock._traversal.broker.frame import KEY_REPLY, Sealer
from ntcpsock._traversal.broker.handshake import Handshake
from ntcpsock._traversal.broker.inbox import Inbox
from ntcpsock._traversal.broker.keep_alives import KeepAlives, patience
from ntcpsock._traversal.broker.message import (
    AskTurn,
    BrokerEnvelope,
    Bye,
    Challenge,
    Deliver,
    FromBroker,
    FromNode,
    Introduce,
    KeepAlive,
    KeepAliveAck,
    Lookup,
    Proved,
    Reason,
    Refused,
    Register,
    Reply,
    Spoof,
    Welcome,
)
from ntcpsock._traversal.broker.move import Move
from ntcpsock._traversal.broker.operation import OfferRelay, Outcome, WithdrawRelay
from ntcpsock._traversal.broker.outbox import Outbox, check_message
from ntcpsock._traversal.broker.proofs import Proofs
from ntcpsock._traversal.broker.registration import KeptRegistration
from ntcpsock._traversal.broker.requests import PendingRequests, Request, is_answer
from ntcpsock._traversal.broker.round_trip import INITIAL_RTO, RoundTrip
from ntcpsock._traversal.broker.short_keep_alive import SHORT_ACK, number_of_untrusted

#: Seconds after which a request without answer has failed.
REQUEST_TIMEOUT = 5.0


class _State(Enum):
    IDLE = auto()
    #: Or waiting for a KeyReply, or for the driver's word on the key.
    GREETING = auto()
    CONNECTED = auto()
    CLOSED = auto()


class ClientMachine:
    """One instance of a node at one broker; `instance` is random. hidden: the broker tells nobody where it is."""

    def __init__(
        self,
        sealer: Sealer,
        broker_key: bytes | None,
        *,
        keep_alive_interval: float = 20.0,
        request_timeout: float = REQUEST_TIMEOUT,
        ttl: int = MIN_TTL,
        hidden: bool = False,
        token: str | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._request_timeout = request_timeout
        self.ttl = ttl
        self.instance = random_bytes(INSTANCE_LENGTH)
        self.hidden = hidden
        #: Our public key.
        self.own_key = sealer.public_key
        self.welcome: Welcome | None = None
        #: Those that the broker has told last, and which list that is.
        self.relays: tuple[RelayPlace, ...] = ()
        self._relays_edition = 0
        self._state = _State.IDLE
        self._inbox = Inbox(sealer)
        self._outbox = Outbox(sealer, random_bytes)
        self._proofs = Proofs(self._outbox, keep_alive_interval)
        self._move = Move(self._outbox)
        self._events: list[events.Event] = []
        self._requests = PendingRequests()
        self._round_trip = RoundTrip()
        self._registration = KeptRegistration()
        self._keep_alives = KeepAlives(keep_alive_interval)
        self._handshake = Handshake(
            self._inbox,
            self._outbox,
            self._round_trip,
            broker_key,
            self.own_key,
            self.instance,
            hidden=hidden,
            token=token,
            random_bytes=random_bytes,
        )

    def keep_alive_every(self, interval: float, ttl: int, now: float) -> None:
        """Another interval, in seconds, from now on. `ttl` is told with the next registration."""
        self._keep_alives.interval = interval
        self.ttl = ttl
        if self._state is _State.CONNECTED:
            self._keep_alives.restart(now)

    # The five verbs.

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take a datagram from the broker's address. Whatever is wrong with it is counted, never raised."""
        try:
            if data[:1] == bytes((KEY_REPLY,)):
                told = self._handshake.receive_key_reply(data)
                if told is not None:
                    self._events.append(told)
            elif data[:1] == bytes((SHORT_ACK,)):
                self._receive_short_ack(data, now)
            else:
                self._receive(self._inbox.open(data, self.broker_key), now)
        except BadMessage as error:
            self._inbox.drop(error.args[0])

    def handle_timer(self, now: float) -> None:
        """Do what is due; harmless when called early."""
        self._handshake.send_due(now)
        for number, request in self._requests.take_expired(now):
            self._give_up(number, request, now)
        for number, request in self._requests.due(now):
            self._transmit(number, request, now)
        if self._state is _State.CONNECTED and now >= self._keep_alives.due:
            # Set anew by each answer; one that waits for its own goes on until it fails.
            self._keep_alives.restart(now)
            if self._keep_alives.request not in self._requests:
                self._keep_alive(now, short=True)
            if (postponed := self._registration.take_postponed()) is not None:
                self._registration.request = self._request(postponed, now)
        if self._state is _State.CONNECTED and self.broker_key is not None:
            self._proofs.send_due(self.broker_key, now)
            self._move.send_due(self.broker_key, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called next, or None."""
        times = [self._requests.next_timer(), self._handshake.next_timer()]
        if self._state is _State.CONNECTED:
            times += [self._keep_alives.due, self._proofs.next_timer(), self._move.next_timer()]
        return min((time for time in times if time is not None), default=None)

    def datagrams_to_send(self) -> list[bytes]:
        """What is to be sent to the broker, once."""
        return self._outbox.take()

    def proofs_to_send(self) -> list[tuple[int, bytes]]:
        """What is to be sent to the broker from further addresses, by their numbers; once."""
        return self._proofs.take()

    def moves_to_send(self) -> list[bytes]:
        """What is to be sent on the other way of `try_way`, once."""
        return self._move.take()

    def events(self) -> list[events.Event]:
        """What has happened since the last call."""
        happened, self._events = self._events, []
        return happened

    # What is known.

    @property
    def broker_key(self) -> bytes | None:
        """None until `accept_key`, where it was not known at the beginning."""
        return self._handshake.broker_key

    @property
    def rejection(self) -> Reason | None:
        """Why the broker gives us no session, as it said last; None: it does, or has not answered."""
        return self._handshake.rejection

    @property
    def rtt(self) -> float:
        """Seconds of the latest measured round trip; 0.0 before the first."""
        return self._round_trip.seconds

    @property
    def dropped(self) -> Counter[str]:
        """Datagrams that were not taken, by reason."""
        return self._inbox.dropped

    @property
    def connected(self) -> bool:
        """Whether a session is open."""
        return self._state is _State.CONNECTED

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._state is _State.CLOSED

    @property
    def is_lazy(self) -> bool:
        """Whether no keep-alives are sent."""
        return self._keep_alives.is_lazy

    # Commands.

    def start(self, now: float) -> None:
        """Begin to greet, or to ask for the key."""
        self._begin_greeting(now)

    def greet_again(self, now: float) -> None:
        """The way to the broker is another one: to it we may be a stranger there."""
        if self._state is _State.CLOSED:
            return
        if self._state is _State.CONNECTED:
            self._events.append(events.Disconnected(silent=False))
        self._begin_greeting(now)

    def doubt(self, now: float) -> None:
        """The network says that the broker is not there. Anybody can forge that, and may go on to: so the broker is
        asked once, and has as long as with `probe`, however often it is said."""
        if self._state is not _State.CONNECTED:
            return
        pending = self._requests.get(self._keep_alives.request)
        if pending is None:
            self._keep_alive(now)
        else:
            pending.deadline = min(pending.deadline, now + patience(self.rtt))

    def probe(self, now: float) -> None:
        """Doubt the way to the broker: ask there at once, and greet at once where that goes on already. A broker that
        sees us elsewhere challenges; where none answers for a moment, Disconnected follows."""
        if self._state is _State.GREETING:
            self._begin_greeting(now)
        elif self._state is _State.CONNECTED:
            self._requests.remove(self._keep_alives.request)
            self._keep_alive(now)
            self._keep_alives.restart(now)

    def accept_key(self, key: bytes, now: float) -> None:
        """Go on with the key that KeyShown told."""
        if self._state is _State.GREETING and self.broker_key is None:
            self._handshake.broker_key = key
            self._begin_greeting(now)

    def register(self, registration: Register, now: float) -> int:
        """Ask for a registration, and keep it over every new session. Returns the request's number.

        Raises BadMessage where it does not fit into one datagram.
        """
        registration = structs.replace(registration, token=self._handshake.token_proof)
        self._check(registration)
        self._requests.remove(self._registration.request)
        self._registration.wish(registration)
        self._registration.request = self._request(registration, now)
        return self._registration.request

    def request(
        self, body: Lookup | Introduce | Spoof | AskTurn | OfferRelay | WithdrawRelay, now: float
    ) -> int:
        """Ask; exactly one Answered or TimedOut with the returned number follows, unless cancelled.

        Raises BadMessage where a field is out of bounds.
        """
        self._check(body)
        return self._request(body, now)

    def cancel(self, number: int) -> None:
        """Stop to retransmit a request; no event comes for it."""
        self._requests.remove(number)

    def reply(self, body: Reply | Outcome) -> bool:
        """Send what gets no acknowledgement, once. False: no session, so it was not sent.

        Raises BadMessage where a field is out of bounds.
        """
        self._check(body)
        if self._state is not _State.CONNECTED:
            return False
        number = self._outbox.new_number()
        self._requests.sent_unanswered(number)
        self._send(number, body)
        return True

    def prove(self, count: int, now: float) -> None:
        """Prove so many further addresses, numbered from 0, from now on and in every new session."""
        self._proofs.set_count(count, now)

    def try_way(self, now: float) -> None:
        """Say hello on another way than the one in use, a few times. Moved follows where the broker welcomes us there;
        nothing does where it does not answer, or where the session ends meanwhile."""
        if self._state is _State.CONNECTED and self.broker_key is not None:
            self._move.begin(self.broker_key, self._handshake.hello(), self._round_trip.rto, now)

    def leave_way(self, now: float) -> None:
        """No more of `try_way`: the way in use stays the one."""
        is_half_way = self._move.is_half_way
        self._move.end()
        if is_half_way:
            self.greet_again(now)

    def close(self) -> None:
        """Say Bye, once; after this the machine is silent."""
        if self._state is _State.CONNECTED:
            self._send(self._outbox.new_number(), Bye())
        self._state = _State.CLOSED
        self._handshake.end()
        self._move.end()
        self._requests.clear()

    # Sending.

    def _send(self, number: int, body: FromNode) -> None:
        assert self.broker_key is not None
        self._outbox.seal(self.broker_key, number, body)

    def _check(self, body: FromNode) -> None:
        check_message(body)
        if self._requests.full:
            raise BadMessage("too many requests wait for an answer")

    def _keep_alive(self, now: float, *, short: bool = False) -> None:
        """short: the way is not in doubt. Where it is, the broker may have to challenge us."""
        timeout = min(patience(self.rtt), self._request_timeout)
        self._keep_alives.request = self._request(KeepAlive(self._relays_edition), now, timeout, short=short)

    def _request(
        self, body: FromNode, now: float, timeout: float | None = None, *, short: bool = False
    ) -> int:
        number = self._outbox.new_number()
        deadline = now + (self._request_timeout if timeout is None else timeout)
        request = Request(body, deadline, self._round_trip.rto, short=short)
        self._requests.add(number, request)
        if self._state is _State.CONNECTED:
            self._transmit(number, request, now)
        return number

    def _transmit(self, number: int, request: Request, now: float) -> None:
        self._requests.transmitted(request, now)
        if request.short and request.transmissions == 1:
            assert self.broker_key is not None
            request.short_ack = self._outbox.keep_alive(self.broker_key, number, self._relays_edition)
        else:
            self._send(number, request.body)

    def _give_up(self, number: int, request: Request, now: float) -> None:
        if not isinstance(request.body, KeepAlive):
            self._events.append(events.TimedOut(number))
        if self._state is _State.CONNECTED and request.transmissions > 1:
            self._events.append(events.Disconnected(silent=True))
            self._begin_greeting(now)

    def _begin_greeting(self, now: float, cookie: bytes = b"") -> None:
        self._state = _State.GREETING
        self._move.end()
        self._requests.remove(self._keep_alives.request)
        self._requests.hold()
        self._handshake.begin(now, cookie, max(self._keep_alives.interval, INITIAL_RTO))

    # Receiving.

    def _receive(self, envelope: BrokerEnvelope, now: float) -> None:
        if isinstance(envelope.body, Challenge):
            self._receive_challenge(envelope.request, envelope.body, now)
        elif isinstance(envelope.body, Refused) and envelope.session == NO_SESSION:
            rejected = self._handshake.receive_rejection(envelope.request, envelope.body.reason, now)
            self._events.append(rejected)
        elif isinstance(envelope.body, Welcome):
            self._receive_welcome(envelope, envelope.body, now)
        else:
            self._receive_in_session(envelope, now)

    def _receive_short_ack(self, data: bytes, now: float) -> None:
        number = number_of_untrusted(data)
        request = self._requests.get(number)
        if request is None or not compare_digest(data, request.short_ack):
            raise BadMessage("answer to nothing")
        self._receive_answer(number, KeepAliveAck(), now)

    def _receive_challenge(self, number: int, challenge: Challenge, now: float) -> None:
        key = self.broker_key if self._state is _State.CONNECTED else None
        if key is not None and (
            self._proofs.challenged(number, challenge.cookie, key, now)
            or self._move.challenged(number, challenge.cookie, key, now)
        ):
            return
        if self._handshake.is_under_way:
            self._handshake.receive_challenge(number, challenge.cookie, now)
        elif self._state is _State.CONNECTED and self._requests.may_be_challenged(number):
            self._events.append(events.Disconnected(silent=False))
            self._begin_greeting(now, challenge.cookie)
        else:
            self._inbox.drop("challenge to nothing")

    def _receive_welcome(self, envelope: BrokerEnvelope, welcome: Welcome, now: float) -> None:
        moved = self._move.welcomed(envelope.request)
        sent = self._handshake.answered(envelope.request) if self._handshake.is_under_way else moved
        if sent is None:
            self._inbox.drop("welcome to no hello")
            return
        is_same = self._outbox.session == welcome.session
        if not self._inbox.accept_welcome(envelope, welcome):
            return
        self._round_trip.measure(now - sent)
        self._handshake.rejection = None
        self.welcome = welcome
        self._take_relays(welcome.relays, welcome.relays_edition)
        if moved is not None:
            self._events.append(events.Moved())
            if is_same:
                self._keep_alives.restart(now)
                return
            # The broker had forgotten us meanwhile, so the session is a new one.
        self._outbox.session = welcome.session
        kept = self._registration
        if kept.wanted is not None and kept.request not in self._requests:
            kept.request = self._request(kept.wanted, now)
        self._state = _State.CONNECTED
        self._handshake.end()
        self._keep_alives.restart(now)
        self._proofs.restart(now)
        self._events.append(events.Connected(welcome))
        for number, request in self._requests.restart(self._round_trip.rto):
            self._transmit(number, request, now)

    def _take_relays(self, relays: tuple[RelayPlace, ...], edition: int) -> None:
        changed = relays != self.relays
        self.relays, self._relays_edition = relays, edition
        if changed:
            self._events.append(events.RelaysChanged())

    def _receive_in_session(self, envelope: BrokerEnvelope, now: float) -> None:
        if self._state is not _State.CONNECTED:
            self._inbox.drop("no session")
        elif self._inbox.accept(envelope):
            if isinstance(envelope.body, Deliver):
                self._events.append(events.Delivered(envelope.body))
            else:
                self._receive_answer(envelope.request, envelope.body, now)

    def _receive_answer(self, number: int, body: FromBroker, now: float) -> None:
        if isinstance(body, Proved):
            if not self._proofs.proved(number, now):
                self._inbox.drop("answer to nothing")
            return
        request = self._requests.get(number)
        if request is None or not is_answer(body, request.body):
            self._inbox.drop("answer to nothing")
            return
        self._requests.remove(number)
        if request.transmissions == 1:
            # Karn's rule: after a retransmission nobody knows which one was answered.
            self._round_trip.measure(now - request.first_sent)
        self._keep_alives.restart(now)
        if isinstance(body, KeepAliveAck):
            if body.relays is not None:
                self._take_relays(body.relays, body.relays_edition)
            return
        if isinstance(request.body, Register):
            lost = self._registration.settle(request.body, body)
            if lost is not None:
                self._events.append(events.RegistrationLost(lost.reason, lost.name))
        self._events.append(events.Answered(number, body))
