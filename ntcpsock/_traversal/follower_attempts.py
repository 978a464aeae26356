"""The follower's part of the attempts of a dial, one by one."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ntcpsock._session.carrier import Carrier
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._traversal.aim import SharedAim
from ntcpsock._traversal.bursts import PeerBursts
from ntcpsock._traversal.offered import Offered, OfferedContext
from ntcpsock._traversal.plan import COSTLY_TECHNIQUES, PlannedAttempt
from ntcpsock._traversal.prove import Doorkeeper
from ntcpsock._traversal.punch.driver import bound_to
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.signals import Talk
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext
from ntcpsock._traversal.strategies.datagrams import DatagramAccess
from ntcpsock._traversal.strategies.relay import RelayAccess
from ntcpsock._traversal.strategies.turn import TurnAccess


class FollowerAttempts:
    """Of all dials of a node. count: called with the reason for which an attempt was not made."""

    def __init__(self, node: OfferedContext, doorkeeper: Doorkeeper, count: Callable[[str], int]) -> None:
        self._node = node
        self._doorkeeper = doorkeeper
        self._count = count
        self._shared_aim = SharedAim()

    async def run_joint(
        self, offered: Offered, joint: PlannedAttempt, talk: Talk, datagram: DatagramAccess | None
    ) -> None:
        """As `run`; a costly one only if it is this pair's turn for it."""
        if joint.technique not in COSTLY_TECHNIQUES:
            await self.run(offered, joint, talk, datagram)
            return
        pending = offered.pending
        async with self._node.pairs.follow(pending.delivery.sender, pending.offer.dial_id) as scope:
            if scope is None:
                self._count("joint attempts of this pair, or of all, are under way")
            else:
                await self.run(offered, joint, talk, datagram)

    async def run(
        self,
        offered: Offered,
        planned: PlannedAttempt,
        talk: Talk | None,
        datagram: DatagramAccess | None = None,
        turn: TurnAccess | None = None,
    ) -> None:
        """The follower's part of one attempt. It ends with the dial, when the leader has chosen."""
        pending = offered.pending
        deadline = trio.current_time() + planned.budget
        await trio.sleep(planned.delay)
        warm = pending.warm or self._node.listening_port
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
        entry.budget = planned.cost(offered.rtt)

        async def authenticate(sock: trio.socket.SocketType | GivenSocket) -> Carrier | PlainCarrier:
            assert not isinstance(sock, GivenSocket), "the listener's attempts have their own sockets"
            carrier = await self._doorkeeper.authenticate(sock, planned.technique)
            pending.report.end(entry, trio.current_time(), "connected")
            return carrier

        context = AttemptContext(
            planned,
            warm.port,
            offered.rtt,
            authenticate,
            entry,
            "follower",
            self._node.stun_servers,
            talk,
            relay=RelayAccess(self._node.relays, _no_tickets),
            datagram=datagram,
            turn=turn,
            taken=self._node.mapped_ports,
            note_mapped=self._node.note_mapped,
            bursts=PeerBursts(self._node.bursts, pending.delivery.sender),
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


async def _no_tickets() -> None:
    """The listener's come from the dialer."""
