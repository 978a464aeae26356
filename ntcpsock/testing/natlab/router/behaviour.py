"""What a NAT does, in the words of RFC 4787 (UDP) and RFC 5382 (TCP), for both protocols apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Mapping(Enum):
    """When two flows from one inner endpoint share a public one (RFC 4787 section 4.1)."""

    ENDPOINT_INDEPENDENT = "eim"
    ADDRESS_DEPENDENT = "adm"
    ADDRESS_AND_PORT_DEPENDENT = "apdm"


class Filtering(Enum):
    """Whose packets a mapping lets in (RFC 4787 section 5)."""

    ENDPOINT_INDEPENDENT = "eif"
    ADDRESS_DEPENDENT = "adf"
    ADDRESS_AND_PORT_DEPENDENT = "apdf"


class Allocation(Enum):
    """Which public port a new mapping gets (RFC 4787 section 4.2)."""

    PRESERVING = "preserving"
    """The inner port plus `offset`; the next free one above where that is taken."""
    SEQUENTIAL = "sequential"
    """The last one given plus `delta`."""
    RANDOM = "random"
    """Any free one from 1024 on."""
    BAND = "band"
    """A random one of a block of `band` ports that belongs to the inner address (RFC 6888 calls it a port set)."""
    PER_SESSION = "per-session"
    """A random one of the band for each TCP connection, an identical 5-tuple included; `mapping` says nothing then."""


class Hairpin(Enum):
    """Packets from inside to a public endpoint of the same NAT (RFC 4787 section 6)."""

    NONE = "none"
    EXTERNAL = "external"
    """They arrive, from the sender's public endpoint: as the RFC wants it."""
    INTERNAL = "internal"
    """They arrive, from the sender's inner endpoint."""


class StrayAnswer(Enum):
    """What a packet from outside that nothing lets in gets (RFC 5382 section 4.3)."""

    DROP = "drop"
    RST = "rst"
    """TCP: a reset, UDP: port unreachable."""
    ICMP = "icmp"
    """Port unreachable."""


class OnError(Enum):
    """What an inbound RST or ICMP error does to the session that it belongs to (it is always passed on)."""

    NOTHING = "nothing"
    KILLS = "kills"


class SequenceCheck(Enum):
    """Whether TCP segments must fit the connection."""

    NONE = "none"
    CONNTRACK = "conntrack"
    """As Linux' conntrack does it with its default settings: what does not fit is dropped."""


class Opening(Enum):
    """Which openings of a TCP connection pass. RFC 5382 REQ-2 wants all; Guha and Francis (IMC 2005) list by
    sequences what NATs refuse."""

    ANY = "any-opening"
    ONE_SIDED = "one-sided"
    """No simultaneous open: while a SYN is unanswered none passes the other way, and a SYN-ACK answers a SYN or is
    dropped. An RST or an ICMP error ends the attempt, and then either side may open."""
    OUTGOING = "no-syn-in"
    """No SYN comes in, whatever has left before: "SYN-out, SYN-in" is refused (16 % of NATs in that paper's draft)."""


class Outward(Enum):
    """What may leave at all, over IPv4."""

    ALL = "all"
    NO_UDP = "no-udp"
    ONLY_443 = "only-443"
    """TCP to port 443 (and nothing else, DNS neither)."""
    PROXY = "proxy"
    """Nothing but what the router itself sends; an HTTP proxy runs there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Protocol:
    mapping: Mapping = Mapping.ENDPOINT_INDEPENDENT
    filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    allocation: Allocation = Allocation.PRESERVING
    offset: int = 0
    """PRESERVING adds it to the inner port."""
    delta: int = 1
    """SEQUENTIAL's step."""
    band: int = 512
    """Ports of a block, a power of two: BAND and PER_SESSION."""
    hairpin: Hairpin = Hairpin.NONE
    answer: StrayAnswer = StrayAnswer.DROP
    icmp_error: OnError = OnError.NOTHING

    def __post_init__(self) -> None:
        if not 1 <= self.band <= 32768 or self.band & (self.band - 1):
            raise ValueError(f"a band of {self.band} ports: it must be a power of two up to 32768")
        if self.delta == 0:
            raise ValueError("a delta of 0 would give every mapping the same port")


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpBehaviour(_Protocol):
    """What happens to UDP (and to ICMP queries, as far as it applies)."""

    idle: float = 120.0
    """Seconds without a packet after which a mapping ends (RFC 4787 section 4.3)."""
    unreplied: float | None = None
    """The same while nothing has come back yet; None: `idle`."""
    refreshed_from_outside: bool = True
    """Whether packets from outside keep a mapping alive; those from inside always do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpBehaviour(_Protocol):
    """What happens to TCP."""

    rst: OnError = OnError.NOTHING
    sequence_check: SequenceCheck = SequenceCheck.NONE
    opening: Opening = Opening.ANY
    transitory: float = 240.0
    """Seconds for a connection being opened or closed (RFC 5382 section 4.4)."""
    established: float = 7440.0
    """Seconds for an open one that is idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """A kind of router, exactly. The default: endpoint-independent mapping, address-and-port-dependent filtering,
    ports preserved."""

    name: str = "custom"
    """What tables and pictures call it."""
    about: str = field(default="", compare=False)
    """Whom it stands for, in one line."""
    udp: UdpBehaviour = field(default_factory=UdpBehaviour)
    tcp: TcpBehaviour = field(default_factory=TcpBehaviour)
    translates: bool = True
    """False: a firewall in front of public addresses. It filters as `filtering` says."""
    lifetime: float | None = None
    """Seconds after which a mapping ends, used or not."""
    outward: Outward = Outward.ALL
    capacity: int = 16384
    """Sessions that the tables hold; what comes beyond is dropped, as real routers do."""

    def __str__(self) -> str:
        return self.name

    @property
    def sends_udp(self) -> bool:
        """Whether UDP gets out."""
        return self.outward is Outward.ALL

    @property
    def words(self) -> str:
        """Everything that a pair of hosts notices, in words that `parse_behaviour` takes."""
        parts = [] if self.translates else ["firewall"]
        if self.outward is not Outward.ALL:
            parts.append(self.outward.value)
        udp, tcp = _words(self.udp), _words(self.tcp)
        parts += [f"udp:{word}" for word in udp if word not in tcp]
        parts += [word for word in udp if word in tcp]
        parts += [f"tcp:{word}" for word in tcp if word not in udp]
        if self.lifetime is not None:
            parts.append(f"lifetime={self.lifetime:g}")
        return "+".join(parts)


def _words(protocol: UdpBehaviour | TcpBehaviour) -> list[str]:
    allocation = protocol.allocation.value
    if protocol.allocation is Allocation.SEQUENTIAL:
        allocation += f"={protocol.delta}"
    elif protocol.allocation is Allocation.PRESERVING and protocol.offset:
        allocation += f"={protocol.offset}"
    elif protocol.allocation in (Allocation.BAND, Allocation.PER_SESSION):
        allocation += f"={protocol.band}"
    words = [protocol.mapping.value, protocol.filtering.value, allocation, protocol.answer.value]
    if protocol.hairpin is not Hairpin.NONE:
        words.append(f"hairpin={protocol.hairpin.value}")
    if protocol.icmp_error is OnError.KILLS:
        words.append("icmp-kills")
    if isinstance(protocol, UdpBehaviour):
        words.append(f"idle={protocol.idle:g}")
        if protocol.unreplied is not None:
            words.append(f"unreplied={protocol.unreplied:g}")
        if not protocol.refreshed_from_outside:
            words.append("refresh-out")
        return words
    if protocol.rst is OnError.KILLS:
        words.append("rst-kills")
    if protocol.sequence_check is SequenceCheck.CONNTRACK:
        words.append("conntrack")
    if protocol.opening is not Opening.ANY:
        words.append(protocol.opening.value)
    return [*words, f"transitory={protocol.transitory:g}", f"established={protocol.established:g}"]
