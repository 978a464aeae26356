"""The listener's side of a dial: offers in, answers out, attempts towards the dialer, streams to listeners.

The follower of every race: `prove.py` authenticates whoever connects, by the one-time token of a pending offer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import trio
from msgspec import structs

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._config import UDP_TECHNIQUES, Encryption
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._report import PathInfo, PathKind, PeerInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad, DatagramRoad, StreamRoad
from ntcpsock._session.plain import PlainCarrier, PlainStream
from ntcpsock._session.quic.carrier import QuicCarrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier as TLSCarrier
from ntcpsock._session.tls import Certificate
from ntcpsock._traversal.aim import SharedAim
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.candidate import ipv4_host, name_of_connection
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.message import derive_credentials
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.datagram_plan import (
    birthday_cost,
    handshake_rtt,
    head_start_of_tcp,
    make_datagram_plan,
)
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.nominate import OneTimeToken
from ntcpsock._traversal.pairs import Pairs
from ntcpsock._traversal.pending import PendingDial, PendingDials
from ntcpsock._traversal.plan import COSTLY_TECHNIQUES, JOINT_TECHNIQUES, PlannedAttempt, make_plan
from ntcpsock._traversal.prove import Doorkeeper
from ntcpsock._traversal.punch.driver import bound_to, keep_mapping_alive, path_rtt
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Answer, DialKind, NATProfile, Offer, Signal
from ntcpsock._traversal.signals import WITHDRAWN, Talk
from ntcpsock._traversal.start import LONGEST_WAIT, order_of_start, waiting_time
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext
from ntcpsock._traversal.strategies.datagrams import AuthenticatePath, DatagramAccess
from ntcpsock._traversal.strategies.relay import RelayAccess
from ntcpsock._traversal.strategies.turn import TurnAccess
from ntcpsock._traversal.surroundings import Surroundings
from ntcpsock._traversal.turn.credentials import TurnServer
from ntcpsock._traversal.turned import hosts_of, relayed_target

log = logging.getLogger("ntcpsock")

# Seconds that we punch towards a dialer who does not come through.
DIAL_BUDGET = 12.0

# Without encryption, the seconds at least by which a listener that may be reached directly lets the dialer go first.
SHORTEST_COURTESY = 0.05
# Seconds for one joint attempt, and how many of them one dial may ask for.
JOINT_BUDGET = 6.0
MAX_JOINT_ROUNDS = 12
# Rounds of checks over UDP of one dial.
MAX_CHECK_ROUNDS = 3


class AcceptContext(Protocol):
    """What the acceptor needs of its node."""

    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def datagram_techniques(self) -> Sequence[str]: ...
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
    def surroundings(self) -> Surroundings: ...
    @property
    def pairs(self) -> Pairs: ...
    @property
    def private(self) -> bool: ...
    @property
    def offers_raw(self) -> bool: ...
    @property
    def listening_port(self) -> WarmPort | None: ...
    def listens(self, port: int, kind: DialKind) -> bool: ...
    async def admits(self, port: int, delivery: Delivery, kind: DialKind) -> bool: ...
    def hand_over(self, stream: NTCPStream) -> bool: ...
    def take_road(self, opened: OpenRoad) -> None: ...
    @property
    def introductions(self) -> Introductions: ...
    @property
    def nursery(self) -> trio.Nursery: ...
    @property
    def consent_interval(self) -> float: ...
    @property
    def turn_servers(self) -> Sequence[TurnServer]: ...
    @property
    def hidden(self) -> bool: ...
    @property
    def birthday_sockets(self) -> int: ...
    @property
    def birthday_rate(self) -> float: ...


class Acceptor:
    """Owns the pending dials of a node. `offered` runs as a task of the node's nursery."""

    def __init__(self, node: AcceptContext) -> None:
        self._node = node
        self.dials = PendingDials()
        self.doorkeeper = Doorkeeper(node, self.dials, self._finish, self._count)
        self._shared_aim = SharedAim()
        self._shared_datagram_aim = SharedAim()
        #: How often something was refused, by reason.
        self.refused: dict[str, int] = {}

    async def offered(self, delivery: Delivery, offer: Offer) -> None:
        """Work on one opened offer until its dial has ended."""
        pending = self.dials.under_way.get(offer.dial_id)
        if pending is not None:
            if pending.delivery.sender == delivery.sender:
                self._repeated(pending, delivery, offer)
            return
        if offer.dial_id in self.dials.ended:
            self._count("repeated dial id")
            return
        if not await self._node.admits(offer.port, delivery, offer.kind):
            self._count("not allowed")
            if not self._node.private:
                # Somebody is known to be here; the port looks as if nobody listened.
                self._node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
            return
        if not self._node.listens(offer.port, offer.kind):
            self._node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
            return
        if offer.encryption != self._node.encryption:
            self._refuse_encryption(delivery, offer)
            return
        warm = self._node.listening_port
        if warm is None or not self.dials.has_room(delivery.sender):
            self._node.introductions.reply(delivery, Answer(offer.dial_id, "busy"))
            return
        if self.dials.is_new(offer.dial_id):  # admits() may have waited
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
            warm.offered,
            warm.profile,
            self._node.broker_rtt,
            raw=self._node.offers_raw,
            relayed="relay" in self._node.techniques,
            udp_profile=warm.udp_profile,
            turn=bool(self._node.turn_servers),
        )
        report = Report(encode_node_id(delivery.sender), "listener", trio.current_time())
        pending = PendingDial(delivery, offer, answer, OneTimeToken(offer.token), report)
        self.dials.add(pending)
        try:
            self._node.introductions.reply(delivery, answer)
            if self._node.private:
                # The dialer had no card: it starts when this answer arrives, and so do we.
                await trio.sleep(min(self._path_rtt(offer) / 2, LONGEST_WAIT))
            with pending.scope:
                pending.scope.deadline = trio.current_time() + DIAL_BUDGET
                async with trio.open_nursery() as nursery:
                    pending.nursery = nursery
                    try:
                        self._punch_towards(pending, offer, warm)
                        # The dialer may also reach our listener by itself: hold the token for the whole budget.
                        await trio.sleep_forever()
                    finally:
                        # An offer that is repeated while the attempts end finds no nursery that is closed already.
                        pending.nursery = None
        finally:
            self.dials.end(offer.dial_id)

    def _repeated(self, pending: PendingDial, delivery: Delivery, offer: Offer) -> None:
        """The dialer has not seen our answer yet, or brings more candidates in a later round."""
        warm = self._node.listening_port
        if warm is not None:
            pending.answer = structs.replace(pending.answer, candidates=warm.offered)
        self._node.introductions.reply(delivery, pending.answer)
        is_open = pending.nursery is not None and not pending.scope.cancel_called
        if offer.round not in pending.rounds and warm is not None and is_open:
            pending.offer = offer
            self._punch_towards(pending, offer, warm)

    def heard(self, delivery: Delivery, signal: Signal) -> None:
        """A dialer's word to a joint technique of its dial, or its last one."""
        pending = self.dials.under_way.get(signal.dial_id)
        if pending is not None and pending.delivery.sender == delivery.sender:
            if signal.name == WITHDRAWN:
                pending.scope.cancel()
            else:
                pending.mailbox.take(signal)

    def _punch_towards(self, pending: PendingDial, offer: Offer, warm: WarmPort) -> None:
        """Do what an offer asks for: attempts towards its candidates, and its joint technique."""
        assert pending.nursery is not None
        pending.rounds.add(offer.round)
        delivery = pending.delivery
        standpoint = self._node.surroundings.standpoint
        proven_host = standpoint.proven(delivery.observed_host)
        also_proven = standpoint.also_proven(delivery.also_observed)
        plan = make_plan(
            warm.candidates,
            standpoint.targets(offer.candidates, "tcp", proven_host, also_proven),
            techniques=self._techniques(offer),
            rtt=self._path_rtt(offer),
            budget=DIAL_BUDGET,
            proven_host=proven_host,
            also_proven=also_proven,
            uplinks=warm.uplinks,
            wait=self._waiting_time(offer, offer.profile, warm.profile),
            late=self._node.surroundings.late_techniques,
        )
        # Where no SYN has to cross another the dialer's own connect is to come first: it may be made by the
        # application's own socket, and ours would meet the listener beside that.
        courtesy = max(self._path_rtt(offer), SHORTEST_COURTESY) if self._node.encryption == "off" else 0.0
        for planned in plan:
            way = (planned.remote, planned.source)
            if way not in pending.dialled and pending.aim.allows(planned):
                pending.dialled.add(way)
                late = courtesy if planned.technique in ("public", "lan") else 0.0
                pending.nursery.start_soon(
                    self._attempt, pending, replace(planned, delay=planned.delay + late), None
                )
        self._check_towards(pending, offer, warm)
        proven_host = ipv4_host(proven_host, *also_proven)
        if offer.technique == "relay":
            self._follow_to_relay(pending, offer)
        elif offer.technique == "turn":
            self._follow_to_turn(pending, offer)
        elif (
            offer.technique in JOINT_TECHNIQUES and offer.technique in self._techniques(offer) and proven_host
        ):
            pending.joint_rounds += 1
            if pending.joint_rounds <= MAX_JOINT_ROUNDS:
                spoof = partial(self._node.introductions.spoof, offer.dial_id, pending.delivery.sender)
                talk = Talk(
                    offer.dial_id, offer.round, pending.mailbox, pending.nursery, self._tell(pending), spoof
                )
                access = None
                if offer.technique in UDP_TECHNIQUES:
                    access = self._datagram_access(pending, offer, offer.technique, lambda: None)
                budget = JOINT_BUDGET if access is None else DIAL_BUDGET
                uses = (
                    birthday_cost(self._node.birthday_sockets, self._node.birthday_rate) if access else None
                )
                joint = PlannedAttempt(offer.technique, Endpoint(proven_host, 0), 0.0, budget, uses=uses)
                pending.nursery.start_soon(self._follow, pending, joint, talk, access)

    def _check_towards(self, pending: PendingDial, offer: Offer, warm: WarmPort) -> None:
        """Check the dialer's UDP candidates, each round by itself: every one has a port and credentials of its own."""
        if offer.technique or warm.datagram is None or len(pending.checked) >= MAX_CHECK_ROUNDS:
            return
        assert pending.nursery is not None
        standpoint = self._node.surroundings.standpoint
        proven_host = standpoint.proven(pending.delivery.observed_host)
        also_proven = standpoint.also_proven(pending.delivery.also_observed)
        remote = standpoint.targets(offer.candidates, "udp", proven_host, also_proven)
        plan = make_datagram_plan(
            warm.datagram.candidates,
            remote,
            techniques=self._techniques(offer),
            rtt=self._path_rtt(offer),
            budget=DIAL_BUDGET,
            proven_host=proven_host,
            also_proven=also_proven,
            wait=self._waiting_time(offer, NATProfile(), NATProfile()),
            head_start=head_start_of_tcp(offer.prefer, offer.round, self._path_rtt(offer)),
        )
        if plan is None:
            return
        now = trio.current_time()
        targets = tuple(
            target
            for target in plan.targets
            if pending.datagram_aim.allows(target) and self._shared_datagram_aim.allows(target, now)
        )
        port = warm.datagram.port
        access = self._datagram_access(pending, offer, plan.attempt.technique, lambda: port)
        access = replace(access, plan=replace(plan, targets=targets))
        pending.checked.add(offer.round)
        pending.nursery.start_soon(self._attempt, pending, plan.attempt, None, access)

    def _datagram_access(
        self, pending: PendingDial, offer: Offer, technique: str, take_port: Callable[[], UdpPort | None]
    ) -> DatagramAccess:
        standpoint = self._node.surroundings.standpoint
        proven_host = standpoint.proven(pending.delivery.observed_host)
        also_proven = standpoint.also_proven(pending.delivery.also_observed)
        authenticate: AuthenticatePath = partial(
            self.doorkeeper.authenticate_path,
            technique=technique,
            nursery=self._node.nursery,
            rtt=handshake_rtt(self._path_rtt(offer)),
        )
        if self._node.encryption == "off":
            authenticate = partial(
                self.doorkeeper.authenticate_bare_path,
                technique=technique,
                dial_id=offer.dial_id,
                token=offer.token,
            )
        return DatagramAccess(
            None,
            derive_credentials(offer.token, offer.round, "listener"),
            take_port,
            self._node.nursery,
            authenticate,
            (proven_host, *also_proven),
            port_is_ours=False,
            consent_interval=self._node.consent_interval,
            birthday_sockets=self._node.birthday_sockets,
            birthday_rate=self._node.birthday_rate,
        )

    def _follow_to_relay(self, pending: PendingDial, offer: Offer) -> None:
        """A relay is made ready early, and taken only when nothing direct has come. Nobody is aimed at."""
        assert pending.nursery is not None
        if "relay" in self._node.techniques and self._node.relays:
            talk = Talk(offer.dial_id, offer.round, pending.mailbox, pending.nursery, self._tell(pending))
            planned = PlannedAttempt("relay", self._node.relays[0], 0.0, DIAL_BUDGET)
            pending.nursery.start_soon(self._attempt, pending, planned, talk)

    def _follow_to_turn(self, pending: PendingDial, offer: Offer) -> None:
        """The dialer, or we, or both have a TURN server: as with a relay, with checks to what the dialer names."""
        assert pending.nursery is not None
        node = self._node
        if "turn" not in node.techniques:
            return
        standpoint = node.surroundings.standpoint
        proven_host = standpoint.proven(pending.delivery.observed_host)
        also_proven = standpoint.also_proven(pending.delivery.also_observed)
        candidates = standpoint.targets(offer.candidates, "udp", proven_host, also_proven)
        datagram = self._datagram_access(pending, offer, "turn", lambda: None)
        access = TurnAccess(
            node.turn_servers,
            hosts_of(candidates, proven_host, also_proven),
            relayed_target(standpoint),
            lambda target: self._shared_datagram_aim.allows(target, trio.current_time()),
            node.hidden,
        )
        planned = PlannedAttempt("turn", Endpoint(proven_host, 0), 0.0, DIAL_BUDGET)
        talk = Talk(offer.dial_id, offer.round, pending.mailbox, pending.nursery, self._tell(pending))
        pending.nursery.start_soon(self._attempt, pending, planned, talk, datagram, access)

    async def _follow(
        self, pending: PendingDial, joint: PlannedAttempt, talk: Talk, datagram: DatagramAccess | None
    ) -> None:
        if joint.technique not in COSTLY_TECHNIQUES:
            await self._attempt(pending, joint, talk, datagram)
            return
        async with self._node.pairs.follow(pending.delivery.sender, pending.offer.dial_id) as scope:
            if scope is None:
                self._count("joint attempts of this pair, or of all, are under way")
            else:
                await self._attempt(pending, joint, talk, datagram)

    def _waiting_time(self, offer: Offer, theirs: NATProfile, ours: NATProfile) -> float:
        if self._node.private and offer.round == 1:
            return 0.0  # _run() has waited for as long as the answer takes
        return waiting_time(
            "follower",
            order_of_start(theirs, ours, offer.turn),
            theirs,
            own_rtt=self._node.broker_rtt,
            other_rtt=offer.broker_rtt,
        )

    def _tell(self, pending: PendingDial) -> Callable[[bytes], Awaitable[None]]:
        return lambda payload: self._node.introductions.tell_dialer(pending.delivery, payload)

    async def _attempt(
        self,
        pending: PendingDial,
        planned: PlannedAttempt,
        talk: Talk | None,
        datagram: DatagramAccess | None = None,
        turn: TurnAccess | None = None,
    ) -> None:
        """The follower's part of one attempt. It ends with the dial, when the leader has chosen."""
        deadline = trio.current_time() + planned.budget
        await trio.sleep(planned.delay)
        warm = self._node.listening_port
        if warm is None:
            return
        if datagram is None and not self._shared_aim.allows(planned, trio.current_time()):
            self._count("too many unproven addresses")
            return
        entry = pending.report.attempt(
            planned.technique,
            bound_to(warm.port, planned.remote, planned.source),
            planned.remote,
            trio.current_time(),
        )
        entry.budget = planned.cost(self._path_rtt(pending.offer))

        async def authenticate(sock: trio.socket.SocketType | GivenSocket) -> Carrier | PlainCarrier:
            assert not isinstance(sock, GivenSocket), "the listener's attempts have their own sockets"
            carrier = await self.doorkeeper.authenticate(sock, planned.technique)
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
            datagram=datagram,
            turn=turn,
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

    def _finish(
        self,
        pending: PendingDial,
        carrier: Carrier | PlainCarrier | BareRoad,
        rest: bytes,
        technique: str | None,
    ) -> None:
        if technique is None:
            warm = self._node.listening_port
            standpoint = self._node.surroundings.standpoint
            proven_host = standpoint.proven(pending.delivery.observed_host)
            also_proven = standpoint.also_proven(pending.delivery.also_observed)
            usable = standpoint.targets(pending.offer.candidates, "tcp", proven_host, also_proven)
            technique = name_of_connection(warm.candidates if warm else (), usable, carrier.remote)
        report = pending.report
        report.seconds = trio.current_time() - report.started
        if isinstance(carrier, TLSCarrier | PlainCarrier):
            keep_mapping_alive(carrier.socket)
        sender = pending.delivery
        if pending.offer.kind == "datagram":
            self._node.take_road(
                make_road(carrier, technique, sender.sender, sender.sender_name, report, rest)
            )
            pending.scope.cancel()
            return
        assert not isinstance(carrier, BareRoad), "made for datagrams alone"
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

    def _techniques(self, offer: Offer) -> Sequence[str]:
        return self._node.datagram_techniques if offer.kind == "datagram" else self._node.techniques

    def _path_rtt(self, offer: Offer) -> float:
        """Both ways to the broker together: right when the broker is on the path, and never far too short."""
        return offer.broker_rtt + self._node.broker_rtt

    def _count(self, reason: str) -> int:
        """Count a refusal; how many there were before."""
        before = self.refused.get(reason, 0)
        self.refused[reason] = before + 1
        return before


def make_stream(
    carrier: Carrier | PlainCarrier, technique: str, peer: PeerInfo, report: Report, received: bytes = b""
) -> NTCPStream:
    """The stream over an authenticated carrier, at either end."""
    rtt = (
        path_rtt(carrier.socket) if isinstance(carrier, TLSCarrier | PlainCarrier) else measured_rtt(carrier)
    )
    path = PathInfo(kind_of(technique), technique, carrier.local, carrier.remote, rtt)
    if isinstance(carrier, PlainCarrier):
        return PlainStream(carrier, peer=peer, path=path, report=report)
    return NTCPStream(carrier, peer=peer, path=path, report=report, received=received)


def make_road(
    carrier: Carrier | PlainCarrier | BareRoad,
    technique: str,
    key: bytes,
    name: str | None,
    report: Report,
    received: bytes = b"",
) -> OpenRoad:
    """The road for datagrams over an authenticated carrier, at either end."""
    road: DatagramRoad
    rtt = None
    if isinstance(carrier, QuicCarrier | BareRoad):
        road = carrier
    else:
        assert not isinstance(carrier, PlainCarrier), "without encryption there is UDP alone"
        road = StreamRoad(carrier, received)
        if isinstance(carrier, TLSCarrier):
            rtt = path_rtt(carrier.socket)
    path = PathInfo(kind_of(technique), technique, road.local, road.remote, rtt)
    return OpenRoad(road, key, name, path, report)


def kind_of(technique: str) -> PathKind:
    if technique.startswith("udp-"):
        return "udp"
    return _KINDS.get(technique, "tcp")


def measured_rtt(carrier: Carrier) -> float | None:
    """The round trip of the check that was answered last, in seconds, where the carrier is over such a path."""
    path = carrier.path if isinstance(carrier, QuicCarrier) else None
    return path.measured_rtt if isinstance(path, PunchedPath) else None


_KINDS: dict[str, PathKind] = {
    "lan": "lan",
    "ipv6": "ipv6",
    "port-mapped": "port-mapped",
    "relay": "relay",
    "turn": "relay",
}


async def _no_tickets() -> None:
    """The listener's come from the dialer."""
