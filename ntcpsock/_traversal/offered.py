"""What the parts of the listener's side of one dial share: whose offer it is, and where we may aim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.pending import PendingDial
from ntcpsock._traversal.punch.message import Candidate, NATProfile, Offer, Transport
from ntcpsock._traversal.side import SideContext
from ntcpsock._traversal.signals import AskToSpoof, Talk
from ntcpsock._traversal.start import order_of_start, waiting_time


class OfferedContext(SideContext, Protocol):
    """What the attempts of a listener need of its node."""

    @property
    def private(self) -> bool: ...
    @property
    def listening_port(self) -> WarmPort | None: ...


@dataclass(frozen=True)
class Offered:
    """One dial's, as its listener sees it."""

    node: OfferedContext
    pending: PendingDial

    @property
    def offer(self) -> Offer:
        """The newest one."""
        return self.pending.offer

    @property
    def techniques(self) -> Sequence[str]:
        """Those that are allowed for what is dialled for."""
        return self.node.datagram_techniques if self.offer.kind == "datagram" else self.node.techniques

    @property
    def is_answered_first(self) -> bool:
        """Whether the dialer waits for our answer, having no card: it did not get one, or did not ask the broker."""
        return self.node.private or self.pending.delivery.answer is not None

    @property
    def rtt(self) -> float:
        """Both ways to the broker together: right when the broker is on the path, and never far too short."""
        return self.offer.broker_rtt + self.node.broker_rtt

    @property
    def proven_host(self) -> str:
        return self.node.surroundings.standpoint.proven(self.pending.delivery.observed_host)

    @property
    def also_proven(self) -> tuple[str, ...]:
        return self.node.surroundings.standpoint.also_proven(self.pending.delivery.also_observed)

    def targets(self, transport: Transport) -> tuple[Candidate, ...]:
        """Those of the dialer's candidates that may be aimed at."""
        standpoint = self.node.surroundings.standpoint
        return standpoint.targets(self.offer.candidates, transport, self.proven_host, self.also_proven)

    def waiting_time(self, theirs: NATProfile, ours: NATProfile) -> float:
        """Seconds from the offer's arrival until our attempts begin."""
        if self.is_answered_first and self.offer.round == 1:
            return 0.0  # the acceptor has waited for as long as the answer takes
        return waiting_time(
            "follower",
            order_of_start(theirs, ours, self.offer.turn),
            theirs,
            own_rtt=self.node.broker_rtt,
            other_rtt=self.offer.broker_rtt,
        )

    def talk(self, spoof: AskToSpoof | None = None) -> Talk:
        """With the dialer, in the offer's round."""
        assert self.pending.nursery is not None
        return Talk(
            self.offer.dial_id,
            self.offer.round,
            self.pending.mailbox,
            self.pending.nursery,
            partial(self.node.introductions.tell_dialer, self.pending.delivery),
            spoof,
        )
