"""A session with the broker under trio: the machine on its link, its requests as awaitable calls."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ntcpsock._address import BrokerAddress, Endpoint, encode_node_id
from ntcpsock._errors import (
    BadMessage,
    BrokerRefused,
    BrokerUnreachable,
    ConfigurationError,
    IdentityMismatch,
    NameNotFound,
    PeerOffline,
)
from ntcpsock._identity import Identity
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.allow_list import encode_allow
from ntcpsock._traversal.broker.events import (
    Answered,
    Connected,
    Delivered,
    Delivery,
    Disconnected,
    Event,
    Introduction,
    KeyShown,
    Moved,
    RegistrationLost,
    Rejected,
    RelaysChanged,
    TimedOut,
    WrongKeyShown,
)
from ntcpsock._traversal.broker.fields import MAX_PORTS, RelayPlace
from ntcpsock._traversal.broker.link import Link
from ntcpsock._traversal.broker.message import (
    Found,
    FromBroker,
    Introduce,
    Introduced,
    Lookup,
    Reason,
    Refused,
    Register,
    Reply,
    Spoof,
    Spoofed,
    SpoofOutcome,
    Unreachable,
    Welcome,
)
from ntcpsock._traversal.broker.observed import Observed
from ntcpsock._traversal.broker.operation import OfferRelay, Outcome, RelayTaken, WithdrawRelay
from ntcpsock._traversal.broker.reach import reach, ttl_for
from ntcpsock._traversal.broker.refusal import registration_refused, relay_refused
from ntcpsock._traversal.relay.message import relay_proof

__all__ = ["MAX_DELIVERIES", "BrokerSession", "Delivery", "Introduction", "open_broker_session"]

_logger = logging.getLogger("ntcpsock.broker")

#: Offers and answers that wait to be taken. One more is dropped: whoever sent it sends it again.
MAX_DELIVERIES = 256


class BrokerSession:
    """An open session with a broker; made by `open_broker_session`. Heals itself after restarts and outages."""

    def __init__(self, link: Link) -> None:
        self._machine = link.machine
        self._link = link
        self._answers: dict[int, _Answer] = {}
        self._registering = trio.Lock()
        self._is_connected = trio.Event()
        self._is_connected.set()
        self._wrong_key: bytes | None = None
        #: Set when the broker tells of other relays; another one then.
        self.relays_changed = trio.Event()
        self._send_delivery, self.deliveries = trio.open_memory_channel[Delivery](MAX_DELIVERIES)
        #: Deliveries that found no room.
        self.deliveries_dropped = 0
        self._observed = Observed()
        self._observed.take(link.transport, link.place, link.welcome.observed)
        #: Called when the broker has seen us anew. The argument: whether elsewhere than before, though nobody said so.
        self.on_seen: Callable[[bool], None] = _nothing

    @property
    def welcome(self) -> Welcome:
        """The latest Welcome: `observed` is our UDP address as the broker sees it, `stun` its STUN servers."""
        return self._link.welcome

    @property
    def broker_host(self) -> str:
        """Where the broker is reached: a numeric address, or a name for a proxy."""
        return self._link.broker_host

    @property
    def relays(self) -> tuple[Endpoint, ...]:
        """The broker's relays; the host may be a name where we reached the broker through a proxy, or in TLS."""
        return self._link.relays

    @property
    def transport(self) -> str:
        """How the broker is reached now: "udp" or "tcp"."""
        return self._link.transport

    @property
    def rtt(self) -> float:
        """Seconds of the latest measured round trip."""
        return self._machine.rtt

    @property
    def broker_key(self) -> bytes:
        """The broker's 32-byte public key."""
        return self._link.broker_key

    @property
    def instance(self) -> bytes:
        """Eight random bytes that tell this process from others with the same node key."""
        return self._machine.instance

    @property
    def connected(self) -> bool:
        """Whether the broker knows us now. False between an outage and the next Welcome."""
        return self._machine.connected

    def keep_alive_every(self, interval: float) -> None:
        """Another interval between keep-alives, in seconds, from now on; call it before the registration."""
        self._machine.keep_alive_every(interval, ttl_for(interval), trio.current_time())
        self._link.flush()

    def renew(self, *, moved: bool) -> None:
        """Ask the broker at once whether it still sees us, and begin anew where the own address is another one now.

        moved: the network is known to be another one. Without it, only a way that does not answer is replaced.
        """
        if self._link.renew(moved=moved):
            self._observed.forget()

    async def wait_connected(self) -> None:
        """Return when the session is open: at once, or after it has come back."""
        await self._is_connected.wait()

    async def set_registration(
        self,
        names: tuple[str, ...],
        ports: tuple[int, ...],
        card: bytes | None,
        allow: tuple[str, ...] | None,
    ) -> None:
        """Say all that this node offers; replaces what it said before and is said again to a restarted broker.

        With an `allow` list the card is not sent. Of more than 64 ports the first 64 are told: the broker
        needs them only to choose among several processes of one node.
        Cancelled, it stays said: the node goes on to tell the broker.
        Raises NameTaken, ConfigurationError where it does not fit into a datagram, BrokerUnreachable.
        """
        registration = Register(
            names,
            ports[:MAX_PORTS],
            self._machine.ttl,
            None if allow is not None else card,
            None if allow is None else encode_allow(allow),
        )
        # One after the other: the last one said is the one that stands.
        async with self._registering:
            answer = await self._ask(lambda now: self._machine.register(registration, now), cancels=False)
        if isinstance(answer, Refused):
            where = f"{self._link.address.host}:{self._link.address.port}"
            own_id = encode_node_id(self._machine.own_key)
            raise registration_refused(where, answer.reason, answer.name, own_id)

    async def lookup(self, name: str) -> bytes:
        """The key of the node that has `name` (without suffix). Raises NameNotFound, BrokerUnreachable."""
        answer = await self._ask(lambda now: self._machine.request(Lookup(name), now))
        if isinstance(answer, Found):
            return answer.key
        raise NameNotFound(f"nobody has the name {name}.ntcp")

    async def introduce(
        self, to: bytes, port: int, sealed: bytes, *, name: str | None = None, instance: bytes | None = None
    ) -> Introduction:
        """Have `sealed` delivered to the node `to`, or to one instance of it, and get its card in the same instant.

        Raises PeerOffline; NameNotFound where `name` is given and is not `to`'s, or not ours to know;
        BrokerUnreachable.
        """
        answer = await self._ask(
            lambda now: self._machine.request(Introduce(to, port, sealed, name, instance), now)
        )
        if isinstance(answer, Introduced):
            return Introduction(
                answer.key,
                answer.instance,
                answer.card,
                answer.observed_host,
                answer.also_observed,
                answer.tickets,
            )
        who = f"{name}.ntcp" if name is not None else encode_node_id(to)
        if isinstance(answer, Unreachable) and answer.reason is Reason.NOT_FOUND:
            raise NameNotFound(f"nobody has the name {who}")
        raise PeerOffline(f"{who} is not connected to the broker")

    async def spoof(self, request: Spoof) -> SpoofOutcome:
        """Ask for a SYN-ACK under the peer's address, which has to ask for ours. Raises BrokerUnreachable."""
        answer = await self._ask(lambda now: self._machine.request(request, now))
        return answer.outcome if isinstance(answer, Spoofed) else SpoofOutcome.BUSY

    def send_reply(self, to: bytes, instance: bytes, sealed: bytes) -> None:
        """Send an answer to the instance that an offer came from, once: the dialer repeats until it has one."""
        try:
            self._machine.reply(Reply(to, instance, sealed))
        except BadMessage as error:
            raise ConfigurationError(": ".join(error.args)) from error
        self._link.flush()

    async def offer_relay(self, place: RelayPlace, secret: bytes | None) -> bytes:
        """Say, as a relay, where we are. secret: the relay.key that we share with the broker, None where it knows us by
        our key. What tickets are to be checked with, empty where that is `secret`. Raises BrokerRefused,
        BrokerUnreachable."""
        broker, own = self._link.broker_key, self._machine.own_key
        proof = b"" if secret is None else relay_proof(secret, broker, own)
        offer = OfferRelay(place, proof)
        answer = await self._ask(lambda now: self._machine.request(offer, now))
        if isinstance(answer, RelayTaken):
            return answer.secret
        raise relay_refused(f"{self._link.address.host}:{self._link.address.port}", encode_node_id(own))

    async def withdraw_relay(self) -> None:
        """Say, as a relay, that we take no more connections. Raises BrokerUnreachable."""
        await self._ask(lambda now: self._machine.request(WithdrawRelay(), now))

    def tell_outcome(self, outcome: Outcome) -> None:
        """How a dial has ended, once: it is a statistic, so one may be lost."""
        if self._machine.connected and self._machine.reply(outcome):
            self._link.flush()

    async def _ask(self, begin: Callable[[float], int], *, cancels: bool = True) -> FromBroker:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._machine.closed:
            raise trio.ClosedResourceError("the session with the broker is closed")
        try:
            number = begin(trio.current_time())
        except BadMessage as error:
            raise ConfigurationError(": ".join(error.args)) from error
        answer = self._answers[number] = _Answer(trio.Event())
        self._link.flush()
        try:
            await answer.arrived.wait()
        finally:
            del self._answers[number]
            if cancels:
                self._machine.cancel(number)
        if answer.body is None:
            raise self._unreachable()
        return answer.body

    def _unreachable(self) -> BrokerUnreachable | BrokerRefused | IdentityMismatch:
        if self._machine.rejection is not None:
            return self._link.refusal(self._machine.rejection)
        if self._wrong_key is not None:
            return self._link.mismatch(self._wrong_key)
        return BrokerUnreachable(f"no answer from the broker {self._link.address}")

    def _handle(self, event: Event) -> None:
        match event:
            case Answered(number, body):
                self._settle(number, body)
            case TimedOut(number):
                self._settle(number, None)
            case Delivered(message):
                delivery = Delivery(
                    message.sender,
                    message.sender_instance,
                    message.sender_name,
                    message.sealed,
                    message.observed_host,
                    message.also_observed,
                )
                try:
                    self._send_delivery.send_nowait(delivery)
                except (trio.WouldBlock, trio.BrokenResourceError):
                    self.deliveries_dropped += 1
            case Connected():
                self._wrong_key = None
                self._is_connected.set()
                _logger.info("broker %s: connected", self._link.address)
                self._seen()
            case Disconnected(silent):
                self._is_connected = trio.Event()
                _logger.info("broker %s: %s", self._link.address, "silent" if silent else "was restarted")
                if silent:
                    # The network may be another one now: a new socket finds its way in it.
                    self._link.reopen()
            case Rejected(reason):
                _logger.warning("%s", self._link.refusal(reason))
            case WrongKeyShown(key):
                self._wrong_key = key
            case RegistrationLost(reason, name):
                _logger.warning("broker %s: registration lost: %s %s", self._link.address, reason.name, name)
            case Moved():
                _logger.info("broker %s: back over %s", self._link.address, self._link.transport)
                self._seen()
            case RelaysChanged():
                self.relays_changed.set()
                self.relays_changed = trio.Event()
            case KeyShown():
                pass

    def _seen(self) -> None:
        seen = self._link.welcome.observed
        self.on_seen(self._observed.take(self._link.transport, self._link.place, seen))

    def _settle(self, number: int, body: FromBroker | None) -> None:
        answer = self._answers.get(number)
        if answer is not None:
            answer.body = body
            answer.arrived.set()

    def _close(self) -> None:
        self._machine.close()
        self._link.flush()
        self._link.close()
        self._send_delivery.close()
        self._is_connected.set()
        for number in self._answers:
            self._settle(number, None)


def _nothing(elsewhere: bool) -> None:
    """Nobody wants to know."""


@dataclass(slots=True)
class _Answer:
    arrived: trio.Event
    body: FromBroker | None = None


@asynccontextmanager
async def open_broker_session(
    address: BrokerAddress,
    identity: Identity,
    *,
    pins: Pins,
    keep_alive_interval: float = 20.0,
    timeout: float = 5.0,
    ca_file: Path | None = None,
    hidden: bool = False,
    token: str | None = None,
) -> AsyncIterator[BrokerSession]:
    """A session with the broker at `address`, kept alive every `keep_alive_interval` seconds until the block ends.

    It goes over UDP, and where no answer comes over TCP, through the proxy that the environment names; to a `wss://`
    address over TLS alone, whose certificate is checked by the authorities of `ca_file` or of the system. hidden: the
    broker tells nobody where it sees us.
    Where `address` has no key, the pinned one is expected, and without a pin the first one seen is pinned.
    token: for a broker that takes nodes or names by token.
    Raises BrokerUnreachable (no answer within `timeout` seconds, host unknown, no route), BrokerRefused (its operator
    does not let this node in) and IdentityMismatch.
    What the block raises leaves as it is, not in a group.
    """
    link = await reach(
        address, identity, pins, keep_alive_interval, timeout, ca_file=ca_file, hidden=hidden, token=token
    )
    link.prove_further_addresses()
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            session = BrokerSession(link)
            nursery.start_soon(link.run, session._handle)
            nursery.start_soon(link.tunnels.run)
            try:
                yield session
            finally:
                session._close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        failure = group.exceptions[0]
    finally:
        link.close()
    if failure is not None:
        raise failure
