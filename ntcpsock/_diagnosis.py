"""What is known of the network that a node is in: plain data, made by `ntcpsock.trio.diagnose`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ntcpsock._address import Endpoint

Verdict = Literal["yes", "perhaps", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was asked.

    value: a word of RFC 4787 or 5382, "yes", "no", "none" (it does not arise here) or "unknown"; possible: what an
    unknown may be, empty for anything; why: the reason, in words; evidence: which question gave which observation.
    """

    value: str = "unknown"
    possible: tuple[str, ...] = ()
    why: str = ""
    evidence: tuple[str, ...] = ()

    @property
    def truth(self) -> bool | None:
        """True for "yes", False for "no", None for everything else."""
        return {"yes": True, "no": False}.get(self.value)

    @property
    def is_known(self) -> bool:
        return self.value != "unknown"


@dataclass(frozen=True, slots=True)
class Allocation(Finding):
    """Which public port a fresh mapping gets: "none" (nothing is translated), "preserving", "offset", "sequential",
    "band", "random".

    offset: public port less local one; step: of a sequential one; low, high: of a band.
    """

    offset: int | None = None
    step: int | None = None
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Lifetime(Finding):
    """How long an idle mapping lives, in seconds: one was alive after `longest_alive`, dead after `shortest_dead`."""

    longest_alive: float | None = None
    shortest_dead: float | None = None


@dataclass(frozen=True, slots=True)
class TransportFindings:
    """Of UDP or TCP.

    reachable: whether servers answer; translated: whether there is a NAT; mapping: RFC 4787 section 4.1, and
    "session-dependent"; filtering: section 5; stray: what a SYN that is not let in gets, "drop", "reset" or "icmp";
    hairpin: section 6; fragments: whether datagrams of two packets pass. local: this host's address; public: those
    that servers saw.
    """

    reachable: Finding = Finding()
    translated: Finding = Finding()
    mapping: Finding = Finding()
    filtering: Finding = Finding()
    stray: Finding = Finding()
    allocation: Allocation = Allocation()
    hairpin: Finding = Finding()
    fragments: Finding = Finding()
    lifetime: Lifetime = Lifetime(why="not asked")
    local: str | None = None
    public: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Discovery:
    """What the NAT does.

    port_mapping: whether the router maps ports that it is asked for (PCP, NAT-PMP, UPnP-IGD); ipv6: whether this host
    reaches a server over IPv6; ipv6_filtering: who gets in there. https: whether TCP to port
    443 gets out, asked where little else seems to. evidence: every question with its outcome; seconds: how long they
    took.
    """

    udp: TransportFindings
    tcp: TransportFindings
    double_nat: Finding = Finding()
    ipv6: Finding = Finding()
    ipv6_filtering: Finding = Finding(why="not asked")
    captive_portal: Finding = Finding()
    https: Finding = Finding(why="not asked")
    evidence: tuple[str, ...] = ()
    servers: tuple[Endpoint, ...] = ()
    seconds: float = 0.0
    port_mapping: Finding = Finding(why="not asked")


@dataclass(frozen=True, slots=True)
class Prospect:
    """Whether connections to a kind of peer will work. technique: of `Config.techniques`, empty where none helps;
    connections: that both sides together open for one round of it."""

    peer: str
    verdict: Verdict
    technique: str = ""
    why: str = ""
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Survival:
    """Whether open connections go on after an event, in words, if the other end is set like this one."""

    event: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class BrokerState:
    """address: [wss://]HOST:PORT as configured, None where there is none; why: it was not reached; rtt: seconds;
    transport: "udp" or "tcp", by which it was; relays: how many it has."""

    address: str | None = None
    reached: bool = False
    why: str = ""
    rtt: float | None = None
    transport: str = ""
    relays: int = 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `ntcp doctor` shows. servers_guessed: the STUN servers are where they usually are, since the broker did not
    say; unknown: what could not be found out, and why; survivals: what open connections outlive."""

    summary: str
    discovery: Discovery
    broker: BrokerState
    servers_guessed: bool = False
    prospects: tuple[Prospect, ...] = ()
    advice: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = field(default=())
    survivals: tuple[Survival, ...] = ()

    @property
    def works(self) -> bool:
        """Whether connections by name can work at all: TCP gets out, and the broker, if there is one, answers."""
        return self.discovery.tcp.reachable.truth is True and (
            self.broker.reached or self.broker.address is None
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; docs/guide/doctor.md describes the fields."""
        fields = asdict(self)
        discovery = fields.pop("discovery")
        fields["unknown"] = [{"what": what, "why": why} for what, why in self.unknown]
        discovery["servers"] = [str(server) for server in self.discovery.servers]
        return {"summary": fields.pop("summary"), "works": self.works, **fields, **discovery}
