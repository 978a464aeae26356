"""What the parts of one dial's race share: whom it is for, from which ports, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import Prefer
from ntcpsock._errors import BadMessage
from ntcpsock._raw.packet import Syn
from ntcpsock._report import Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad, open_bare_road
from ntcpsock._session.quic.carrier import quic_client_handshake
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.broker.driver import Introduction
from ntcpsock._traversal.candidate import name_of_connection
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.message import derive_credentials
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.datagram_plan import DatagramPlan, handshake_rtt
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.mapping import DialMapping
from ntcpsock._traversal.punch.message import Candidate, Card, Transport, decode_card_untrusted
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.side import SideContext
from ntcpsock._traversal.strategies.datagrams import DatagramAccess


class Dialled(Protocol):
    """Who looks after the streams that were dialled, and moves them."""

    def dialled(self, stream: NTCPStream, dial: Dial) -> None: ...


class DialContext(SideContext, Protocol):
    """What a dial needs of its node."""

    @property
    def prefer(self) -> Prefer: ...
    @property
    def missing_for_raw(self) -> str | None: ...
    @property
    def broker_spoofs(self) -> bool: ...
    async def take_port(self, again: tuple[int, int] | None = None) -> WarmPort:
        """A port for one dial, gathered; the dial closes it. again: the numbers of TCP's and UDP's port that it is to
        have."""
        ...

    @property
    def port_mapping_refusal(self) -> str | None: ...
    def map_port(self, port: int) -> DialMapping: ...
    @property
    def window(self) -> int:
        """Bytes a direction that a stream keeps so that it can move."""
        ...

    @property
    def moving(self) -> Dialled: ...


@dataclass
class Course:
    """One dial's. ports: the one of its first offer, then those of later rounds; deadline: of all attempts."""

    node: DialContext
    dial: Dial
    card: Card
    ports: list[WarmPort]
    report: Report
    deadline: float
    #: What a mapped round has asked of the router.
    mapping: DialMapping | None = field(default=None, init=False)

    @property
    def warm(self) -> WarmPort:
        """The port of the first offer."""
        return self.ports[0]

    @property
    def techniques(self) -> Sequence[str]:
        """Those that are allowed for what is dialled for."""
        allowed = self.node.datagram_techniques if self.dial.kind == "datagram" else self.node.techniques
        return [name for name in allowed if name not in self.dial.useless] if self.dial.useless else allowed

    @property
    def rtt(self) -> float:
        """The path's round trip, estimated: both ways to the broker together."""
        return self.card.broker_rtt + self.node.broker_rtt

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - trio.current_time())

    @property
    def proven_host(self) -> str:
        return self.node.surroundings.standpoint.proven(self.dial.observed_host)

    @property
    def also_proven(self) -> tuple[str, ...]:
        return self.node.surroundings.standpoint.also_proven(self.dial.also_observed)

    def mapped_ports(self, transport: Transport) -> Collection[int]:
        """Ports that our NAT holds for us, this dial's own included."""
        own = (port for warm in self.ports for port in warm.mapped_ports(transport))
        return {*self.node.mapped_ports(transport), *own}

    def targets(self, candidates: Sequence[Candidate], transport: Transport) -> tuple[Candidate, ...]:
        """Those of the listener's candidates that may be aimed at."""
        standpoint = self.node.surroundings.standpoint
        return standpoint.targets(candidates, transport, self.proven_host, self.also_proven)

    def newest_candidates(self, introduction: Introduction) -> Sequence[Candidate]:
        """What the listener said last: a router may have mapped its port meanwhile. Its card comes along with each
        introduction, and a listener that keeps it to itself repeats its answer."""
        if introduction.card is not None:
            with suppress(BadMessage):
                return decode_card_untrusted(introduction.card, self.dial.key).candidates
        return (self.dial.answer or self.card).candidates

    def datagram_access(
        self, plan: DatagramPlan | None, round_number: int, take_port: Callable[[], UdpPort | None]
    ) -> DatagramAccess:
        """What an attempt over UDP in a round needs. take_port: gives the port of the direct ones."""
        node = self.node
        return DatagramAccess(
            plan,
            derive_credentials(self.dial.token, round_number, "dialer"),
            take_port,
            node.nursery,
            self._authenticate_path,
            (self.proven_host, *self.also_proven),
            consent_interval=node.consent_interval,
            birthday_sockets=node.birthday_sockets,
            birthday_rate=node.birthday_rate,
        )

    async def _authenticate_path(self, path: PunchedPath) -> Carrier | BareRoad:
        if self.dial.encryption == "off":
            return await open_bare_road(path, self.dial.dial_id, self.dial.token)
        return await quic_client_handshake(
            path, self.card.fingerprint, nursery=self.node.nursery, round_trip=handshake_rtt(self.rtt)
        )

    def offer(self, round_number: int, port: WarmPort, technique: str = "") -> bytes:
        return self.dial.offer(round_number, port, self.node.broker_rtt, technique)

    async def tell(self, payload: bytes) -> None:
        """Bring a sealed payload to the listener, once. Raises OSError."""
        await self.node.introductions.introduce(self.dial, payload)

    async def spoof(self, local: Endpoint, remote: Endpoint, syn: Syn) -> None:
        await self.node.introductions.spoof(self.dial.dial_id, self.dial.key, local, remote, syn)


def listen_at(race: Race, port: WarmPort, targets: Sequence[Candidate]) -> None:
    """Let what reaches `port` over TCP take part in the race."""
    race.listen(port.listeners, lambda seen: name_of_connection(port.candidates, targets, seen))
