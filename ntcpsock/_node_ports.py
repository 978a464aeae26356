"""The ports of a node: warm ones for its dials, the one that it listens on, and what the router maps."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import UDP_TECHNIQUES, Config
from ntcpsock._session.quic.carrier import prepare
from ntcpsock._session.tls import Certificate, make_certificate
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.bursts import Bursts
from ntcpsock._traversal.dial_mappings import DialMappings
from ntcpsock._traversal.gather import WarmPort, gather
from ntcpsock._traversal.learn import Learned
from ntcpsock._traversal.patience import group_of
from ntcpsock._traversal.ports import DialPorts, ListeningPort
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.recent import RecentMappings

# How long a STUN server is waited for in networks without UDP: a connection and an exchange, and as long again.
PATIENCE_RTTS = 4.0
SHORTEST_PATIENCE = 0.5

TRANSPORTS: Final[tuple[Transport, ...]] = ("tcp", "udp")


class PortsContext(Protocol):
    """What the ports need of their node."""

    @property
    def config(self) -> Config: ...
    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def broker_rtt(self) -> float: ...


class NodePorts:
    """Those of one node; their tasks run in its nursery.

    servers: STUN servers; incoming: called with each connection to the listening port; on_change: when the listening
    port's candidates have changed.
    """

    def __init__(
        self,
        node: PortsContext,
        session: BrokerSession,
        servers: Sequence[Endpoint],
        nursery: trio.Nursery,
        pace: float,
        *,
        incoming: Callable[[trio.socket.SocketType], Awaitable[None]],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        config = node.config
        self._node = node
        self._session = session
        self._nursery = nursery
        self._on_change = on_change
        # A lazy node has no ports that would have to be kept alive.
        warm_ports = 0 if math.isinf(pace) else config.warm_ports
        self._uses_udp = bool({*UDP_TECHNIQUES} & {*config.usable_techniques, *config.datagram_techniques})
        self.for_dials = DialPorts(servers, warm_ports, pace, self._uses_udp)
        self._learned = Learned(servers)
        self._recent = RecentMappings()
        self.bursts = Bursts()
        #: The router's, for single dials.
        self.mappings = DialMappings(config, nursery)
        self.listening = ListeningPort(
            servers,
            incoming,
            on_change,
            self.mappings.mapper,
            pace,
            self._stun_patience,
            nursery if self._uses_udp else None,
        )
        #: Called when a port turns out to belong to another network than the present one.
        self.on_stale: Callable[[], None] = lambda: None
        self._relearn = trio.Event()
        self._learning = trio.CancelScope()
        self._quic_loaded = trio.Event()
        self._listening_started = trio.Lock()
        self._certificate: Certificate | None = None

    def start(self) -> None:
        """Start the tasks."""
        self._nursery.start_soon(self.for_dials.keep)
        if self._node.config.keep_alive != "lazy":
            if self._uses_udp:
                self._nursery.start_soon(self._load_quic)
            self._nursery.start_soon(self._learn)

    async def _load_quic(self) -> None:
        await prepare()
        self._quic_loaded.set()

    async def _learn(self) -> None:
        await self.for_dials.wait_filled()
        while True:
            self._relearn = trio.Event()
            with trio.CancelScope() as self._learning:
                if await self._learned.learn():
                    await self._on_change()
            await self._relearn.wait()

    def renew(self) -> None:
        """The network is another one: gather anew, ask the new router for ports, learn the new NAT."""
        self._learned.forget()
        self._recent.forget()
        self.bursts.forget()
        self._learning.cancel()
        self._relearn.set()
        if self.mappings.mapper is not None:
            self.mappings.mapper.forget()
        self.for_dials.renew()
        self.listening.renew()

    def check(self) -> None:
        """See at once whether the ports are seen as before; those that are not are gathered anew."""
        self.for_dials.check()
        self.listening.check()

    def set_pace(self, pace: float) -> None:
        """Keep the ports alive so much less often."""
        self.for_dials.pace = self.listening.pace = pace

    def set_servers(self, servers: Sequence[Endpoint]) -> None:
        """Other STUN servers, for what is gathered from now on."""
        self.for_dials.servers = self.listening.servers = servers
        self._learned.set_servers(servers)

    async def wait_warm(self) -> None:
        """Until the warm ports are gathered; not for long where no STUN server answers."""
        with trio.move_on_after(self._stun_patience):
            await self.for_dials.wait_filled()
        if self._uses_udp and self._node.config.keep_alive != "lazy":
            await self._quic_loaded.wait()

    async def start_listening(self) -> None:
        """Have a certificate and a listening port; more than once is once. Raises OSError."""
        async with self._listening_started:
            if self._certificate is None:
                self._certificate = await trio.to_thread.run_sync(make_certificate)
            if self.listening.warm is None:
                await self._nursery.start(self.listening.keep)
                self._hide(self.listening.warm)

    @property
    def fingerprint(self) -> bytes | None:
        """Of the certificate, once there is one."""
        return None if self._certificate is None else self._certificate.fingerprint

    @property
    def certificate(self) -> Certificate:
        assert self._certificate is not None, "only a listening node authenticates"
        return self._certificate

    @property
    def listening_port(self) -> WarmPort | None:
        """None while nobody listens."""
        warm = self.listening.warm
        return None if warm is None else self._learned.inform(warm)

    @property
    def nat_changes(self) -> bool:
        """Whether the NAT is known to give each destination another port."""
        warm = [*self.for_dials.ready, *([] if self.listening.warm is None else [self.listening.warm])]
        return any(each.profile.changes for each in warm)

    def mapped_ports(self, transport: Transport) -> list[int]:
        """Those that a NAT holds for the warm ports, and those that it gave us lately."""
        warm = [*self.for_dials.ready, *([] if self.listening.warm is None else [self.listening.warm])]
        held = {port for each in warm for port in each.mapped_ports(transport)}
        return [*held.union(self._recent.ports(transport, trio.current_time()))]

    def note_mapped(self, transport: Transport, ports: Collection[int]) -> None:
        """The NAT was seen to give us these."""
        self._recent.note(transport, ports, trio.current_time())

    async def take(self, oldest: float = math.inf, again: tuple[int, int] | None = None) -> WarmPort:
        """A port for one dial, gathered, at most so many seconds ago; the dial closes it. again: the numbers of TCP's
        and UDP's port that it had before and is to have again."""
        if again is not None or self.is_short:
            return await self._take_sparingly(again)
        self.for_dials.drop_older(trio.current_time() - oldest)
        warm: WarmPort | None = None
        with trio.move_on_after(self._stun_patience):
            warm = await self.for_dials.take()
            if warm.is_stale:
                # The system's news are a moment late.
                warm.close()
                warm = None
                self.on_stale()
                self.for_dials.renew()
                warm = await self.for_dials.take()
        if warm is None:
            warm = await gather((), udp=self._uses_udp)
        for transport in TRANSPORTS:
            self.note_mapped(transport, warm.mapped_ports(transport))
        self._hide(warm)
        return self._learned.inform(warm)

    @property
    def is_short(self) -> bool:
        """Whether our NAT has hardly a port left for us."""
        now = trio.current_time()
        return any(
            self.bursts.is_short(transport, self.mapped_ports(transport), now) for transport in TRANSPORTS
        )

    async def _take_sparingly(self, again: tuple[int, int] | None) -> WarmPort:
        """No STUN server is asked what a NAT makes of it that gives each destination another port: the peer could not
        use it, and each question takes a port of the NAT."""
        servers = () if self.nat_changes else self.for_dials.servers
        warm = await gather(servers, udp=self._uses_udp, numbers=again or (0, 0))
        if not servers and self.for_dials.ready:
            warm.profile = self.for_dials.ready[0].profile
        self._hide(warm)
        return self._learned.inform(warm)

    @property
    def _stun_patience(self) -> float:
        """Seconds for which the STUN servers may hold somebody up. Where UDP is blocked most else is, too."""
        if self._session.transport == "udp":
            return math.inf
        return max(SHORTEST_PATIENCE, PATIENCE_RTTS * self._node.broker_rtt)

    def _hide(self, warm: WarmPort | None) -> None:
        if warm is None:
            return
        if not any(group_of(technique) == "tcp" for technique in self._node.techniques):
            warm.candidates = ()
