"""One broker's part in a cluster, without I/O: what it asks of the store, whom it waits for, what others tell it.

    the core asks -> a command for the driver, and a place in the table of those who wait
    the driver's answer, another broker's message, or the deadline -> what was to be done then

Names are read from the replica, which has all of them; the store decides who gets a new one. While it is away nobody
gets one: two brokers could give it to two keys. Whatever is known stays so, and a changed policy is told later.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from ntcpsock._errors import BadMessage, ConfigurationError
from ntcpsock._servers.cluster.commands import (
    Claim,
    Command,
    Decree,
    Fetch,
    Forward,
    Place,
    Send,
    instance_mark,
    port_mark,
)
from ntcpsock._servers.cluster.message import (
    MAX_MESSAGE,
    Absent,
    Answer,
    Message,
    Met,
    Moved,
    Offer,
    decode_untrusted,
    encode,
)
from ntcpsock._servers.cluster.replica import NameReplica
from ntcpsock._servers.cluster.rows import Change
from ntcpsock._servers.names import Claim as Outcome
from ntcpsock._servers.names import NameRecord
from ntcpsock._servers.sources import Datagram
from ntcpsock._traversal.broker.frame import Sealer

#: Requests that wait for the store or for another broker at once. One more is answered as if the store were away.
MAX_WAITING: Final = 20_000
#: Seconds for which they do. Nodes ask again after less.
PATIENCE: Final = 3.0
#: Dialers at other brokers to whom answers may go, the latest; and names whose policy the store does not know yet.
MAX_DIALERS: Final = 65_536
MAX_UNTOLD: Final = 65_536
_MAX_SENDS: Final = 20_000

Settle = Callable[[Outcome, str | None, float], list[Datagram]]
FoundName = Callable[[NameRecord | None, float], list[Datagram]]
Introduce = Callable[[Met | None, float], list[Datagram]]
Known = Callable[[float], list[Datagram]]


class State(Enum):
    """Of the store, as seen from here."""

    AWAY = "away"
    #: It is there, and is being told what it may have forgotten; and we what we have missed.
    SYNCING = "syncing"
    READY = "ready"


class Local(Protocol):
    """What the broker does for nodes of others."""

    def deliver_offer(self, offer: Offer, now: float) -> tuple[Met | Absent, list[Datagram]]:
        """To an instance here."""
        ...

    def deliver_answer(self, answer: Answer, now: float) -> list[Datagram]:
        """To an instance here."""
        ...

    def forget_instance(self, key: bytes, instance: bytes, now: float) -> bool:
        """It is with another broker now. Whether it was here."""
        ...

    def marks_here(self, key: bytes, now: float) -> tuple[bytes, ...] | None:
        """Of the registered instances of a key; None where there are none."""
        ...


@dataclass(slots=True)
class _Waiting:
    deadline: float
    #: What to do where nobody answers.
    fail: Callable[[float], list[Datagram]]
    claim: Settle | None = None
    fetch: FoundName | None = None
    forward: Introduce | None = None
    place: Known | None = None
    key: bytes = b""
    names: tuple[str, ...] = ()
    allow: bytes | None = None


class ClusterMachine:
    """broker: eight random bytes, new with each start. `notify` is called when there are new commands."""

    def __init__(self, broker: bytes, sealer: Sealer, names: NameReplica) -> None:
        self.broker = broker
        self.names = names
        names.decree = self._decree
        self.state = State.AWAY
        self.notify: Callable[[], None] = _nothing
        #: What was done, and what was not, by reason.
        self.counters: Counter[str] = Counter()
        self._sealer = sealer
        self._local: Local | None = None
        self._numbers = itertools.count(1)
        # In the order of their deadlines.
        self._waiting: dict[int, _Waiting] = {}
        self._asked: deque[Command] = deque()
        self._sends: deque[Send] = deque(maxlen=_MAX_SENDS)
        # One entry a key: the latest is all that counts.
        self._places: dict[bytes, Place] = {}
        self._dialers: dict[tuple[bytes, bytes], bytes] = {}
        self._untold: dict[str, tuple[bytes, bytes | None]] = {}

    def serve(self, local: Local) -> None:
        """The broker that this is part of."""
        self._local = local

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    # For the core.

    def claim(
        self, names: tuple[str, ...], key: bytes, allow: bytes | None, settle: Settle, now: float
    ) -> list[Datagram]:
        """Bind all of `names` to `key`, or none; `settle` is told, now or later. Raises sqlite3.Error."""
        records = [self.names.get(name) for name in names]
        for record in records:
            if record is not None and record.key != key:
                return settle("taken", record.name, now)
        unknown = next((name for name, record in zip(names, records, strict=True) if record is None), None)
        if unknown is None and all(record is not None and record.allow == allow for record in records):
            return settle("kept", None, now)
        if self.state is not State.AWAY and len(self._waiting) < MAX_WAITING:

            def fail(now: float) -> list[Datagram]:
                return settle("away", names[0], now)

            waiting = _Waiting(now + PATIENCE, fail, claim=settle, key=key, names=names, allow=allow)
            self._ask(Claim(self._wait(waiting), names, key, allow))
            return []
        if unknown is not None or len(self._untold) >= MAX_UNTOLD:
            self.counters["name not claimed: store away"] += 1
            return settle("away", unknown or names[0], now)
        outcome, name = self.names.claim(names, key, allow)
        if outcome == "kept":
            self._untold.update(dict.fromkeys(names, (key, allow)))
        return settle(outcome, name, now)

    def find(self, name: str, found: FoundName, now: float) -> list[Datagram]:
        """A name that the replica has not: it may be a moment old. `found` is told."""
        if self.state is not State.READY or len(self._waiting) >= MAX_WAITING:
            return found(None, now)
        waiting = _Waiting(now + PATIENCE, lambda now: found(None, now), fetch=found)
        self._ask(Fetch(self._wait(waiting), name))
        return []

    def forward(self, offer: Offer, met: Introduce, now: float) -> list[Datagram]:
        """Have another broker deliver it; `met` is told whom it found. Its number and origin are filled in here."""
        if self.state is not State.READY or len(self._waiting) >= MAX_WAITING:
            return met(None, now)
        number = self._wait(_Waiting(now + PATIENCE, lambda now: met(None, now), forward=met))
        frame = self._seal(
            Offer(
                self.broker,
                number,
                offer.to,
                offer.port,
                offer.exact,
                offer.sender,
                offer.sender_instance,
                offer.sealed,
                offer.instance,
                offer.observed_host,
                offer.also_observed,
            )
        )
        mark = port_mark(offer.port) if offer.instance is None else instance_mark(offer.instance)
        exact = offer.exact or offer.instance is not None
        self._ask(Forward(number, offer.to, mark, exact, frame))
        return []

    def answer(self, answer: Answer) -> bool:
        """Have an answer delivered to a dialer whose offer came from another broker. False: from none that we know."""
        broker = self._dialers.get((answer.to, answer.instance))
        if broker is None or self.state is not State.READY:
            return False
        self.counters["answers forwarded"] += 1
        self._send(broker, answer)
        return True

    def registered(self, key: bytes, instance: bytes, known: Known, now: float) -> list[Datagram]:
        """An instance of `key` is here, or offers something else now. `known` is told when the others can know it, or
        cannot: whoever hears that he is registered can be met."""
        if self.state is State.AWAY or len(self._waiting) >= MAX_WAITING:
            self._tell_place(key, now, self._seal(Moved(self.broker, key, instance)))
            return known(now)
        number = self._wait(_Waiting(now + PATIENCE, known, place=known))
        self._tell_place(key, now, self._seal(Moved(self.broker, key, instance)), number)
        return []

    def left(self, key: bytes, now: float) -> None:
        """An instance of `key` has gone from here."""
        self._tell_place(key, now)

    def expire(self, now: float) -> list[Datagram]:
        """Answer those who have waited for too long."""
        datagrams: list[Datagram] = []
        while self._waiting:
            number = next(iter(self._waiting))
            if self._waiting[number].deadline > now:
                break
            self.counters["no answer in time"] += 1
            datagrams += self._waiting.pop(number).fail(now)
        return datagrams

    def _decree(self, name: str, key: bytes | None) -> None:
        if self.state is not State.READY:
            raise ConfigurationError(
                "the store is away, and names are decided there: try again when it is back"
            )
        self._ask(Decree(name, key))

    # For the driver.

    def take(self, count: int) -> list[Command]:
        """Up to so many commands, once; what somebody waits for comes first."""
        commands: list[Command] = []
        while self._asked and len(commands) < count:
            commands.append(self._asked.popleft())
        while self._sends and len(commands) < count:
            commands.append(self._sends.popleft())
        return commands

    def take_places(self, count: int) -> list[Place]:
        """Up to so many places, once; in the order in which they are to be told."""
        return [self._places.pop(key) for key in list(itertools.islice(self._places, count))]

    @property
    def has_commands(self) -> bool:
        """Whether `take` has something."""
        return bool(self._asked or self._sends)

    @property
    def has_places(self) -> bool:
        """Whether `take_places` has something."""
        return bool(self._places)

    def retell(self, keys: Iterable[bytes], now: float) -> None:
        """Say again where these are: the store may have forgotten."""
        for key in keys:
            self._tell_place(key, now)

    def away(self, now: float) -> list[Datagram]:
        """The store does not answer: nor will those who wait for it hear of it."""
        self.state = State.AWAY
        self._asked.clear()
        self._sends.clear()
        self._places.clear()
        datagrams: list[Datagram] = []
        while self._waiting:
            datagrams += self._waiting.pop(next(iter(self._waiting))).fail(now)
        return datagrams

    def untold(self) -> list[tuple[str, bytes, bytes | None]]:
        """Names whose policy was changed while the store was away."""
        return [(name, key, allow) for name, (key, allow) in self._untold.items()]

    def told(self, name: str) -> None:
        """The store knows."""
        self._untold.pop(name, None)

    def claimed(
        self, number: int, outcome: Outcome, name: str | None, changes: Sequence[Change], now: float
    ) -> list[Datagram]:
        """The store's answer to a Claim. changes: the names as they stand where somebody else has one."""
        waiting = self._waiting.pop(number, None)
        self.names.apply(changes)
        if waiting is None or waiting.claim is None:
            return []
        if outcome == "kept":
            rows = (NameRecord(each, waiting.key, waiting.allow) for each in waiting.names)
            self.names.apply(Change(0, row.name, row) for row in rows)
        self.counters["claims"] += 1
        return waiting.claim(outcome, name, now)

    def fetched(self, number: int, record: NameRecord | None, now: float) -> list[Datagram]:
        """The store's answer to a Fetch."""
        waiting = self._waiting.pop(number, None)
        if record is not None:
            self.names.apply([Change(0, record.name, record)])
        if waiting is None or waiting.fetch is None:
            return []
        return waiting.fetch(record, now)

    def forwarded(self, number: int, reached: bool, now: float) -> list[Datagram]:
        """Whether anybody got what a Forward had sent. Who got it answers itself."""
        if reached:
            self.counters["offers forwarded"] += 1
            return []
        return self._resume(number, None, now)

    def placed(self, places: Iterable[Place], now: float) -> list[Datagram]:
        """The store knows of these."""
        datagrams: list[Datagram] = []
        for place in places:
            for number in place.numbers:
                waiting = self._waiting.pop(number, None)
                if waiting is not None and waiting.place is not None:
                    datagrams += waiting.place(now)
        return datagrams

    def failed(self, number: int, now: float) -> list[Datagram]:
        """The store could not do what was asked: it is full, perhaps."""
        waiting = self._waiting.pop(number, None)
        self.counters["store failed"] += 1
        return [] if waiting is None else waiting.fail(now)

    def receive(self, frame: bytes, now: float) -> list[Datagram]:
        """What arrived on our channel. Whatever is wrong with it is counted, never raised."""
        try:
            if len(frame) > MAX_MESSAGE:
                raise BadMessage("too long")
            sender, payload = self._sealer.open_untrusted(frame)
            if sender != self._sealer.public_key:
                raise BadMessage("no broker of ours")
            return self._receive(decode_untrusted(payload), now)
        except BadMessage as error:
            self.counters[f"dropped: {error.args[0]}"] += 1
            return []

    def _receive(self, message: Message, now: float) -> list[Datagram]:
        assert self._local is not None
        match message:
            case Offer():
                return self._offered(message, now)
            case Met():
                return self._resume(message.number, message, now)
            case Absent():
                return self._resume(message.number, None, now)
            case Answer():
                self.counters["answers delivered"] += 1
                return self._local.deliver_answer(message, now)
            case Moved():
                if self._local.forget_instance(message.key, message.instance, now):
                    self.counters["nodes moved"] += 1
                    self._tell_place(message.key, now)
                return []

    def _offered(self, offer: Offer, now: float) -> list[Datagram]:
        assert self._local is not None
        dialer = (offer.sender, offer.sender_instance)
        self._dialers.pop(dialer, None)
        self._dialers[dialer] = offer.origin
        if len(self._dialers) > MAX_DIALERS:
            del self._dialers[next(iter(self._dialers))]
        met, datagrams = self._local.deliver_offer(offer, now)
        self._send(offer.origin, met)
        if not isinstance(met, Absent):
            self.counters["offers delivered"] += 1
        elif self._local.marks_here(offer.to, now) is None:
            # It has been silent for too long: others need not ask us again.
            self._tell_place(offer.to, now)
        return datagrams

    def _resume(self, number: int, met: Met | None, now: float) -> list[Datagram]:
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.forward is None:
            return []
        return waiting.forward(met, now)

    # Both.

    def _wait(self, waiting: _Waiting) -> int:
        number = next(self._numbers)
        self._waiting[number] = waiting
        return number

    def _ask(self, command: Command) -> None:
        self._asked.append(command)
        self.notify()

    def _send(self, broker: bytes, message: Message) -> None:
        self._sends.append(Send(broker, self._seal(message)))
        self.notify()

    def _seal(self, message: Message) -> bytes:
        return self._sealer.seal(self._sealer.public_key, encode(message))

    def _tell_place(self, key: bytes, now: float, message: bytes = b"", number: int | None = None) -> None:
        if self.state is State.AWAY or self._local is None:
            return  # all of them are told when it is back
        before = self._places.get(key, Place(key, None, b""))
        numbers = before.numbers if number is None else (*before.numbers, number)
        marks = self._local.marks_here(key, now)
        self._places[key] = Place(key, marks, message or before.message, numbers)
        self.notify()


def _nothing() -> None:
    """Nobody waits for commands."""
