"""A node's session with its broker, without I/O: datagrams and `now` in, datagrams and events out.

    KeyRequest -> KeyReply                     only where the broker's key is unknown
    Hello -> Challenge -> Hello(cookie) -> Welcome
    request -> answer, retransmitted; KeepAlive -> KeepAliveAck; Deliver at any time

A Challenge inside a session says that the broker knows it no more (it was restarted, or our NAT gave us
another address): the machine says hello with that cookie and registers again, one round trip in all.
Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum, auto

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.events import (
    Answered,
    Connected,
    Delivered,
    Disconnected,
    Event,
    KeyShown,
    RegistrationLost,
    TimedOut,
    WrongKeyShown,
)
from ntcpsock._traversal.broker.frame import (
    KEY_REPLY,
    NONCE_LENGTH,
    Sealer,
    decode_key_reply_untrusted,
)
from ntcpsock._traversal.broker.greeting import Greeting
from ntcpsock._traversal.broker.message import (
    INSTANCE_LENGTH,
    MIN_TTL,
    NO_SESSION,
    BrokerEnvelope,
    Bye,
    Challenge,
    Deliver,
    Found,
    FromBroker,
    FromNode,
    Hello,
    Introduce,
    Introduced,
    KeepAlive,
    KeepAliveAck,
    Lookup,
    Refused,
    Register,
    Registered,
    Reply,
    Unreachable,
    Welcome,
    decode_from_broker,
)
from ntcpsock._traversal.broker.outbox import Outbox, check_message
from ntcpsock._traversal.broker.registration import KeptRegistration
from ntcpsock._traversal.broker.replay import ReplayWindow
from ntcpsock._traversal.broker.requests import PendingRequests, Request

#: Seconds before the first retransmission while no round trip has been measured; doubles each time, up to a second.
INITIAL_RTO = 0.25
_MIN_RTO = 0.1
_MAX_RTO = 0.5
#: Seconds after which a request without answer has failed.
REQUEST_TIMEOUT = 5.0

# Of frames that get no answer; a Challenge may answer them all the same.
_REMEMBERED_SENDS = 64

_ANSWERS: dict[type[FromNode], tuple[type[FromBroker], ...]] = {
    Register: (Registered, Refused),
    Lookup: (Found, Unreachable),
    Introduce: (Introduced, Unreachable),
    KeepAlive: (KeepAliveAck,),
}


class _State(Enum):
    IDLE = auto()
    #: Waiting for a KeyReply, or for the driver's word on the key.
    ASKING_KEY = auto()
    GREETING = auto()
    CONNECTED = auto()
    CLOSED = auto()


class ClientMachine:
    """One instance of a node at one broker; `instance` is random."""

    def __init__(
        self,
        sealer: Sealer,
        broker_key: bytes | None,
        *,
        keep_alive_interval: float = 20.0,
        request_timeout: float = REQUEST_TIMEOUT,
        ttl: int = MIN_TTL,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._sealer = sealer
        self._random_bytes = random_bytes
        self._keep_alive_interval = keep_alive_interval
        self._request_timeout = request_timeout
        self.ttl = ttl
        self.broker_key = broker_key
        self.instance = random_bytes(INSTANCE_LENGTH)
        self.welcome: Welcome | None = None
        #: Seconds of the latest measured round trip; 0.0 before the first.
        self.rtt = 0.0
        #: Datagrams that were not taken, by reason.
        self.dropped: Counter[str] = Counter()
        self._state = _State.IDLE
        self._outbox = Outbox(sealer, random_bytes)
        self._events: list[Event] = []
        self._window = ReplayWindow()
        self._requests = PendingRequests()
        self._unanswered_sends: deque[int] = deque(maxlen=_REMEMBERED_SENDS)
        self._registration = KeptRegistration()
        self._keep_alive_request = 0
        self._keep_alive_due = 0.0
        self._greeting: Greeting | None = None

    # The five verbs.

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take a datagram from the broker's address. Whatever is wrong with it is counted, never raised."""
        try:
            if data[:1] == bytes((KEY_REPLY,)):
                self._receive_key_reply(data)
                return
            sender, payload = self._sealer.open_untrusted(data)
            if sender != self.broker_key:
                raise BadMessage("frame of another sender")
            envelope = decode_from_broker(payload)
        except BadMessage as error:
            self.dropped[error.args[0]] += 1
            return
        if isinstance(envelope.body, Challenge):
            self._receive_challenge(envelope.request, envelope.body, now)
        elif isinstance(envelope.body, Welcome):
            self._receive_welcome(envelope, envelope.body, now)
        else:
            self._receive_in_session(envelope, now)

    def handle_timer(self, now: float) -> None:
        """Do what is due; harmless when called early."""
        if self._greeting is not None and self._greeting.due is not None and now >= self._greeting.due:
            self._greet(self._greeting, now)
        for number, request in self._requests.take_expired(now):
            self._give_up(number, request, now)
        for number, request in self._requests.due(now):
            self._transmit(number, request, now)
        if self._state is _State.CONNECTED and now >= self._keep_alive_due:
            # Set anew by each answer; one that waits for its own goes on until it fails.
            self._keep_alive_due = now + self._keep_alive_interval
            if self._keep_alive_request not in self._requests:
                self._keep_alive_request = self._request(KeepAlive(), now)
            if self._registration.again_later and self._registration.wanted is not None:
                self._registration.again_later = False
                self._registration.request = self._request(self._registration.wanted, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called next, or None."""
        times = [self._requests.next_timer(), self._greeting.due if self._greeting is not None else None]
        if self._state is _State.CONNECTED:
            times.append(self._keep_alive_due)
        return min((time for time in times if time is not None), default=None)

    def datagrams_to_send(self) -> list[bytes]:
        """What is to be sent to the broker, once."""
        return self._outbox.take()

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        events, self._events = self._events, []
        return events

    # Commands.

    @property
    def connected(self) -> bool:
        """Whether a session is open."""
        return self._state is _State.CONNECTED

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._state is _State.CLOSED

    def start(self, now: float) -> None:
        """Begin to greet, or to ask for the key."""
        self._begin_greeting(now)

    def accept_key(self, key: bytes, now: float) -> None:
        """Go on with the key that KeyShown told."""
        if self._state is _State.ASKING_KEY:
            self.broker_key = key
            self._begin_greeting(now)

    def register(self, registration: Register, now: float) -> int:
        """Ask for a registration, and keep it over every new session. Returns the request's number.

        Raises BadMessage where it does not fit into one datagram.
        """
        self._check(registration)
        self._requests.remove(self._registration.request)
        self._registration.wish(registration)
        self._registration.request = self._request(registration, now)
        return self._registration.request

    def request(self, body: Lookup | Introduce, now: float) -> int:
        """Ask; exactly one Answered or TimedOut with the returned number follows, unless cancelled.

        Raises BadMessage where a field is out of bounds.
        """
        self._check(body)
        return self._request(body, now)

    def cancel(self, number: int) -> None:
        """Stop to retransmit a request; no event comes for it."""
        self._requests.remove(number)

    def reply(self, body: Reply) -> bool:
        """Send an answer to an offer, once. False: no session, so it was not sent.

        Raises BadMessage where a field is out of bounds.
        """
        self._check(body)
        if self._state is not _State.CONNECTED:
            return False
        number = self._outbox.new_number()
        self._unanswered_sends.append(number)
        self._send(number, body)
        return True

    def close(self) -> None:
        """Say Bye, once; after this the machine is silent."""
        if self._state is _State.CONNECTED:
            self._send(self._outbox.new_number(), Bye())
        self._state = _State.CLOSED
        self._greeting = None
        self._requests.clear()

    # Sending.

    def _send(self, number: int, body: FromNode) -> None:
        assert self.broker_key is not None
        hello = isinstance(body, Hello)
        session = NO_SESSION if hello or self.welcome is None else self.welcome.session
        try:
            self._outbox.seal(self.broker_key, session, number, body)
        except BadMessage as error:
            # A KeyReply may name a key that is none: then nobody is there to talk to.
            self.dropped[error.args[0]] += 1

    def _check(self, body: FromNode) -> None:
        check_message(body)
        if self._requests.full:
            raise BadMessage("too many requests wait for an answer")

    def _request(self, body: FromNode, now: float) -> int:
        number = self._outbox.new_number()
        request = Request(body, now + self._request_timeout, self._rto())
        self._requests.add(number, request)
        if self._state is _State.CONNECTED:
            self._transmit(number, request, now)
        return number

    def _transmit(self, number: int, request: Request, now: float) -> None:
        self._requests.transmitted(request, now)
        self._send(number, request.body)

    def _rto(self) -> float:
        if not self.rtt:
            return INITIAL_RTO
        return min(_MAX_RTO, max(_MIN_RTO, 2 * self.rtt + 0.05))

    def _give_up(self, number: int, request: Request, now: float) -> None:
        if not isinstance(request.body, KeepAlive):
            self._events.append(TimedOut(number))
        if self._state is _State.CONNECTED and request.transmissions > 1:
            self._events.append(Disconnected(silent=True))
            self._begin_greeting(now)

    # Greeting.

    def _begin_greeting(self, now: float, cookie: bytes = b"") -> None:
        self._state = _State.ASKING_KEY if self.broker_key is None else _State.GREETING
        self._requests.remove(self._keep_alive_request)
        self._requests.hold()
        self._greeting = Greeting(
            self._random_bytes(NONCE_LENGTH),
            cookie=cookie,
            pause=self._rto(),
            longest_pause=max(self._keep_alive_interval, INITIAL_RTO),
        )
        self._greet(self._greeting, now)

    def _greet(self, greeting: Greeting, now: float) -> None:
        if self._state is _State.GREETING:
            self._hello(greeting, now)
        if self._state is _State.ASKING_KEY or greeting.tries:
            # Beside a second Hello: datagrams are lost, or the broker has another key and cannot open ours.
            self._outbox.ask_key(greeting.nonce)
        greeting.schedule(now)

    def _hello(self, greeting: Greeting, now: float) -> None:
        number = self._outbox.new_number()
        greeting.sent(number, now)
        self._send(number, Hello(self.instance, greeting.cookie))

    # Receiving.

    def _receive_key_reply(self, data: bytes) -> None:
        nonce, key = decode_key_reply_untrusted(data)
        greeting = self._greeting
        if greeting is None or nonce != greeting.nonce:
            raise BadMessage("key reply to no question")
        if self._state is _State.ASKING_KEY and greeting.due is not None:
            # The driver looks into its pins now; asking again would not help.
            greeting.due = None
            self._events.append(KeyShown(key))
        elif self._state is _State.GREETING and key != self.broker_key:
            self._events.append(WrongKeyShown(key))

    def _receive_challenge(self, number: int, challenge: Challenge, now: float) -> None:
        greeting = self._greeting
        if greeting is not None:
            sent = greeting.answered(number)
            if sent is None:
                self.dropped["challenge to no hello"] += 1
                return
            self._measure(now - sent)
            if greeting.take_cookie(challenge.cookie, self._rto(), now):
                self._hello(greeting, now)
        elif self._state is _State.CONNECTED and self._may_be_challenged(number):
            self._events.append(Disconnected(silent=False))
            self._begin_greeting(now, challenge.cookie)
        else:
            self.dropped["challenge to nothing"] += 1

    def _may_be_challenged(self, number: int) -> bool:
        """Whether `number` was sent lately and not challenged before: an old Challenge is a replay."""
        request = self._requests.get(number)
        if request is not None:
            if request.challenged:
                return False
            request.challenged = True
            return True
        if number in self._unanswered_sends:
            self._unanswered_sends.remove(number)
            return True
        return False

    def _receive_welcome(self, envelope: BrokerEnvelope, welcome: Welcome, now: float) -> None:
        sent = None if self._greeting is None else self._greeting.answered(envelope.request)
        if sent is None:
            self.dropped["welcome to no hello"] += 1
            return
        if self.welcome is None or self.welcome.session != welcome.session:
            self._window = ReplayWindow()
        if not self._window.accept(envelope.counter):
            self.dropped["replay"] += 1
            return
        self._measure(now - sent)
        self.welcome = welcome
        self._state = _State.CONNECTED
        self._greeting = None
        self._keep_alive_due = now + self._keep_alive_interval
        self._events.append(Connected(welcome))
        kept = self._registration
        if kept.wanted is not None and kept.request not in self._requests:
            kept.request = self._outbox.new_number()
            request = Request(kept.wanted, now + self._request_timeout, self._rto())
            self._requests.add(kept.request, request)
        for number, request in self._requests.restart(self._rto()):
            self._transmit(number, request, now)

    def _receive_in_session(self, envelope: BrokerEnvelope, now: float) -> None:
        if self._state is not _State.CONNECTED or self.welcome is None:
            self.dropped["no session"] += 1
        elif envelope.session != self.welcome.session:
            self.dropped["other session"] += 1
        elif not self._window.accept(envelope.counter):
            self.dropped["replay"] += 1
        elif isinstance(envelope.body, Deliver):
            self._events.append(Delivered(envelope.body))
        else:
            self._receive_answer(envelope.request, envelope.body, now)

    def _receive_answer(self, number: int, body: FromBroker, now: float) -> None:
        request = self._requests.get(number)
        if request is None or not isinstance(body, _ANSWERS[type(request.body)]):
            self.dropped["answer to nothing"] += 1
            return
        self._requests.remove(number)
        if request.transmissions == 1:
            # Karn's rule: after a retransmission nobody knows which one was answered.
            self._measure(now - request.first_sent)
        self._keep_alive_due = now + self._keep_alive_interval
        if isinstance(request.body, KeepAlive):
            return
        if isinstance(request.body, Register):
            lost = self._registration.settle(request.body, body)
            if lost is not None:
                self._events.append(RegistrationLost(lost.reason, lost.name))
        self._events.append(Answered(number, body))

    def _measure(self, seconds: float) -> None:
        # A clock that stands still (tests) would make 0.0, which means "not measured".
        self.rtt = max(seconds, 1e-6)
