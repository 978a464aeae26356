"""What `ntcpsock.trio.diagnose` does: find the servers, ask the NAT, measure how long it remembers."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from ntcpsock._address import DEFAULT_STUN_PORT, Endpoint, parse_broker, parse_host_port
from ntcpsock._config import Config
from ntcpsock._diagnosis import BrokerState, Diagnosis, Discovery
from ntcpsock._errors import BrokerUnreachable, ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import open_broker_session
from ntcpsock._traversal.discover import discover
from ntcpsock._traversal.discovery.prospects import advice, headline, prospects, unknowns

# Seconds for the broker: all of the rest has to fit into five, too.
BROKER_PATIENCE = 1.2
# Where `ntcp serve` has its STUN server, unless told otherwise.
_USUAL_STUN_PORTS = (DEFAULT_STUN_PORT, DEFAULT_STUN_PORT + 1)


async def diagnose(
    config: Config,
    *,
    lifetime: bool = False,
    found: Callable[[Diagnosis], None] | None = None,
) -> Diagnosis:
    """See `ntcpsock.trio.diagnose`."""
    if config.broker is None and not config.stun:
        raise ConfigurationError(
            "nobody to ask: give --broker ntcp://HOST:6060 or --stun HOST, or set NTCP_BROKER. "
            "`ntcp serve` on another network starts both"
        )
    state, announced = await _ask_broker(config)
    servers = await _resolve_all(config.stun) if config.stun else announced
    guessed = not servers
    if guessed:
        assert config.broker is not None
        host = parse_broker(config.broker).host
        servers = await _resolve_all([f"{_bracketed(host)}:{port}" for port in _USUAL_STUN_PORTS])
    trouble = state.address is not None and not state.reached
    discovery = await discover(servers, trouble=trouble)
    if lifetime:
        if found is not None:
            found(_diagnosis(discovery, state, guessed))
        discovery = await _with_lifetime(config, discovery)
    return _diagnosis(discovery, state, guessed)


def _diagnosis(discovery: Discovery, state: BrokerState, guessed: bool) -> Diagnosis:
    return Diagnosis(
        headline(discovery),
        discovery,
        state,
        guessed,
        prospects(discovery),
        advice(discovery),
        unknowns(discovery),
    )


async def _ask_broker(config: Config) -> tuple[BrokerState, list[Endpoint]]:
    """Whether the broker answers, and the STUN servers that it names."""
    if config.broker is None:
        return BrokerState(None), []
    address = parse_broker(config.broker)
    shown = f"{_bracketed(address.host)}:{address.port}"
    timeout = min(config.broker_timeout, BROKER_PATIENCE)
    try:
        async with open_broker_session(
            address, Identity.generate(), pins=Pins(config.state_dir), timeout=timeout
        ) as session:
            return BrokerState(shown, True, rtt=session.rtt), list(session.welcome.stun)
    except BrokerUnreachable as error:
        return BrokerState(shown, False, str(error)), []


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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _with_lifetime(config: Config, discovery: Discovery) -> Discovery:
    return discovery
