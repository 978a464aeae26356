"""The dials that a listening node has let in, until their connections come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._report import Report
from ntcpsock._traversal.aim import Aim
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.nominate import OneTimeToken
from ntcpsock._traversal.punch.message import Answer, Offer
from ntcpsock._traversal.signals import Mailbox

# Dials under way: from all nodes, and from one.
MAX_PENDING = 512
MAX_PENDING_PER_NODE = 128

# Dial ids that were used up or expired, kept so that a repeated offer finds no second life.
REMEMBERED_DIALS = 4096


@dataclass
class PendingDial:
    """An offer that was let in, until its connection comes. warm: the port of its attempts; None: the node's."""

    delivery: Delivery
    offer: Offer
    answer: Answer
    token: OneTimeToken
    report: Report
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    dialled: set[tuple[Endpoint, str]] = field(default_factory=set)
    aim: Aim = field(default_factory=Aim)
    datagram_aim: Aim = field(default_factory=Aim)
    mailbox: Mailbox = field(default_factory=Mailbox)
    rounds: set[int] = field(default_factory=set)
    checked: set[int] = field(default_factory=set)
    joint_rounds: int = 0
    nursery: trio.Nursery | None = None
    warm: WarmPort | None = None


class PendingDials:
    """By dial id: those under way, those that have ended, and those whose connection came before the offer.

    standing: what begins a dial that was agreed upon before: its connection may come before we know that it is time.
    """

    def __init__(self) -> None:
        self.under_way: dict[bytes, PendingDial] = {}
        self.ended: OrderedDict[bytes, None] = OrderedDict()
        self.awaited: dict[bytes, trio.Event] = {}
        self.standing: dict[bytes, Callable[[], None]] = {}

    def is_new(self, dial_id: bytes) -> bool:
        return dial_id not in self.under_way and dial_id not in self.ended

    def has_room(self, sender: bytes) -> bool:
        same = sum(1 for pending in self.under_way.values() if pending.delivery.sender == sender)
        return len(self.under_way) < MAX_PENDING and same < MAX_PENDING_PER_NODE

    def add(self, pending: PendingDial) -> None:
        dial_id = pending.offer.dial_id
        self.under_way[dial_id] = pending
        if dial_id in self.awaited:
            self.awaited[dial_id].set()

    def end(self, dial_id: bytes) -> None:
        del self.under_way[dial_id]
        if dial_id in self.standing:
            return
        self.ended[dial_id] = None
        while len(self.ended) > REMEMBERED_DIALS:
            self.ended.popitem(last=False)

    async def arrived(self, dial_id: bytes) -> None:
        """Until an offer is known. On short paths a connection can overtake it, which came by way of the broker."""
        if not self.is_new(dial_id):
            return
        if dial_id in self.standing:
            self.standing[dial_id]()
        event = self.awaited.setdefault(dial_id, trio.Event())
        try:
            await event.wait()
        finally:
            self.awaited.pop(dial_id, None)

    async def token(self, dial_id: bytes) -> bytes | None:
        """The token of a dial, when its offer is known; None where it is of no use any more."""
        await self.arrived(dial_id)
        pending = self.under_way.get(dial_id)
        return None if pending is None or pending.token.spent else pending.token.token
