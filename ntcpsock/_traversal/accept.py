"""The listener's side of a dial: offers in, answers out, attempts towards the dialer, streams to listeners.

The follower of every race: it authenticates whoever connects by the one-time token of a pending offer.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._config import Encryption
from ntcpsock._errors import BadMessage
from ntcpsock._report import PathInfo, PathKind, PeerInfo, Report
from ntcpsock._session.plain import PlainCarrier, PlainStream, receive_greeting, to_plain
from ntcpsock._session.stream import NTCPStream, receive_bind
from ntcpsock._session.tls import Carrier, Certificate, server_handshake
from ntcpsock._traversal.aim import Aim
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.candidate import name_of_connection, usable_candidates
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.nominate import OneTimeToken
from ntcpsock._traversal.plan import JOINT_TECHNIQUES, PlannedAttempt, make_plan
from ntcpsock._traversal.punch.driver import keep_mapping_alive, path_rtt
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Answer, Offer, Signal
from ntcpsock._traversal.signals import Mailbox, Talk
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext
from ntcpsock._traversal.strategies.relay import RelayAccess

log = logging.getLogger("ntcpsock")

# Seconds that we punch towards a dialer who does not come through.
DIAL_BUDGET = 12.0

# Without encryption, the seconds at least by which a listener that may be reached directly lets the dialer go first.
SHORTEST_COURTESY = 0.05
# Seconds for one joint attempt.
JOINT_BUDGET = 6.0

# Dials under way: from all nodes, and from one.
MAX_PENDING = 512
MAX_PENDING_PER_NODE = 128

# Connections without a proven token yet, and the seconds that each may take to prove one.
MAX_UNAUTHENTICATED = 64
AUTHENTICATION_DEADLINE = 10.0

# Dial ids that were used up or expired, kept so that a repeated offer finds no second life.
REMEMBERED_DIALS = 4096


class AcceptContext(Protocol):
    """What the acceptor needs of its node."""

    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def encryption(self) -> Encryption: ...
    @property
    def stun_servers(self) -> Sequence[Endpoint]: ...
    @property
    def relays(self) -> Sequence[Endpoint]: ...
    @property
    def certificate(self) -> Certificate: ...
    @property
    def broker_rtt(self) -> float: ...
    @property
    def loopback_allowed(self) -> bool: ...
    @property
    def private(self) -> bool: ...
    @property
    def listening_port(self) -> WarmPort | None: ...
    def listens(self, port: int) -> bool: ...
    async def admits(self, port: int, delivery: Delivery) -> bool: ...
    def hand_over(self, stream: NTCPStream) -> bool: ...
    @property
    def introductions(self) -> Introductions: ...


@dataclass
class PendingDial:
    """An offer that was let in, until its connection comes."""

    delivery: Delivery
    offer: Offer
    answer: Answer
    token: OneTimeToken
    report: Report
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    dialled: set[Endpoint] = field(default_factory=set)
    aim: Aim = field(default_factory=Aim)
    mailbox: Mailbox = field(default_factory=Mailbox)
    rounds: set[int] = field(default_factory=set)
    nursery: trio.Nursery | None = None


class Acceptor:
    """Owns the pending dials of a node. `offered` and `incoming` run as tasks of the node's nursery."""

    def __init__(self, node: AcceptContext) -> None:
        self._node = node
        self._pending: dict[bytes, PendingDial] = {}
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self._awaited: dict[bytes, trio.Event] = {}
        self._strangers: dict[trio.socket.SocketType, trio.CancelScope] = {}
        #: How often something was refused, by reason.
        self.refused: dict[str, int] = {}

    async def offered(self, delivery: Delivery, offer: Offer) -> None:
        """Work on one opened offer until its dial has ended."""
        pending = self._pending.get(offer.dial_id)
        if pending is not None:
            if pending.delivery.sender == delivery.sender:
                self._repeated(pending, delivery, offer)
            return
        if offer.dial_id in self._ended:
            self._count("repeated dial id")
            return
        if not await self._node.admits(offer.port, delivery):
            self._count("not allowed")
            if not self._node.private:
                # Somebody is known to be here; the port looks as if nobody listened.
                self._node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
            return
        if not self._node.listens(offer.port):
            self._node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
            return
        if offer.encryption != self._node.encryption:
            self._refuse_encryption(delivery, offer)
            return
        warm = self._node.listening_port
        if warm is None or not self._has_room(delivery.sender):
            self._node.introductions.reply(delivery, Answer(offer.dial_id, "busy"))
            return
        if (
            offer.dial_id not in self._pending and offer.dial_id not in self._ended
        ):  # admits() may have waited
            await self._run(delivery, offer, warm)

    def _refuse_encryption(self, delivery: Delivery, offer: Offer) -> None:
        """The dialer hears what it has to change; whoever runs this node finds it in the log."""
        if not self._count("encryption mismatch"):
            log.warning(
                'refused %s: it wants encryption="%s", and this node says "%s"; further ones are only counted',
                delivery.sender_name or encode_node_id(delivery.sender),
                offer.encryption,
                self._node.encryption,
            )
        answer = Answer(offer.dial_id, "refused", demands=self._node.encryption)
        self._node.introductions.reply(delivery, answer)

    async def _run(self, delivery: Delivery, offer: Offer, warm: WarmPort) -> None:
        answer = Answer(
            offer.dial_id,
            "accepted",
            self._node.certificate.fingerprint,
            warm.candidates,
            warm.profile,
            self._node.broker_rtt,
        )
        report = Report(encode_node_id(delivery.sender), "listener", trio.current_time())
        pending = PendingDial(delivery, offer, answer, OneTimeToken(offer.token), report)
        self._pending[offer.dial_id] = pending
        if offer.dial_id in self._awaited:
            self._awaited[offer.dial_id].set()
        try:
            self._node.introductions.reply(delivery, answer)
            if self._node.private:
                # The dialer had no card: it starts when this answer arrives, and so do we.
                await trio.sleep(self._path_rtt(offer) / 2)
            with pending.scope:
                pending.scope.deadline = trio.current_time() + DIAL_BUDGET
                async with trio.open_nursery() as nursery:
                    pending.nursery = nursery
                    self._punch_towards(pending, offer, warm)
                    # The dialer may also reach our listener by itself: hold the token for the whole budget.
                    await trio.sleep_forever()
        finally:
            pending.nursery = None
            del self._pending[offer.dial_id]
            self._remember(offer.dial_id)

    def _repeated(self, pending: PendingDial, delivery: Delivery, offer: Offer) -> None:
        """The dialer has not seen our answer yet, or brings more candidates in a later round."""
        self._node.introductions.reply(delivery, pending.answer)
        warm = self._node.listening_port
        if pending.nursery is None or pending.scope.cancel_called:
            return  # the dial has just been decided
        if offer.round not in pending.rounds and warm is not None:
            pending.offer = offer
            self._punch_towards(pending, offer, warm)

    def heard(self, delivery: Delivery, signal: Signal) -> None:
        """A dialer's word to a joint technique of its dial."""
        pending = self._pending.get(signal.dial_id)
        if pending is not None and pending.delivery.sender == delivery.sender:
            pending.mailbox.take(signal)

    def _punch_towards(self, pending: PendingDial, offer: Offer, warm: WarmPort) -> None:
        """Do what an offer asks for: attempts towards its candidates, and its joint technique."""
        assert pending.nursery is not None
        pending.rounds.add(offer.round)
        usable = usable_candidates(offer.candidates, "tcp", loopback_allowed=self._node.loopback_allowed)
        proven_host = pending.delivery.observed_host
        plan = make_plan(
            warm.candidates,
            usable,
            techniques=self._node.techniques,
            rtt=self._path_rtt(offer),
            budget=DIAL_BUDGET,
            proven_host=proven_host,
        )
        # Where no SYN has to cross another the dialer's own connect is to come first: it may be made by the
        # application's own socket, and ours would meet the listener beside that.
        courtesy = max(self._path_rtt(offer), SHORTEST_COURTESY) if self._node.encryption == "off" else 0.0
        for planned in plan:
            if planned.remote not in pending.dialled and pending.aim.allows(planned):
                pending.dialled.add(planned.remote)
                late = 0.0 if planned.technique == "tcp-open" else courtesy
                pending.nursery.start_soon(
                    self._attempt, pending, replace(planned, delay=planned.delay + late), None
                )
        if offer.technique in JOINT_TECHNIQUES and offer.technique in self._node.techniques and proven_host:
            talk = Talk(offer.dial_id, offer.round, pending.mailbox, pending.nursery, self._tell(pending))
            # A relay is made ready early, and taken only when nothing direct has come.
            budget = DIAL_BUDGET if offer.technique == "relay" else JOINT_BUDGET
            joint = PlannedAttempt(offer.technique, Endpoint(proven_host, 0), 0.0, budget)
            pending.nursery.start_soon(self._attempt, pending, joint, talk)

    def _tell(self, pending: PendingDial) -> Callable[[bytes], Awaitable[None]]:
        return lambda payload: self._node.introductions.tell_dialer(pending.delivery, payload)

    async def _attempt(self, pending: PendingDial, planned: PlannedAttempt, talk: Talk | None) -> None:
        """The follower's part of one attempt. It ends with the dial, when the leader has chosen."""
        deadline = trio.current_time() + planned.budget
        await trio.sleep(planned.delay)
        warm = self._node.listening_port
        if warm is None:
            return
        entry = pending.report.attempt(
            planned.technique, ("0.0.0.0", warm.port), planned.remote, trio.current_time()
        )

        async def authenticate(sock: trio.socket.SocketType | GivenSocket) -> Carrier | PlainCarrier:
            assert not isinstance(sock, GivenSocket), "the listener's attempts have their own sockets"
            carrier = await self._authenticate(sock, planned.technique)
            pending.report.end(entry, trio.current_time(), "connected")
            return carrier

        context = AttemptContext(
            planned,
            warm.port,
            self._path_rtt(pending.offer),
            authenticate,
            entry,
            "follower",
            self._node.stun_servers,
            talk,
            relay=RelayAccess(self._node.relays, _no_tickets),
        )
        try:
            with trio.fail_at(deadline):
                await STRATEGIES[planned.technique](context)
        except trio.TooSlowError:
            pending.report.end(entry, trio.current_time(), "no answer")
        except OSError as error:
            pending.report.end(entry, trio.current_time(), str(error))
        finally:
            pending.report.end(entry, trio.current_time(), "cancelled")

    async def incoming(self, sock: trio.socket.SocketType) -> None:
        """Authenticate a connection that came in on the listening port, and hand its stream over.

        Strangers hold a place until their deadline; where all are held, the oldest makes room, so that a dialer,
        who needs two round trips, comes through unless they are all taken anew meanwhile.
        """
        if len(self._strangers) >= MAX_UNAUTHENTICATED:
            self._strangers.pop(next(iter(self._strangers))).cancel()
            self._count("displaced")
        scope = self._strangers[sock] = trio.CancelScope()
        try:
            with scope, suppress(OSError):
                await self._authenticate(sock, None)
        finally:
            self._strangers.pop(sock, None)

    async def _authenticate(
        self, sock: trio.socket.SocketType, technique: str | None
    ) -> Carrier | PlainCarrier:
        """Have the other end prove that it is a dialer, and hand its stream over.

        technique: the attempt's that made the connection, None for one that came in. Raises OSError when it is
        nobody, or an attempt that the dialer did not choose.
        """
        if self._node.encryption == "off":
            return await self._authenticate_plain(sock, technique)
        carrier: Carrier | None = None
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                carrier = await server_handshake(sock, self._node.certificate)
                dial_id, token, rest = await receive_bind(carrier)
                await self._offer_arrived(dial_id)
        except (OSError, BadMessage, trio.TooSlowError) as error:
            self._count(f"authentication: {type(error).__name__}")
            if carrier is not None:
                carrier.close(abort=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, f"not authenticated: {error}") from error
        except BaseException:
            if carrier is not None:
                carrier.close(abort=True)
            raise
        pending = self._pending.get(dial_id)
        if pending is None or not pending.token.redeem(token):
            self._count("wrong token")
            carrier.close(abort=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "not authenticated: wrong token")
        self._finish(pending, carrier, rest, technique)
        return carrier

    async def _authenticate_plain(self, sock: trio.socket.SocketType, technique: str | None) -> PlainCarrier:
        plain = to_plain(sock)
        try:
            with trio.fail_after(AUTHENTICATION_DEADLINE):
                carrier, dial_id = await receive_greeting(plain, self._token_of)
        except (OSError, BadMessage, trio.TooSlowError) as error:
            self._count(f"authentication: {type(error).__name__}")
            plain.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, f"not authenticated: {error}") from error
        except BaseException:
            plain.close()
            raise
        pending = self._pending.get(dial_id)
        if pending is None or not pending.token.redeem(pending.token.token):
            self._count("wrong token")
            carrier.close(abort=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "not authenticated: wrong token")
        self._finish(pending, carrier, b"", technique)
        return carrier

    async def _token_of(self, dial_id: bytes) -> bytes | None:
        await self._offer_arrived(dial_id)
        pending = self._pending.get(dial_id)
        return None if pending is None or pending.token.spent else pending.token.token

    async def _offer_arrived(self, dial_id: bytes) -> None:
        """On short paths a connection can overtake its offer, which came by way of the broker."""
        if dial_id in self._pending or dial_id in self._ended:
            return
        event = self._awaited.setdefault(dial_id, trio.Event())
        try:
            await event.wait()
        finally:
            self._awaited.pop(dial_id, None)

    def _finish(
        self, pending: PendingDial, carrier: Carrier | PlainCarrier, rest: bytes, technique: str | None
    ) -> None:
        if technique not in JOINT_TECHNIQUES:
            warm = self._node.listening_port
            usable = usable_candidates(
                pending.offer.candidates, "tcp", loopback_allowed=self._node.loopback_allowed
            )
            technique = name_of_connection(warm.candidates if warm else (), usable, carrier.remote)
        report = pending.report
        report.seconds = trio.current_time() - report.started
        keep_mapping_alive(carrier.socket)
        sender = pending.delivery
        peer = PeerInfo(
            sender.sender_name,
            encode_node_id(sender.sender),
            pending.offer.port,
            pending.offer.source_port,
        )
        stream = make_stream(carrier, technique, peer, report, rest)
        if not self._node.hand_over(stream):
            self._count("backlog full")
            stream.reset()
        pending.scope.cancel()

    def _path_rtt(self, offer: Offer) -> float:
        """Both ways to the broker together: right when the broker is on the path, and never far too short."""
        return offer.broker_rtt + self._node.broker_rtt

    def _has_room(self, sender: bytes) -> bool:
        same = sum(1 for pending in self._pending.values() if pending.delivery.sender == sender)
        return len(self._pending) < MAX_PENDING and same < MAX_PENDING_PER_NODE

    def _remember(self, dial_id: bytes) -> None:
        self._ended[dial_id] = None
        while len(self._ended) > REMEMBERED_DIALS:
            self._ended.popitem(last=False)

    def _count(self, reason: str) -> int:
        """Count a refusal; how many there were before."""
        before = self.refused.get(reason, 0)
        self.refused[reason] = before + 1
        return before


def make_stream(
    carrier: Carrier | PlainCarrier, technique: str, peer: PeerInfo, report: Report, received: bytes = b""
) -> NTCPStream:
    """The stream over an authenticated carrier, at either end."""
    path = PathInfo(kind_of(technique), technique, carrier.local, carrier.remote, path_rtt(carrier.socket))
    if isinstance(carrier, PlainCarrier):
        return PlainStream(carrier, peer=peer, path=path, report=report)
    return NTCPStream(carrier, peer=peer, path=path, report=report, received=received)


def kind_of(technique: str) -> PathKind:
    if technique == "relay":
        return "relay"
    return "lan" if technique == "lan" else "tcp"


async def _no_tickets() -> None:
    """The listener's come from the dialer."""
