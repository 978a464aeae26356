"""The NAT itself: packets that leave or arrive, and the time, go in; packets go out.

It neither routes nor counts hops: it stands on the link between a router, which does, and the rest of the world.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from typing import Any, NamedTuple

from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Behaviour,
    Hairpin,
    OnError,
    Opening,
    Outward,
    SequenceCheck,
    StrayAnswer,
)
from ntcpsock.testing.natlab.router.fragments import FragmentTable
from ntcpsock.testing.natlab.router.mapping import MappingTable, Session
from ntcpsock.testing.natlab.router.packet import (
    ACK,
    ECHO,
    ECHO_REPLY,
    FIN,
    FRAGMENTATION_NEEDED,
    ICMP,
    PORT_UNREACHABLE,
    RST,
    SYN,
    TCP,
    UDP,
    UNREACHABLE,
    BadPacket,
    Endpoint,
    Packet,
    icmp_error_for,
    reset_for,
)
from ntcpsock.testing.natlab.router.tracking import Connection


class Output(NamedTuple):
    """A packet that comes out of a NAT."""

    outward: bool
    """Towards the world; else towards the hosts behind."""
    data: bytearray
    fresh: bool = False
    """It is not the packet that went in, so what the link said of that one does not hold for it."""


class _Fate(NamedTuple):
    """What became of the first fragment of a datagram."""

    source: Endpoint
    target: Endpoint
    outward: bool


class Nat:
    """A NAT, or a firewall, that behaves as `behaviour` says.

    public: its address in the world. gateway: the address that its router uses itself.
    blackholes: networks that it sends nothing to and takes nothing from, outside.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        public: int,
        gateway: int,
        blackholes: Sequence[IPv4Network] = (),
        *,
        seed: int | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.dropped: Counter[str] = Counter()
        """Packets that went no further, by reason."""
        self._public = public
        self._gateway = gateway
        self._blackholes = [(int(net.network_address), int(net.netmask)) for net in blackholes]
        self._table = MappingTable(behaviour, public, random.Random(seed))
        self._checked = behaviour.tcp.sequence_check is SequenceCheck.CONNTRACK
        self._one_sided = behaviour.tcp.opening is Opening.ONE_SIDED
        self._fragments: tuple[FragmentTable[_Fate], FragmentTable[_Fate]] = (
            FragmentTable(),
            FragmentTable(),
        )

    def outbound(self, data: bytearray, now: float, *, partial: bool = False) -> list[Output]:
        """A packet from behind. `partial`: its transport checksum is not finished. `data` is changed in place."""
        return self._take(data, now, partial, 0)

    def inbound(self, data: bytearray, now: float, *, partial: bool = False) -> list[Output]:
        """A packet from the world; as `outbound`."""
        return self._take(data, now, partial, 1)

    def forget(self) -> None:
        """Lose all mappings, as a restart does."""
        self._table.clear()
        self._fragments = (FragmentTable(), FragmentTable())

    def forward(self, port: int, inner: Endpoint | None) -> None:
        """Lead TCP connections to a public port to an inner endpoint, or (None) no longer."""
        self._table.forward(TCP, port, inner)

    def mappings(self, now: float) -> list[dict[str, Any]]:
        """The mappings in force: protocol, inner and outer endpoint, remote endpoints; addresses are numbers."""
        return [
            {
                "protocol": {TCP: "tcp", UDP: "udp"}.get(entry.protocol, "icmp"),
                "inner": entry.inner,
                "outer": entry.outer,
                "remotes": list(entry.sessions),
            }
            for entry in self._table.mappings(now)
        ]

    def _take(self, data: bytearray, now: float, partial: bool, side: int) -> list[Output]:
        if len(data) >= 40 and data[0] >> 4 == 6:
            return [Output(side == 0, data)]  # IPv6 is routed, and filtered by the router
        try:
            packet = Packet(data, partial=partial)
        except BadPacket:
            return self._drop("malformed")
        handle = self._arrive if side else self._leave
        if packet.later_fragment or packet.more_fragments:
            return self._take_fragment(packet, now, self._fragments[side], handle)
        return handle(packet, now)

    def _take_fragment(
        self,
        packet: Packet,
        now: float,
        table: FragmentTable[_Fate],
        handle: Callable[[Packet, float], list[Output]],
    ) -> list[Output]:
        key = table.key(packet)
        if packet.later_fragment:
            fate = table.later(packet, key, now)
            return [] if fate is None else [_follow(packet, fate, fresh=False)]
        outputs = handle(packet, now)
        if not outputs or outputs[0].fresh:
            return outputs
        fate = _Fate(packet.source, packet.target, outputs[0].outward)
        held = table.first(key, fate, now)
        return outputs + [_follow(Packet(data), fate, fresh=True) for data in held]

    def _leave(self, packet: Packet, now: float) -> list[Output]:
        if self._is_blackholed(packet.target[0]):
            return self._drop("private target")
        if packet.quoted is not None:
            return self._leave_error(packet, packet.quoted, now)
        if not self._may_leave(packet):
            return self._drop("outward")
        session = self._leaving_session(packet, now)
        if session is None:
            return []
        inner = packet.source
        packet.set_source(session.mapping.outer)
        if self.behaviour.translates and packet.target[0] == self._public:
            return self._turn(packet, inner, now)
        return [Output(True, packet.data)]

    def _leaving_session(self, packet: Packet, now: float) -> Session | None:
        remote = _remote(packet.protocol, packet.target)
        session = self._table.outbound(packet.protocol, packet.source, remote, now)
        if packet.protocol == TCP:
            if session is not None and self._starts_anew(session, packet):
                self._table.close(session)
                session = None
            flags = packet.tcp_fields[2]
            if session is None and not self._may_open(flags):
                self._drop("no session")
                return None
        if session is None:
            session = self._table.open(packet.protocol, packet.source, remote, now)
            if session is None:
                self._drop("full")
                return None
        if session.connection is not None:
            if self._one_sided and not session.connection.is_one_sided(packet, 0):
                self._drop("opening")
                return None
            fits = session.connection.take(packet, 0, checked=self._checked)
            if self._checked and not fits:
                self._drop("sequence")
                return None
        self._table.refresh(session, now, outward=True)
        self._end_attempt(session, packet)
        return session

    def _starts_anew(self, session: Session, packet: Packet) -> bool:
        return (
            self.behaviour.tcp.allocation is Allocation.PER_SESSION
            and session.connection is not None
            and session.connection.is_new_attempt(packet)
        )

    def _may_open(self, flags: int) -> bool:
        """Whether an outgoing segment without a session may make one: a SYN, or a connection older than the table."""
        if flags & (RST | FIN) or not flags & (SYN | ACK):
            return False
        return not ((self._checked or self._one_sided) and flags & SYN and flags & ACK)

    def _end_attempt(self, session: Session, packet: Packet) -> None:
        """Where openings are one-sided, a reset lets either side open anew."""
        if self._one_sided and session.connection is not None and packet.tcp_fields[2] & RST:
            session.connection = Connection()

    def _turn(self, packet: Packet, inner: Endpoint, now: float) -> list[Output]:
        """A packet to a public endpoint of this NAT itself."""
        hairpin = self._table.words(packet.protocol).hairpin
        if hairpin is Hairpin.NONE:
            return self._drop("hairpin")
        outputs = []
        for output in self._enter(packet, now):
            if output.outward:  # an answer to a stray packet, for the sender in here
                outputs += self._arrive(Packet(output.data), now)
                continue
            if hairpin is Hairpin.INTERNAL:
                packet.set_source(inner)
            outputs.append(output)
        return [
            Output(False, output.data, output.fresh or output.data is not packet.data) for output in outputs
        ]

    def _leave_error(self, packet: Packet, quoted: Packet, now: float) -> list[Output]:
        """An ICMP error about a packet that has come in (RFC 5508 section 4.2)."""
        remote = _remote(quoted.protocol, quoted.source)
        session = self._table.outbound(quoted.protocol, quoted.target, remote, now)
        if session is None:
            return self._drop("error about no session")
        if self.behaviour.translates:
            quoted.set_target(session.mapping.outer)
            packet.set_source((self._public, 0))
            packet.finish_quote()
        return [Output(True, packet.data)]

    def _arrive(self, packet: Packet, now: float) -> list[Output]:
        if self._is_blackholed(packet.source[0]):
            return self._drop("private source")
        if self.behaviour.translates and packet.target[0] != self._public:
            return self._drop("not for us")
        if packet.quoted is not None:
            return self._arrive_error(packet, packet.quoted, now)
        if packet.protocol not in (TCP, UDP) and not (
            packet.protocol == ICMP and packet.icmp_kind[0] == ECHO_REPLY
        ):
            return self._drop("protocol")
        return self._enter(packet, now)

    def _enter(self, packet: Packet, now: float) -> list[Output]:
        entry = self._table.inbound(packet.protocol, packet.target, now)
        session = None
        if self._refuses_syn(packet):
            return self._answer_stray(packet)
        if entry is not None:
            session = self._table.arriving(entry, _remote(packet.protocol, packet.source), now)
        if session is None:
            return self._answer_stray(packet)
        if session.connection is not None:
            if self._one_sided and not session.connection.is_one_sided(packet, 1):
                return self._drop("opening")
            fits = session.connection.take(packet, 1, checked=self._checked)
            if self._checked and not fits:
                return self._drop("sequence")
        self._table.refresh(session, now, outward=False)
        self._end_attempt(session, packet)
        packet.set_target(session.mapping.inner)
        if packet.protocol == TCP and packet.tcp_fields[2] & RST and self.behaviour.tcp.rst is OnError.KILLS:
            self._table.close(session)
        return [Output(False, packet.data)]

    def _refuses_syn(self, packet: Packet) -> bool:
        return (
            self.behaviour.tcp.opening is Opening.OUTGOING
            and packet.protocol == TCP
            and packet.tcp_fields[2] & (SYN | ACK) == SYN
        )

    def _answer_stray(self, packet: Packet) -> list[Output]:
        self.dropped["stray"] += 1
        answer = self._table.words(packet.protocol).answer
        if answer is StrayAnswer.DROP or packet.protocol == ICMP:
            return []
        if packet.protocol == TCP:
            if packet.tcp_fields[2] & RST:
                return []
            if answer is StrayAnswer.RST:
                return [Output(True, reset_for(packet), True)]
        sender = packet.target[0]
        return [Output(True, icmp_error_for(packet, sender, UNREACHABLE, PORT_UNREACHABLE), True)]

    def _arrive_error(self, packet: Packet, quoted: Packet, now: float) -> list[Output]:
        """An ICMP error about a packet that has left (RFC 4787 REQ-12, RFC 5382 REQ-9, RFC 5508 section 4.1)."""
        session = self._table.known(
            quoted.protocol, quoted.source, _remote(quoted.protocol, quoted.target), now
        )
        if session is None:
            return self._drop("error about no session")
        quoted.set_source(session.mapping.inner)
        packet.set_target((session.mapping.inner[0], 0))
        packet.finish_quote()
        if (
            self._table.words(quoted.protocol).icmp_error is OnError.KILLS
            and packet.icmp_kind != (UNREACHABLE, FRAGMENTATION_NEEDED)  # path MTU discovery goes on
        ):
            self._table.close(session)
        elif self._one_sided and session.connection is not None and session.connection.unanswered:
            session.connection = Connection()
        return [Output(False, packet.data)]

    def _may_leave(self, packet: Packet) -> bool:
        if packet.protocol not in (TCP, UDP) and not (
            packet.protocol == ICMP and packet.icmp_kind[0] == ECHO
        ):
            return False
        outward = self.behaviour.outward
        if outward is Outward.ALL or packet.source[0] == self._gateway:
            return True
        if outward is Outward.NO_UDP:
            return packet.protocol != UDP
        return outward is Outward.ONLY_443 and packet.protocol == TCP and packet.target[1] == 443

    def _is_blackholed(self, address: int) -> bool:
        return any(address & mask == network for network, mask in self._blackholes)

    def _drop(self, reason: str) -> list[Output]:
        self.dropped[reason] += 1
        return []


def _remote(protocol: int, endpoint: Endpoint) -> Endpoint:
    """A query has one identifier for both ends; the far end is an address alone."""
    return (endpoint[0], 0) if protocol == ICMP else endpoint


def _follow(packet: Packet, fate: _Fate, *, fresh: bool) -> Output:
    packet.set_source(fate.source)
    packet.set_target(fate.target)
    return Output(fate.outward, packet.data, fresh)
