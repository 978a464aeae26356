"""What the listener does towards the dialer, as its offers ask: attempts, checks, joint techniques, relays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import UDP_TECHNIQUES
from ntcpsock._traversal.aim import SharedAim
from ntcpsock._traversal.candidate import ipv4_host
from ntcpsock._traversal.checks.message import derive_credentials
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.datagram_plan import (
    birthday_cost,
    handshake_rtt,
    head_start_of_tcp,
    make_datagram_plan,
    opening_plan,
)
from ntcpsock._traversal.follower_attempts import FollowerAttempts
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.gather_udp import WarmDatagramPort
from ntcpsock._traversal.offered import Offered, OfferedContext
from ntcpsock._traversal.pending import PendingDial
from ntcpsock._traversal.plan import JOINT_TECHNIQUES, PlannedAttempt, make_plan
from ntcpsock._traversal.prove import Doorkeeper
from ntcpsock._traversal.punch.message import NATProfile, encode_candidates
from ntcpsock._traversal.round_port import ROUND_PORT, RoundPorts
from ntcpsock._traversal.signals import Talk
from ntcpsock._traversal.strategies.datagrams import AuthenticatePath, DatagramAccess
from ntcpsock._traversal.strategies.turn import TurnAccess
from ntcpsock._traversal.turned import hosts_of, relayed_target

# Seconds that we punch towards a dialer who does not come through.
DIAL_BUDGET = 12.0

# Without encryption, the seconds at least by which a listener that may be reached directly lets the dialer go first.
SHORTEST_COURTESY = 0.05
# Seconds for one joint attempt, and how many of them one dial may ask for.
JOINT_BUDGET = 6.0
MAX_JOINT_ROUNDS = 14
# Rounds of checks over UDP of one dial.
MAX_CHECK_ROUNDS = 3


class Follower:
    """Of all dials of a node. Its tasks run in the nursery of each dial."""

    def __init__(self, node: OfferedContext, doorkeeper: Doorkeeper, count: Callable[[str], int]) -> None:
        self._node = node
        self._doorkeeper = doorkeeper
        self._attempts = FollowerAttempts(node, doorkeeper, count)
        self._shared_datagram_aim = SharedAim()
        self._round_ports = RoundPorts()

    def punch_towards(self, pending: PendingDial, warm: WarmPort) -> None:
        """Do what the newest offer asks for: attempts towards its candidates, and its joint technique."""
        pending.rounds.add(pending.offer.round)
        offered = Offered(self._node, pending)
        self._connect_towards(offered, warm)
        self._check_towards(offered, warm)
        if offered.offer.technique == "relay":
            self._follow_to_relay(offered)
        elif offered.offer.technique == "turn":
            self._follow_to_turn(offered)
        elif offered.offer.technique in JOINT_TECHNIQUES:
            self._follow_jointly(offered)

    def _connect_towards(self, offered: Offered, warm: WarmPort) -> None:
        pending, offer = offered.pending, offered.offer
        assert pending.nursery is not None
        plan = make_plan(
            warm.candidates,
            offered.targets("tcp"),
            techniques=offered.techniques,
            rtt=offered.rtt,
            budget=DIAL_BUDGET,
            proven_host=offered.proven_host,
            also_proven=offered.also_proven,
            uplinks=warm.uplinks,
            wait=offered.waiting_time(offer.profile, warm.profile),
            late=self._node.surroundings.late_techniques,
        )
        # Where no SYN has to cross another the dialer's own connect is to come first: it may be made by the
        # application's own socket, and ours would meet the listener beside that.
        courtesy = max(offered.rtt, SHORTEST_COURTESY) if self._node.encryption == "off" else 0.0
        for planned in plan:
            way = (planned.remote, planned.source)
            if way not in pending.dialled and pending.aim.allows(planned):
                pending.dialled.add(way)
                late = courtesy if planned.technique in ("public", "lan") else 0.0
                pending.nursery.start_soon(
                    self._attempts.run, offered, replace(planned, delay=planned.delay + late), None
                )

    def _follow_jointly(self, offered: Offered) -> None:
        """The dialer announces a joint technique, and we do our part of it."""
        pending, offer = offered.pending, offered.offer
        assert pending.nursery is not None
        host = ipv4_host(offered.proven_host, *offered.also_proven)
        if offer.technique not in offered.techniques or not host:
            return
        pending.joint_rounds += 1
        if pending.joint_rounds > MAX_JOINT_ROUNDS:
            return
        talk = offered.talk(partial(self._node.introductions.spoof, offer.dial_id, pending.delivery.sender))
        access = None
        if offer.technique in UDP_TECHNIQUES:
            access = self._datagram_access(offered, offer.technique, lambda: None)
        budget = JOINT_BUDGET if access is None else DIAL_BUDGET
        uses = birthday_cost(self._node.birthday_sockets, self._node.birthday_rate) if access else None
        joint = PlannedAttempt(offer.technique, Endpoint(host, 0), 0.0, budget, uses=uses)
        pending.nursery.start_soon(self._attempts.run_joint, offered, joint, talk, access)

    def _check_towards(self, offered: Offered, warm: WarmPort) -> None:
        """Check the dialer's UDP candidates, each round by itself: every one has a port and credentials of its own."""
        pending, offer = offered.pending, offered.offer
        if offer.technique or warm.datagram is None or len(pending.checked) >= MAX_CHECK_ROUNDS:
            return
        assert pending.nursery is not None
        plan = make_datagram_plan(
            warm.datagram.candidates,
            offered.targets("udp"),
            techniques=offered.techniques,
            rtt=offered.rtt,
            budget=DIAL_BUDGET,
            proven_host=offered.proven_host,
            also_proven=offered.also_proven,
            wait=offered.waiting_time(NATProfile(), NATProfile()),
            head_start=head_start_of_tcp(offer.prefer, offer.round, offered.rtt),
        )
        if plan is None:
            return
        now = trio.current_time()
        targets = tuple(
            target
            for target in plan.targets
            if pending.datagram_aim.allows(target) and self._shared_datagram_aim.allows(target, now)
        )
        plan = replace(plan, targets=targets)
        port = warm.datagram.port
        access = replace(self._datagram_access(offered, plan.attempt.technique, lambda: port), plan=plan)
        pending.checked.add(offer.round)
        if offer.round == 1:
            pending.nursery.start_soon(self._attempts.run, offered, plan.attempt, None, access)
        else:
            pending.nursery.start_soon(
                self._check_from_round_port, offered, access, offered.talk(), warm.datagram
            )

    async def _check_from_round_port(
        self, offered: Offered, access: DatagramAccess, talk: Talk, shared: WarmDatagramPort
    ) -> None:
        """A later round has a port of its own, and the word of it goes out behind its first checks; where none can be
        had it goes on with the shared one."""
        assert access.plan is not None
        async with self._round_ports.gather(shared) as fresh:
            if fresh is not None:
                port, candidates = fresh.port, fresh.candidates
                mapped = [candidate.port for candidate in candidates if candidate.type == "srflx"]
                self._node.note_mapped("udp", mapped)

                def take_port() -> UdpPort:
                    talk.say(ROUND_PORT, encode_candidates(candidates))
                    return port

                plan = opening_plan(access.plan, offered.rtt)
                access = replace(access, plan=plan, take_port=take_port)
            assert access.plan is not None
            await self._attempts.run(offered, access.plan.attempt, None, access)

    def _follow_to_relay(self, offered: Offered) -> None:
        """A relay is made ready early, and taken only when nothing direct has come. Nobody is aimed at."""
        assert offered.pending.nursery is not None
        if "relay" in self._node.techniques and self._node.relays:
            planned = PlannedAttempt("relay", self._node.relays[0], 0.0, DIAL_BUDGET)
            offered.pending.nursery.start_soon(self._attempts.run, offered, planned, offered.talk())

    def _follow_to_turn(self, offered: Offered) -> None:
        """The dialer, or we, or both have a TURN server: as with a relay, with checks to what the dialer names."""
        node = self._node
        assert offered.pending.nursery is not None
        if "turn" not in node.techniques:
            return
        proven_host = offered.proven_host
        datagram = self._datagram_access(offered, "turn", lambda: None)
        access = TurnAccess(
            node.turn_servers,
            hosts_of(offered.targets("udp"), proven_host, offered.also_proven),
            relayed_target(node.surroundings.standpoint),
            lambda target: self._shared_datagram_aim.allows(target, trio.current_time()),
            node.hidden,
            node.take_turn_allocation,
        )
        planned = PlannedAttempt("turn", Endpoint(proven_host, 0), 0.0, DIAL_BUDGET)
        offered.pending.nursery.start_soon(
            self._attempts.run, offered, planned, offered.talk(), datagram, access
        )

    def _datagram_access(
        self, offered: Offered, technique: str, take_port: Callable[[], UdpPort | None]
    ) -> DatagramAccess:
        node, offer = self._node, offered.offer
        authenticate: AuthenticatePath = partial(
            self._doorkeeper.authenticate_path,
            technique=technique,
            nursery=node.nursery,
            rtt=handshake_rtt(offered.rtt),
        )
        if node.encryption == "off":
            authenticate = partial(
                self._doorkeeper.authenticate_bare_path,
                technique=technique,
                dial_id=offer.dial_id,
                token=offer.token,
            )
        return DatagramAccess(
            None,
            derive_credentials(offer.token, offer.round, "listener"),
            take_port,
            node.nursery,
            authenticate,
            (offered.proven_host, *offered.also_proven),
            port_is_ours=False,
            consent_interval=node.consent_interval,
            birthday_sockets=node.birthday_sockets,
            birthday_rate=node.birthday_rate,
        )
