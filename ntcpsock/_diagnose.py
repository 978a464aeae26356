"""What `ntcpsock.trio.diagnose` does: find the servers, ask the NAT, measure how long it remembers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import trio

from ntcpsock._address import DEFAULT_STUN_PORT, BrokerAddress, Endpoint, parse_broker, parse_host_port
from ntcpsock._config import Config
from ntcpsock._diagnosis import BrokerState, Diagnosis, Discovery, Lifetime
from ntcpsock._errors import BrokerRefused, BrokerUnreachable, ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._lifetimes import Lifetimes
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import open_broker_session
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.discover import discover
from ntcpsock._traversal.discovery.lifetime_driver import measure_lifetime
from ntcpsock._traversal.discovery.prospects import advice, headline, prospects, unknowns
from ntcpsock._traversal.discovery.router import with_router
from ntcpsock._traversal.mapping_probe import PortMappingProbe, probe_port_mapping

# Seconds for the broker, and until the discovery starts without it: all has to fit into five.
BROKER_PATIENCE = 2.5
_PATIENCE_BEFORE_GUESSING = 0.7
# Where `ntcp serve` has its STUN server, unless told otherwise.
_USUAL_STUN_PORTS = (DEFAULT_STUN_PORT, DEFAULT_STUN_PORT + 1)


async def diagnose(
    config: Config,
    *,
    lifetime: bool = False,
    found: Callable[[Diagnosis], None] | None = None,
    progress: Callable[[float, bool], None] | None = None,
) -> Diagnosis:
    """See `ntcpsock.trio.diagnose`."""
    if config.broker is None and not config.stun:
        raise ConfigurationError(
            "nobody to ask: give --broker ntcp://HOST:6060 or --stun HOST, or set NTCP_BROKER. "
            "`ntcp serve` on another network starts both"
        )
    broker = _Broker(config)
    configured = await _resolve_all(config.stun)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.ask)
        with trio.move_on_after(_PATIENCE_BEFORE_GUESSING):
            await broker.known.wait()
        if not configured:
            await broker.located.wait()
        servers = configured or list(broker.announced) or broker.usual_servers
        guessed = servers is broker.usual_servers
        router = _Router()
        if config.port_mapping != "off" and not all(is_loopback(server.host) for server in servers):
            nursery.start_soon(router.ask)
        discovery = await discover(servers, trouble=config.broker is not None and not broker.state.reached)
        await broker.known.wait()
    discovery = router.judge(discovery)
    if broker.failure is not None:
        raise broker.failure
    if lifetime:
        if found is not None:
            found(_diagnosis(discovery, broker.state, guessed))
        discovery = await _with_lifetime(config, discovery, progress)
    return _diagnosis(discovery, broker.state, guessed)


def _diagnosis(discovery: Discovery, state: BrokerState, guessed: bool) -> Diagnosis:
    over_tcp = state.transport == "tcp"
    return Diagnosis(
        headline(discovery),
        discovery,
        state,
        guessed,
        prospects(discovery, over_tcp),
        advice(discovery, over_tcp),
        unknowns(discovery),
    )


class _Router:
    """The default gateway: whether it maps ports."""

    def __init__(self) -> None:
        self._probe: PortMappingProbe | None = None

    async def ask(self) -> None:
        """As long as its silence takes to be known, a second or so."""
        self._probe = await probe_port_mapping()

    def judge(self, discovery: Discovery) -> Discovery:
        """What its word adds; nothing where nothing is translated, or nobody was asked."""
        if self._probe is None or discovery.tcp.translated.truth is False:
            return discovery
        return with_router(discovery, self._probe.external, self._probe.failures, self._probe.reason)


class _Broker:
    """The configured broker: whether it answers, and what it says."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._address = None if config.broker is None else parse_broker(config.broker)
        self.state = BrokerState(None if self._address is None else _show_place(self._address))
        self.announced: tuple[Endpoint, ...] = ()
        #: Where its STUN servers are if they are at its own addresses.
        self.usual_servers: list[Endpoint] = []
        self.failure: OSError | None = None
        #: Its name has been looked up; its outcome is there.
        self.located, self.known = trio.Event(), trio.Event()

    async def ask(self) -> None:
        """Say hello."""
        try:
            if self._address is not None:
                await self._ask(self._address)
        except (BrokerUnreachable, BrokerRefused) as error:
            self.state = replace(self.state, why=str(error))
        except OSError as error:
            self.failure = error
        finally:
            self.located.set()
            self.known.set()

    async def _ask(self, address: BrokerAddress) -> None:
        host = _show_host(address.host)
        self.usual_servers = await _resolve_all([f"{host}:{port}" for port in _USUAL_STUN_PORTS])
        self.located.set()
        timeout = min(self._config.broker_timeout, BROKER_PATIENCE)
        pins = Pins(self._config.state_dir)
        async with open_broker_session(
            address,
            Identity.generate(),
            pins=pins,
            timeout=timeout,
            ca_file=self._config.ca_file,
            token=self._config.broker_token,
        ) as session:
            self.state = replace(self.state, reached=True, rtt=session.rtt, transport=session.transport)
            self.announced = session.welcome.stun


async def _resolve_all(places: list[str] | tuple[str, ...]) -> list[Endpoint]:
    """The IPv4 and IPv6 endpoints of STUN servers."""
    servers: list[Endpoint] = []
    for text in places:
        host, port = parse_host_port(text, DEFAULT_STUN_PORT)
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            raise BrokerUnreachable(f"STUN server {text}: {error}") from error
        servers += [Endpoint(*address[:2]) for family, _, _, _, address in found if family in _FAMILIES]
    return list(dict.fromkeys(servers))


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _show_place(address: BrokerAddress) -> str:
    """HOST:PORT, without the key; `wss://` before it for one that is met in TLS alone."""
    return f"{'wss://' if address.tls else ''}{_show_host(address.host)}:{address.port}"


def _show_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _with_lifetime(
    config: Config, discovery: Discovery, progress: Callable[[float, bool], None] | None
) -> Discovery:
    """The discovery with the lifetime of a UDP mapping, which is remembered for this network."""
    server = next((server for server in discovery.servers if not server.is_ipv6), None)
    udp = discovery.udp
    if server is None or udp.reachable.truth is not True:
        return discovery
    if udp.translated.truth is False and udp.filtering.value == "endpoint-independent":
        nothing = Lifetime("none", why="nothing is translated or filtered, so nothing is forgotten")
        return replace(discovery, udp=replace(udp, lifetime=nothing))
    try:
        found = await measure_lifetime(server, progress)
    except OSError as error:
        found = Lifetime(why=str(error))
    if found.longest_alive:
        Lifetimes(config.state_dir).put(udp.public[0], found.longest_alive)
    return replace(discovery, udp=replace(udp, lifetime=found))
