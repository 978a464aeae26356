"""The listener's side of standing offers: agreed while a stream has a path, followed when it has none.

Without a word from anybody: each end tries to connect to what the other one named, from the port that it named itself.
So a stream finds its way again where the broker is gone, as long as one end can be reached where it was, or both NATs
keep their public address and the ports' numbers.
"""

from __future__ import annotations

from typing import Protocol

import trio

from ntcpsock._address import encode_node_id
from ntcpsock._report import Report
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.follow import DIAL_BUDGET, Follower
from ntcpsock._traversal.gather import WarmPort, open_agreed
from ntcpsock._traversal.nominate import OneTimeToken
from ntcpsock._traversal.offered import OfferedContext
from ntcpsock._traversal.pending import PendingDial, PendingDials
from ntcpsock._traversal.prove import Doorkeeper
from ntcpsock._traversal.punch.driver import accept_connections
from ntcpsock._traversal.punch.message import Answer, Offer

#: Seconds until the next try where the port could not be had.
_PAUSE = 1.0


class AcceptingParts(Protocol):
    """What a standing offer needs of the acceptor."""

    @property
    def node(self) -> OfferedContext: ...
    @property
    def dials(self) -> PendingDials: ...
    @property
    def doorkeeper(self) -> Doorkeeper: ...
    @property
    def follower(self) -> Follower: ...
    def accepting(self, offer: Offer, warm: WarmPort) -> Answer: ...


class StandingOffer:
    """One of them. `withdraw` must be called at its end."""

    def __init__(self, parts: AcceptingParts, delivery: Delivery, offer: Offer, number: int) -> None:
        """number: of the port that the answer tells."""
        self._parts = parts
        self._delivery = delivery
        self._offer = offer
        self._number = number
        self._following: trio.CancelScope | None = None
        self._is_wanted = False
        parts.dials.standing[offer.dial_id] = self._dialer_is_here

    def withdraw(self) -> None:
        """It does not hold any more."""
        standing = self._parts.dials.standing
        if standing.get(self._offer.dial_id) == self._dialer_is_here:
            del standing[self._offer.dial_id]
        self.stop()

    def answer(self) -> None:
        """Tell the dialer where we are now."""
        warm = self._parts.node.listening_port
        if warm is not None:
            self._number = warm.port
            self._parts.node.introductions.reply(self._delivery, self._parts.accepting(self._offer, warm))

    def begin(self) -> None:
        """Go towards the dialer for a while: the path is silent, or lost."""
        if self._following is None:
            self._following = trio.CancelScope()
            self._parts.node.nursery.start_soon(self._follow, self._following)

    def rest(self) -> None:
        """The path is alive, as far as we know."""
        if self._following is not None and not self._is_wanted:
            self._following.cancel()

    def stop(self) -> None:
        """There is another path."""
        if self._following is not None:
            self._following.cancel()

    def _dialer_is_here(self) -> None:
        """It knew before us that it is time."""
        self._is_wanted = True
        self.begin()

    async def follow(self) -> None:
        """Towards the dialer, until cancelled."""
        try:
            while True:
                self.begin()
                await trio.sleep(_PAUSE)
        finally:
            self.rest()

    async def _follow(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._follow_once()
        self._following, self._is_wanted = None, False

    async def _follow_once(self) -> None:
        parts, offer = self._parts, self._offer
        if not (parts.dials.is_new(offer.dial_id) and parts.dials.has_room(self._delivery.sender)):
            return
        listening = parts.node.listening_port
        own: WarmPort | None = None
        try:
            if listening is None or listening.port != self._number:
                # We have been elsewhere since, and it is the number that the dialer knows.
                own = open_agreed(self._number)
            warm = own or listening
            assert warm is not None
            report = Report(encode_node_id(self._delivery.sender), "listener", trio.current_time())
            token = OneTimeToken(offer.token)
            answer = parts.accepting(offer, warm)
            await self._run(PendingDial(self._delivery, offer, answer, token, report, warm=own), warm)
        except OSError:
            return  # the port is somebody else's now
        finally:
            if own is not None:
                own.close()

    async def _run(self, pending: PendingDial, warm: WarmPort) -> None:
        parts = self._parts
        parts.dials.add(pending)
        try:
            with pending.scope:
                pending.scope.deadline = trio.current_time() + DIAL_BUDGET
                async with trio.open_nursery() as nursery:
                    pending.nursery = nursery
                    try:
                        for listener in pending.warm.listeners if pending.warm is not None else ():
                            nursery.start_soon(
                                accept_connections,
                                listener,
                                lambda sock, _: nursery.start_soon(parts.doorkeeper.incoming, sock),
                            )
                        parts.follower.punch_towards(pending, warm)
                        await trio.sleep_forever()
                    finally:
                        pending.nursery = None
        finally:
            parts.dials.end(pending.offer.dial_id)
