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
from dataclasses import dataclass
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
    OVERHEAD,
    Sealer,
    decode_key_reply_untrusted,
    encode_key_request,
)
from ntcpsock._traversal.broker.message import (
    INSTANCE_LENGTH,
    MAX_COUNTER,
    MAX_DATAGRAM,
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
    decode_from_node,
    encode_from_node,
)
from ntcpsock._traversal.broker.replay import ReplayWindow

#: Seconds before the first retransmission while no round trip has been measured; doubles each time.
INITIAL_RTO = 0.25
_MIN_RTO = 0.1
_MAX_RTO = 1.0
#: Greeting never ends: this is the longest pause between two tries.
_MAX_GREETING_PAUSE = 5.0
#: Seconds after which a request without answer has failed.
REQUEST_TIMEOUT = 5.0

# A Challenge is answered at once, but not for ever: a NAT with a new address for each packet, or an
# attacker on the path, would make us send at the speed of the link.
_MAX_PROMPT_HELLOS = 4
# Frames sent lately whose answer may still come.
_REMEMBERED_GREETINGS = 8
_REMEMBERED_SENDS = 64
_MAX_PENDING = 1024

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


@dataclass(slots=True)
class _Request:
    body: FromNode
    deadline: float
    pause: float
    #: When the next transmission is due; None until there is a session.
    due: float | None = None
    first_sent: float = 0.0
    transmissions: int = 0
    challenged: bool = False


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
        self._outgoing: list[bytes] = []
        self._events: list[Event] = []
        # Never goes back, whatever happens to the session: that alone makes every old frame a replay.
        self._counter = 0
        self._next_request = int.from_bytes(random_bytes(4), "big")
        self._window = ReplayWindow()
        self._requests: dict[int, _Request] = {}
        self._unanswered_sends: deque[int] = deque(maxlen=_REMEMBERED_SENDS)
        self._wanted: Register | None = None
        self._accepted: Register | None = None
        self._register_request: int | None = None
        self._keep_alive_due = 0.0
        # The state of a greeting.
        self._nonce = b""
        self._cookie = b""
        self._greetings: dict[int, float] = {}
        self._greeting_due: float | None = None
        self._greeting_pause = INITIAL_RTO
        self._greeting_tries = 0
        self._prompt_hellos = 0

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
            self.dropped[str(error)[:40]] += 1
            return
        if isinstance(envelope.body, Challenge):
            self._receive_challenge(envelope.request, envelope.body, now)
        elif isinstance(envelope.body, Welcome):
            self._receive_welcome(envelope, envelope.body, now)
        else:
            self._receive_in_session(envelope, now)

    def handle_timer(self, now: float) -> None:
        """Do what is due; harmless when called early."""
        if self._greeting_due is not None and now >= self._greeting_due:
            self._greet(now)
        for number, request in list(self._requests.items()):
            if now >= request.deadline:
                self._give_up(number, request, now)
            elif request.due is not None and now >= request.due:
                self._transmit(number, request, now)
        if self._state is _State.CONNECTED and now >= self._keep_alive_due:
            # Set anew by each answer; until then it must not fire again.
            self._keep_alive_due = now + self._keep_alive_interval
            self._request(KeepAlive(), now)

    def next_timer(self) -> float | None:
        """When `handle_timer` is to be called next, or None."""
        times = [request.deadline for request in self._requests.values()]
        times += [request.due for request in self._requests.values() if request.due is not None]
        if self._greeting_due is not None:
            times.append(self._greeting_due)
        if self._state is _State.CONNECTED:
            times.append(self._keep_alive_due)
        return min(times, default=None)

    def datagrams_to_send(self) -> list[bytes]:
        """What is to be sent to the broker, once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

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
        self._nonce = self._random_bytes(NONCE_LENGTH)
        self._state = _State.ASKING_KEY if self.broker_key is None else _State.GREETING
        self._greet(now)

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
        if self._register_request is not None:
            self._requests.pop(self._register_request, None)
        self._wanted = registration
        self._register_request = self._request(registration, now)
        return self._register_request

    def request(self, body: Lookup | Introduce, now: float) -> int:
        """Ask; exactly one Answered or TimedOut with the returned number follows, unless cancelled.

        Raises BadMessage where a field is out of bounds.
        """
        self._check(body)
        return self._request(body, now)

    def cancel(self, number: int) -> None:
        """Stop to retransmit a request; no event comes for it."""
        self._requests.pop(number, None)

    def reply(self, body: Reply) -> bool:
        """Send an answer to an offer, once. False: no session, so it was not sent.

        Raises BadMessage where a field is out of bounds.
        """
        self._check(body)
        if self._state is not _State.CONNECTED:
            return False
        number = self._new_number()
        self._unanswered_sends.append(number)
        self._send(number, body)
        return True

    def close(self) -> None:
        """Say Bye, once; after this the machine is silent."""
        if self._state is _State.CONNECTED:
            self._send(self._new_number(), Bye())
        self._state = _State.CLOSED
        self._greeting_due = None
        self._requests.clear()

    # Sending.

    def _send(self, number: int, body: FromNode) -> None:
        assert self.broker_key is not None
        self._counter += 1
        hello = isinstance(body, Hello)
        session = NO_SESSION if hello or self.welcome is None else self.welcome.session
        payload = encode_from_node(session, self._counter, number, body)
        try:
            self._outgoing.append(self._sealer.seal(self.broker_key, payload))
        except BadMessage as error:
            # A KeyReply may name a key that is none: then nobody is there to talk to.
            self.dropped[str(error)] += 1

    def _check(self, body: FromNode) -> None:
        payload = encode_from_node(NO_SESSION, MAX_COUNTER, 2**32 - 1, body)
        decode_from_node(payload)
        if len(payload) + OVERHEAD > MAX_DATAGRAM:
            raise BadMessage(f"does not fit into one datagram: {len(payload) + OVERHEAD} bytes")
        if len(self._requests) >= _MAX_PENDING:
            raise BadMessage("too many requests wait for an answer")

    def _new_number(self) -> int:
        # 0 means "answers nothing".
        self._next_request = self._next_request % (2**32 - 1) + 1
        return self._next_request

    def _request(self, body: FromNode, now: float) -> int:
        number = self._new_number()
        request = _Request(body, deadline=now + self._request_timeout, pause=self._rto())
        self._requests[number] = request
        if self._state is _State.CONNECTED:
            self._transmit(number, request, now)
        return number

    def _transmit(self, number: int, request: _Request, now: float) -> None:
        if request.transmissions == 0:
            request.first_sent = now
        else:
            request.pause *= 2
        request.transmissions += 1
        request.due = now + request.pause
        self._send(number, request.body)

    def _rto(self) -> float:
        if not self.rtt:
            return INITIAL_RTO
        return min(_MAX_RTO, max(_MIN_RTO, 2 * self.rtt + 0.05))

    def _give_up(self, number: int, request: _Request, now: float) -> None:
        del self._requests[number]
        # A re-registration and a keep-alive are the machine's own: nobody waits for them.
        if not isinstance(request.body, KeepAlive):
            self._events.append(TimedOut(number))
        if self._state is _State.CONNECTED and request.transmissions > 1:
            self._events.append(Disconnected(silent=True))
            self._begin_greeting(now)

    # Greeting.

    def _begin_greeting(self, now: float, cookie: bytes = b"") -> None:
        self._state = _State.GREETING
        self._cookie = cookie
        self._nonce = self._random_bytes(NONCE_LENGTH)
        self._greetings.clear()
        self._greeting_pause = self._rto()
        self._greeting_tries = 0
        self._prompt_hellos = 0
        for request in self._requests.values():
            request.due = None
        self._greet(now)

    def _greet(self, now: float) -> None:
        if self._state is _State.ASKING_KEY:
            self._outgoing.append(encode_key_request(self._nonce))
        else:
            self._hello(now)
            if self._greeting_tries >= 1:
                # Either datagrams are lost, or the broker has another key and cannot open ours.
                self._outgoing.append(encode_key_request(self._nonce))
        if self._greeting_tries:
            self._greeting_pause = min(
                self._greeting_pause * 2, _MAX_GREETING_PAUSE, max(self._keep_alive_interval, _MIN_RTO)
            )
        self._greeting_tries += 1
        self._greeting_due = now + self._greeting_pause

    def _hello(self, now: float) -> None:
        # A number for each try: the answer tells which one it answers, so it measures the round trip.
        number = self._new_number()
        self._greetings[number] = now
        if len(self._greetings) > _REMEMBERED_GREETINGS:
            del self._greetings[next(iter(self._greetings))]
        self._send(number, Hello(self.instance, self._cookie))

    # Receiving.

    def _receive_key_reply(self, data: bytes) -> None:
        nonce, key = decode_key_reply_untrusted(data)
        if nonce != self._nonce:
            raise BadMessage("key reply to no question")
        if self._state is _State.ASKING_KEY and self._greeting_due is not None:
            # The driver looks into its pins now; asking again would not help.
            self._greeting_due = None
            self._events.append(KeyShown(key))
        elif self._state is _State.GREETING and key != self.broker_key:
            self._events.append(WrongKeyShown(key))

    def _receive_challenge(self, number: int, challenge: Challenge, now: float) -> None:
        if self._state is _State.GREETING:
            sent = self._greetings.pop(number, None)
            if sent is None:
                self.dropped["challenge to no hello"] += 1
                return
            self._measure(now - sent)
            self._cookie = challenge.cookie
            if self._prompt_hellos < _MAX_PROMPT_HELLOS:
                self._prompt_hellos += 1
                self._hello(now)
                self._greeting_pause = self._rto()
                self._greeting_due = now + self._greeting_pause
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
        sent = self._greetings.pop(envelope.request, None) if self._state is _State.GREETING else None
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
        self._greetings.clear()
        self._greeting_due = None
        self._keep_alive_due = now + self._keep_alive_interval
        self._events.append(Connected(welcome))
        if self._wanted is not None and self._register_request not in self._requests:
            self._register_request = self._new_number()
            self._requests[self._register_request] = _Request(
                self._wanted, now + self._request_timeout, self._rto()
            )
        for number, request in self._requests.items():
            request.transmissions = 0
            request.pause = self._rto()
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
        del self._requests[number]
        if request.transmissions == 1:
            # Karn's rule: after a retransmission nobody knows which one was answered.
            self._measure(now - request.first_sent)
        self._keep_alive_due = now + self._keep_alive_interval
        if isinstance(request.body, KeepAlive):
            return
        if isinstance(request.body, Register):
            self._settle_registration(request.body, body)
        self._events.append(Answered(number, body))

    def _settle_registration(self, registration: Register, body: FromBroker) -> None:
        if isinstance(body, Registered):
            self._accepted = registration
        elif isinstance(body, Refused):
            if registration == self._accepted:
                self._accepted = None
                self._events.append(RegistrationLost(body.reason, body.name))
            self._wanted = self._accepted

    def _measure(self, seconds: float) -> None:
        # A clock that stands still (tests) would make 0.0, which means "not measured".
        self.rtt = max(seconds, 1e-6)
