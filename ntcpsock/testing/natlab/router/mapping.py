"""The table of mappings and their sessions, with everything that ends them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Behaviour,
    Filtering,
    Mapping,
    TcpBehaviour,
    UdpBehaviour,
)
from ntcpsock.testing.natlab.router.packet import TCP, Endpoint
from ntcpsock.testing.natlab.router.ports import PortAllocator
from ntcpsock.testing.natlab.router.tracking import Connection

_SWEEP_INTERVAL = 1.0

_Key = tuple[int | None, ...]


@dataclass(slots=True, eq=False)
class Session:
    """A flow between the owner of a mapping and one remote endpoint."""

    mapping: MappingEntry
    remote: Endpoint
    expires: float
    connection: Connection | None
    replied: bool = False


@dataclass(slots=True, eq=False)
class MappingEntry:
    """A public endpoint lent to an inner one."""

    protocol: int
    inner: Endpoint
    outer: Endpoint
    key: _Key
    ends: float | None
    sessions: dict[Endpoint, Session] = field(default_factory=dict)


class MappingTable:
    """All mappings of a router. Bounded by the behaviour's capacity."""

    def __init__(self, behaviour: Behaviour, public: int, rng: random.Random) -> None:
        self._behaviour = behaviour
        self._public = public
        self._udp_ports = PortAllocator(behaviour.udp, rng)
        self._tcp_ports = PortAllocator(behaviour.tcp, rng)
        self._by_key: dict[_Key, MappingEntry] = {}
        self._by_outer: dict[tuple[int, Endpoint], MappingEntry] = {}
        self._by_flow: dict[tuple[int, Endpoint, Endpoint], Session] = {}
        self._forwards: dict[tuple[int, Endpoint], Endpoint] = {}
        self._sessions = 0
        self._next_sweep = 0.0

    def __len__(self) -> int:
        """Sessions, expired ones included until they are swept out."""
        return self._sessions

    def mappings(self, now: float) -> Iterator[MappingEntry]:
        """Every mapping that is in force."""
        self._sweep(now)
        yield from self._by_outer.values()

    def words(self, protocol: int) -> UdpBehaviour | TcpBehaviour:
        """What the behaviour says of a protocol; ICMP queries go with UDP."""
        return self._behaviour.tcp if protocol == TCP else self._behaviour.udp

    def outbound(self, protocol: int, inner: Endpoint, remote: Endpoint, now: float) -> Session | None:
        """The session of an outgoing packet that exists."""
        return self._alive(self._by_flow.get((protocol, inner, remote)), now)

    def open(self, protocol: int, inner: Endpoint, remote: Endpoint, now: float) -> Session | None:
        """A new session of an inner endpoint, on its mapping or on a new one; None where the router is full."""
        if now >= self._next_sweep or self._sessions >= self._behaviour.capacity:
            self._sweep(now)
        key = self._key(protocol, inner, remote)
        entry = self._by_key.get(key)
        if entry is not None and self._ended(entry, now):
            entry = None
        if entry is None:
            entry = self._map(protocol, inner, key, now)
        return None if entry is None else self._admit(entry, remote, now)

    def forward(self, protocol: int, port: int, inner: Endpoint | None) -> None:
        """Lead whatever comes to a public port to an inner endpoint, because a host behind has asked for it.

        None: no longer; sessions go on. An outgoing flow is mapped as ever.
        """
        outer = (self._public, port)
        if inner is None:
            self._forwards.pop((protocol, outer), None)
        else:
            self._forwards[protocol, outer] = inner

    def inbound(self, protocol: int, outer: Endpoint, now: float) -> MappingEntry | None:
        """The mapping that a packet to a public endpoint belongs to."""
        entry = self._by_outer.get((protocol, outer))
        if entry is not None and self._ended(entry, now):
            entry = None
        inner = self._forwards.get((protocol, outer))
        if inner is None or (entry is not None and entry.inner == inner):
            return entry
        forwarded = MappingEntry(protocol, inner, outer, (protocol, *inner, *outer, None), None)
        self._by_outer[protocol, outer] = forwarded
        return forwarded

    def arriving(self, entry: MappingEntry, remote: Endpoint, now: float) -> Session | None:
        """The session of an incoming packet, where filtering lets it in."""
        session = self._alive(entry.sessions.get(remote), now)
        if session is not None:
            return session
        if (entry.protocol, entry.outer) in self._forwards:
            return self._admit(entry, remote, now)
        filtering = self.words(entry.protocol).filtering
        if filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT:
            return None
        if filtering is Filtering.ADDRESS_DEPENDENT and not any(
            known[0] == remote[0] and now < other.expires for known, other in entry.sessions.items()
        ):
            return None
        return self._admit(entry, remote, now)

    def known(self, protocol: int, outer: Endpoint, remote: Endpoint, now: float) -> Session | None:
        """The session between a public and a remote endpoint, if there is one."""
        entry = self.inbound(protocol, outer, now)
        return None if entry is None else self._alive(entry.sessions.get(remote), now)

    def refresh(self, session: Session, now: float, *, outward: bool) -> None:
        """A packet of the session passes."""
        if session.connection is not None:
            tcp = self._behaviour.tcp
            session.expires = now + (tcp.established if session.connection.established else tcp.transitory)
            return
        udp = self._behaviour.udp
        session.replied = session.replied or not outward
        if outward or udp.refreshed_from_outside:
            idle = udp.idle if session.replied or udp.unreplied is None else udp.unreplied
            session.expires = now + idle

    def close(self, session: Session) -> None:
        """Forget a session, and its mapping with the last one."""
        entry = session.mapping
        if self._by_flow.get((entry.protocol, entry.inner, session.remote)) is session:
            del self._by_flow[entry.protocol, entry.inner, session.remote]
        if entry.sessions.get(session.remote) is session:
            del entry.sessions[session.remote]
            self._sessions -= 1
        if not entry.sessions:
            self._unmap(entry)

    def clear(self) -> None:
        """Forget everything, as a restart does; the counters of allocation go on."""
        for entry in self._by_outer.values():
            entry.sessions.clear()  # no cycles: the wire runs without a collector
        self._by_key.clear()
        self._by_outer.clear()
        self._by_flow.clear()
        self._forwards.clear()
        self._sessions = 0

    def _key(self, protocol: int, inner: Endpoint, remote: Endpoint) -> _Key:
        words = self.words(protocol)
        if not self._behaviour.translates:
            return (protocol, *inner)
        if protocol == TCP and words.allocation is Allocation.PER_SESSION:
            return (protocol, *inner, *remote)
        if words.mapping is Mapping.ENDPOINT_INDEPENDENT:
            return (protocol, *inner)
        if words.mapping is Mapping.ADDRESS_DEPENDENT:
            return (protocol, *inner, remote[0])
        return (protocol, *inner, *remote)

    def _map(self, protocol: int, inner: Endpoint, key: _Key, now: float) -> MappingEntry | None:
        if not self._behaviour.translates:
            outer: Endpoint = inner
        else:

            def is_free(port: int) -> bool:
                outer = (self._public, port)
                entry = self._by_outer.get((protocol, outer))
                lent = self._forwards.get((protocol, outer), inner) != inner
                return not lent and (entry is None or self._ended(entry, now))

            ports = self._tcp_ports if protocol == TCP else self._udp_ports
            port = ports.choose(*inner, is_free)
            if port is None:
                return None
            outer = (self._public, port)
        lifetime = self._behaviour.lifetime
        entry = MappingEntry(protocol, inner, outer, key, None if lifetime is None else now + lifetime)
        self._by_key[key] = self._by_outer[protocol, outer] = entry
        return entry

    def _admit(self, entry: MappingEntry, remote: Endpoint, now: float) -> Session | None:
        if self._sessions >= self._behaviour.capacity:
            if not entry.sessions:
                self._unmap(entry)
            return None
        connection = Connection() if entry.protocol == TCP else None
        # Until the caller refreshes it, it has a moment to live.
        session = Session(entry, remote, now + _SWEEP_INTERVAL, connection)
        entry.sessions[remote] = session
        # The same two ends may have a session on another mapping already: what leaves goes on using that.
        self._by_flow.setdefault((entry.protocol, entry.inner, remote), session)
        self._sessions += 1
        return session

    def _unmap(self, entry: MappingEntry) -> None:
        if self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]
        if self._by_outer.get((entry.protocol, entry.outer)) is entry:
            del self._by_outer[entry.protocol, entry.outer]

    def _alive(self, session: Session | None, now: float) -> Session | None:
        if session is None:
            return None
        if session.mapping.ends is not None and now >= session.mapping.ends:
            self._ended(session.mapping, now)
            return None
        if now >= session.expires:
            self.close(session)
            return None
        return session

    def _ended(self, entry: MappingEntry, now: float) -> bool:
        """Whether a mapping is over; removes it then."""
        if (entry.ends is None or now < entry.ends) and any(
            now < session.expires for session in entry.sessions.values()
        ):
            return False
        for session in list(entry.sessions.values()):
            self.close(session)
        return True

    def _sweep(self, now: float) -> None:
        self._next_sweep = now + _SWEEP_INTERVAL
        for entry in list(self._by_outer.values()):
            if not self._ended(entry, now):
                for session in [s for s in entry.sessions.values() if now >= s.expires]:
                    self.close(session)
