"""The listener's side of a dial: offers in, answers out, streams and roads to whoever listens.

The follower of every race: `follow.py` makes its attempts towards the dialer, and `prove.py` authenticates whoever
connects, by the one-time token of a pending offer.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio
from msgspec import structs

from ntcpsock._address import encode_node_id
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._report import PeerInfo, Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier as TLSCarrier
from ntcpsock._session.tls import Certificate
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.candidate import name_of_connection
from ntcpsock._traversal.follow import DIAL_BUDGET, Follower
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.nominate import OneTimeToken
from ntcpsock._traversal.offered import Offered, OfferedContext
from ntcpsock._traversal.opened import make_road, make_stream
from ntcpsock._traversal.pending import PendingDial, PendingDials
from ntcpsock._traversal.prove import Doorkeeper
from ntcpsock._traversal.punch.driver import keep_mapping_alive
from ntcpsock._traversal.punch.message import Answer, DialKind, Offer, Signal
from ntcpsock._traversal.signals import WITHDRAWN
from ntcpsock._traversal.standing import StandingOffer
from ntcpsock._traversal.start import LONGEST_WAIT

log = logging.getLogger("ntcpsock")


class Accepted(Protocol):
    """Who looks after the streams that were accepted, and moves them."""

    def accepted(self, stream: NTCPStream, pending: PendingDial) -> None: ...
    def knows(self, session_id: bytes, key: bytes) -> bool: ...
    def arrived(self, carrier: Carrier, dial_id: bytes, key: bytes, technique: str) -> None: ...
    def stands(self, session_id: bytes, standing: StandingOffer) -> None: ...


class AcceptContext(OfferedContext, Protocol):
    """What the acceptor needs of its node."""

    @property
    def certificate(self) -> Certificate: ...
    @property
    def offers_raw(self) -> bool: ...
    def listens(self, port: int, kind: DialKind) -> bool: ...
    async def admits(self, port: int, delivery: Delivery, kind: DialKind) -> bool: ...
    def hand_over(self, stream: NTCPStream) -> bool: ...
    def take_road(self, opened: OpenRoad) -> None: ...
    @property
    def window(self) -> int: ...
    @property
    def moving(self) -> Accepted: ...


class Acceptor:
    """Owns the pending dials of a node. `offered` runs as a task of the node's nursery."""

    def __init__(self, node: AcceptContext) -> None:
        self.node = node
        self.dials = PendingDials()
        self.doorkeeper = Doorkeeper(node, self.dials, self._finish, self._count)
        self.follower = Follower(node, self.doorkeeper, self._count)
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
        if offer.resume is not None:
            if not self.node.moving.knows(offer.resume, delivery.sender):
                self._count("unknown stream")
                self.node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
                return
        elif not await self._may_come(delivery, offer):
            return
        if offer.encryption != self.node.encryption:
            self._refuse_encryption(delivery, offer)
            return
        warm = self.node.listening_port
        if warm is not None and offer.standing:
            self._keep(delivery, offer, warm)
            return
        if warm is None or not self.dials.has_room(delivery.sender):
            self.node.introductions.reply(delivery, Answer(offer.dial_id, "busy"))
            return
        if self.dials.is_new(offer.dial_id):  # admits() may have waited
            await self._run(delivery, offer, warm)

    async def _may_come(self, delivery: Delivery, offer: Offer) -> bool:
        """Whether the sender of an offer gets anywhere on its port. If not, it may have been told so."""
        if not await self.node.admits(offer.port, delivery, offer.kind):
            self._count("not allowed")
            if not self.node.private:
                # Somebody is known to be here; the port looks as if nobody listened.
                self.node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
            return False
        if not self.node.listens(offer.port, offer.kind):
            self.node.introductions.reply(delivery, Answer(offer.dial_id, "refused"))
            return False
        return True

    def _refuse_encryption(self, delivery: Delivery, offer: Offer) -> None:
        """The dialer hears what it has to change; whoever runs this node finds it in the log."""
        if not self._count("encryption mismatch"):
            log.warning(
                'refused %s: it wants encryption="%s", and this node says "%s"; further ones are only counted',
                delivery.sender_name or encode_node_id(delivery.sender),
                offer.encryption,
                self.node.encryption,
            )
        answer = Answer(offer.dial_id, "refused", demands=self.node.encryption)
        self.node.introductions.reply(delivery, answer)

    def _keep(self, delivery: Delivery, offer: Offer, warm: WarmPort) -> None:
        """For later: only one who has the stream, and says so by the stream itself, has that wish."""
        if offer.resume is not None and delivery.answer is not None:
            standing = StandingOffer(self, delivery, offer, warm.port)
            self.node.moving.stands(offer.resume, standing)
            standing.answer()

    def accepting(self, offer: Offer, warm: WarmPort) -> Answer:
        """The answer that lets a dialer in."""
        return Answer(
            offer.dial_id,
            "accepted",
            self.node.certificate.fingerprint,
            warm.offered,
            warm.profile,
            self.node.broker_rtt,
            raw=self.node.offers_raw,
            relayed="relay" in self.node.techniques,
            udp_profile=warm.udp_profile,
            turn=bool(self.node.turn_servers),
            relay_times=tuple(
                (word, min(60_000, round(seconds * 1000))) for word, seconds in self.node.relay_times.items()
            ),
        )

    async def _run(self, delivery: Delivery, offer: Offer, warm: WarmPort) -> None:
        answer = self.accepting(offer, warm)
        report = Report(encode_node_id(delivery.sender), "listener", trio.current_time())
        pending = PendingDial(delivery, offer, answer, OneTimeToken(offer.token), report)
        self.dials.add(pending)
        try:
            self.node.introductions.reply(delivery, answer)
            if Offered(self.node, pending).is_answered_first:
                # The dialer had no card: it starts when this answer arrives, and so do we.
                await trio.sleep(min(Offered(self.node, pending).rtt / 2, LONGEST_WAIT))
            with pending.scope:
                pending.scope.deadline = trio.current_time() + DIAL_BUDGET
                async with trio.open_nursery() as nursery:
                    pending.nursery = nursery
                    try:
                        self.follower.punch_towards(pending, warm)
                        # The dialer may also reach our listener by itself: hold the token for the whole budget.
                        await trio.sleep_forever()
                    finally:
                        # An offer that is repeated while the attempts end finds no nursery that is closed already.
                        pending.nursery = None
        finally:
            self.dials.end(offer.dial_id)

    def _repeated(self, pending: PendingDial, delivery: Delivery, offer: Offer) -> None:
        """The dialer has not seen our answer yet, or brings more candidates in a later round."""
        warm = self.node.listening_port
        if warm is not None:
            pending.answer = structs.replace(pending.answer, candidates=warm.offered)
        self.node.introductions.reply(delivery, pending.answer)
        is_open = pending.nursery is not None and not pending.scope.cancel_called
        if offer.round not in pending.rounds and warm is not None and is_open:
            pending.offer = offer
            self.follower.punch_towards(pending, warm)

    def heard(self, delivery: Delivery, signal: Signal) -> None:
        """A dialer's word to a joint technique of its dial, or its last one."""
        pending = self.dials.under_way.get(signal.dial_id)
        if pending is not None and pending.delivery.sender == delivery.sender:
            if signal.name == WITHDRAWN:
                pending.scope.cancel()
            else:
                pending.mailbox.take(signal)

    def _finish(
        self,
        pending: PendingDial,
        carrier: Carrier | PlainCarrier | BareRoad,
        rest: bytes,
        technique: str | None,
    ) -> None:
        if technique is None:
            warm = self.node.listening_port
            usable = Offered(self.node, pending).targets("tcp")
            technique = name_of_connection(warm.candidates if warm else (), usable, carrier.remote)
        report = pending.report
        report.seconds = trio.current_time() - report.started
        if isinstance(carrier, TLSCarrier | PlainCarrier):
            keep_mapping_alive(carrier.socket)
        sender = pending.delivery
        if pending.offer.kind == "datagram":
            self.node.take_road(
                make_road(carrier, technique, sender.sender, sender.sender_name, report, rest)
            )
            pending.scope.cancel()
            return
        assert not isinstance(carrier, BareRoad), "made for datagrams alone"
        if pending.offer.resume is not None:
            if not isinstance(carrier, PlainCarrier):
                self.node.moving.arrived(carrier, pending.offer.dial_id, sender.sender, technique)
            pending.scope.cancel()
            return
        peer = PeerInfo(
            sender.sender_name,
            encode_node_id(sender.sender),
            pending.offer.port,
            pending.offer.source_port,
        )
        stream = make_stream(carrier, technique, peer, report, rest, window=self.node.window)
        self.node.moving.accepted(stream, pending)
        if not self.node.hand_over(stream):
            self._count("backlog full")
            stream.reset()
        pending.scope.cancel()

    def _count(self, reason: str) -> int:
        """Count a refusal; how many there were before."""
        before = self.refused.get(reason, 0)
        self.refused[reason] = before + 1
        return before
