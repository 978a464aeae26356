"""The client's part of what comes before a session: the broker's key, Hellos, and what the broker says to them.

    KeyRequest -> KeyReply                     only where the broker's key is unknown
    Hello -> Challenge -> Hello(cookie)

When the next Hello is due, and which answer belongs to which of them, is known to `greeting.py`; what follows the
Welcome, to the machine.
"""

from __future__ import annotations

from collections.abc import Callable

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.events import KeyShown, Rejected, WrongKeyShown
from ntcpsock._traversal.broker.frame import NONCE_LENGTH, decode_key_reply_untrusted
from ntcpsock._traversal.broker.greeting import Greeting
from ntcpsock._traversal.broker.inbox import Inbox
from ntcpsock._traversal.broker.message import Hello, Reason
from ntcpsock._traversal.broker.outbox import Outbox
from ntcpsock._traversal.broker.round_trip import RoundTrip
from ntcpsock._traversal.broker.token import token_proof

#: Seconds before a broker that has refused us is asked again.
REJECTION_PAUSE = 30.0


class Handshake:
    """One greeting after the other; `begin` starts each, and `end` is for the Welcome.

    broker_key: None where it is not known yet; own_key: our public one.
    """

    def __init__(
        self,
        inbox: Inbox,
        outbox: Outbox,
        round_trip: RoundTrip,
        broker_key: bytes | None,
        own_key: bytes,
        instance: bytes,
        *,
        hidden: bool,
        token: str | None,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._round_trip = round_trip
        self.broker_key = broker_key
        self._own_key = own_key
        self._instance = instance
        self._hidden = hidden
        self._token = token
        self._random_bytes = random_bytes
        #: Why the broker gives us no session, as it said last; None: it does, or has not answered.
        self.rejection: Reason | None = None
        self._greeting: Greeting | None = None

    @property
    def is_under_way(self) -> bool:
        return self._greeting is not None

    @property
    def token_proof(self) -> bytes:
        """What proves to this broker that we have the token; empty where there is none, or no broker's key yet."""
        if self._token is None or self.broker_key is None:
            return b""
        return token_proof(self._token, self.broker_key, self._own_key)

    def hello(self, cookie: bytes = b"") -> Hello:
        """What we say of ourselves. cookie: of the Challenge that it answers."""
        return Hello(self._instance, cookie, self._hidden, self.token_proof)

    def begin(self, now: float, cookie: bytes, longest_pause: float) -> None:
        """Greet, or ask for the key first. cookie: of a Challenge that has come already; longest_pause: seconds between
        two tries, at most."""
        self._greeting = Greeting(
            self._random_bytes(NONCE_LENGTH),
            cookie=cookie,
            pause=self._round_trip.rto,
            longest_pause=longest_pause,
        )
        self._try(self._greeting, now)

    def end(self) -> None:
        """No more of it."""
        self._greeting = None

    def next_timer(self) -> float | None:
        """When `send_due` has something to do."""
        return None if self._greeting is None else self._greeting.due

    def send_due(self, now: float) -> None:
        """Repeat what has had no answer."""
        if self._greeting is not None and self._greeting.due is not None and now >= self._greeting.due:
            self._try(self._greeting, now)

    def receive_key_reply(self, data: bytes) -> KeyShown | WrongKeyShown | None:
        """What a KeyReply tells the driver, if anything. Raises BadMessage."""
        nonce, key = decode_key_reply_untrusted(data)
        greeting = self._greeting
        if greeting is None or nonce != greeting.nonce:
            raise BadMessage("key reply to no question")
        if self.broker_key is not None:
            return WrongKeyShown(key) if key != self.broker_key else None
        if greeting.due is None:
            return None
        # The driver looks into its pins now; asking again would not help.
        greeting.due = None
        return KeyShown(key)

    def receive_challenge(self, number: int, cookie: bytes, now: float) -> None:
        """Say hello with its cookie, now or at the next try. Raises BadMessage where it is to no Hello of ours."""
        greeting = self._greeting
        sent = None if greeting is None else greeting.answered(number)
        if greeting is None or sent is None:
            raise BadMessage("challenge to no hello")
        self._round_trip.measure(now - sent)
        if greeting.take_cookie(cookie, self._round_trip.rto, now):
            self._hello(greeting, now)

    def receive_rejection(self, number: int, reason: Reason, now: float) -> Rejected:
        """The broker gives us no session. Raises BadMessage where it answers no Hello of ours."""
        if self._greeting is None or self._greeting.answered(number) is None:
            raise BadMessage("refusal of no hello")
        # The operator may change his mind; nobody need be asked every few seconds for that.
        self._greeting.due = now + REJECTION_PAUSE
        self.rejection = reason
        return Rejected(reason)

    def answered(self, number: int) -> float | None:
        """When the Hello that this answers was sent; None for an answer to none of ours."""
        return None if self._greeting is None else self._greeting.answered(number)

    def _try(self, greeting: Greeting, now: float) -> None:
        if self.broker_key is not None:
            self._hello(greeting, now)
        if self.broker_key is None or greeting.tries:
            # Beside a second Hello: datagrams are lost, or the broker has another key and cannot open ours.
            self._outbox.ask_key(greeting.nonce)
        greeting.schedule(now)

    def _hello(self, greeting: Greeting, now: float) -> None:
        assert self.broker_key is not None
        number = self._outbox.new_number()
        greeting.sent(number, now)
        try:
            self._outbox.seal(self.broker_key, number, self.hello(greeting.cookie))
        except BadMessage as error:
            # A KeyReply may name a key that is none: then nobody is there to talk to.
            self._inbox.drop(error.args[0])
