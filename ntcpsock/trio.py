"""The trio face: nodes, streams and listeners inside nurseries.

There is no hidden thread, and cancelling closes all of it:

async with ntcpsock.trio.open_node() as node:
    stream = await node.open_stream("alice", 8000)
    await stream.send_all(b"hello")
"""

from __future__ import annotations

import contextvars
import math
import socket as stdlib_socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn

import trio

from ntcpsock._address import DEFAULT_STUN_PORT, Endpoint, parse_broker, parse_host_port
from ntcpsock._config import Config
from ntcpsock._datagram_socket import DatagramAddress, NTCPDatagramSocket
from ntcpsock._diagnose import diagnose as _diagnose
from ntcpsock._diagnosis import Diagnosis
from ntcpsock._errors import BrokerUnreachable, ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._lifetimes import USUAL_INTERVAL, Lifetimes, keep_alive_interval
from ntcpsock._listener import NTCPListener
from ntcpsock._node import Node
from ntcpsock._nursery import open_background_nursery
from ntcpsock._report import Report
from ntcpsock._session.plain import PlainStream
from ntcpsock._session.stream import NTCPStream
from ntcpsock._state import Pins, load_identity
from ntcpsock._traversal.broker.driver import BrokerSession, open_broker_session
from ntcpsock._trio_socket import Factory, NTCPSocket, Resolver

__all__ = [
    "DatagramAddress",
    "NTCPDatagramSocket",
    "NTCPListener",
    "NTCPSocket",
    "NTCPStream",
    "PlainStream",
    "Node",
    "diagnose",
    "install",
    "open_datagram_socket",
    "open_listener",
    "open_node",
    "open_stream",
    "serve",
    "socket",
    "uninstall",
]

_current_node: contextvars.ContextVar[Node] = contextvars.ContextVar("ntcpsock_node")


@asynccontextmanager
async def open_node(config: Config | None = None, **settings: Any) -> AsyncIterator[Node]:
    """Run a node for the time of the block.

    config: all settings; without it they come from the environment, with `settings` on top (see `Config`).
    Inside the block the module's own functions use this node. Raises ConfigurationError, BrokerUnreachable,
    NameTaken, IdentityMismatch.
    """
    if config is None:
        config = Config.load(**settings)
    elif settings:
        config = replace(config, **settings)
    if config.broker is None:
        raise ConfigurationError(
            "no broker: set NTCP_BROKER=ntcp://HOST:6060, or pass broker=; `ntcp serve` runs one"
        )
    identity = _identity(config)
    pins = Pins(config.state_dir)
    address = parse_broker(config.broker)
    report = Report(config.broker, "dialer", trio.current_time())
    async with AsyncExitStack() as stack:
        with report.stage("broker", trio.current_time):
            session = await stack.enter_async_context(
                open_broker_session(
                    address,
                    identity,
                    pins=pins,
                    keep_alive_interval=math.inf
                    if config.keep_alive == "lazy"
                    else config.keep_alive_interval,
                    timeout=config.broker_timeout,
                    ca_file=config.ca_file,
                    hidden=config.relay == "only",
                    token=config.broker_token,
                )
            )
            servers = await _stun_servers(config, session.welcome.stun)
        nursery = await stack.enter_async_context(open_background_nursery())
        node = Node(config, identity, pins, session, servers, nursery, _keep_alive(config, session))
        with report.stage("register", trio.current_time):
            await node.start()
        token = _current_node.set(node)
        try:
            yield node
            await node.finish()
        finally:
            _current_node.reset(token)
            node.close()


async def diagnose(
    config: Config | None = None,
    *,
    lifetime: bool = False,
    found: Callable[[Diagnosis], None] | None = None,
    progress: Callable[[float, bool], None] | None = None,
    **settings: Any,
) -> Diagnosis:
    """What NAT is between this host and the world, who can be reached through it, and what would help.

    Asks the configured STUN servers, else those of the broker, in less than 5 seconds; needs no node. With `lifetime`
    it also measures how long the NAT keeps an idle mapping, in up to 5 minutes, and remembers that for the keep-alives
    of this network; `found` is called with what is known before, `progress` with each idle time in seconds and whether
    a mapping was alive after it. Settings as in `open_node`. Raises ConfigurationError, IdentityMismatch, and
    BrokerUnreachable for a STUN server that cannot be resolved; a network where nothing works is a diagnosis.
    """
    if config is None:
        config = Config.load(**settings)
    elif settings:
        config = replace(config, **settings)
    return await _diagnose(config, lifetime=lifetime, found=found, progress=progress)


def socket(
    family: int = stdlib_socket.AF_INET, type: int = stdlib_socket.SOCK_STREAM, proto: int = 0
) -> NTCPSocket:
    """A socket as `trio.socket.socket` gives it, which reaches `.ntcp` names too."""
    return Factory(_node, None).socket(family, type, proto)


def install() -> None:
    """Put names under trio's own functions for the rest of this `trio.run`.

    `trio.open_tcp_stream("alice.ntcp", 80)`, `trio.serve_tcp(handler, 80, host="alice.ntcp")` and whatever is
    built on them work then, inside an `open_node` block. Hooks installed before stay in use for all else.
    """
    factory = Factory(_node, None)
    factory.before = trio.socket.set_custom_socket_factory(factory)
    resolver = Resolver(None)
    resolver.before = trio.socket.set_custom_hostname_resolver(resolver)


def uninstall() -> None:
    """Undo the last `install`. Raises RuntimeError where other hooks have been put over it."""
    factory = trio.socket.set_custom_socket_factory(None)
    resolver = trio.socket.set_custom_hostname_resolver(None)
    ours = isinstance(factory, Factory) and isinstance(resolver, Resolver)
    trio.socket.set_custom_socket_factory(factory.before if isinstance(factory, Factory) else factory)
    trio.socket.set_custom_hostname_resolver(resolver.before if isinstance(resolver, Resolver) else resolver)
    if not ours:
        raise RuntimeError("ntcpsock.trio is not installed, or other hooks have been installed over it")


async def open_stream(name: str, port: int, *, timeout: float | None = None) -> NTCPStream:
    """`Node.open_stream` on the node of the innermost `open_node` block."""
    return await _node().open_stream(name, port, timeout=timeout)


async def open_listener(
    port: int, *, name: str | None = None, allow: Sequence[str] | None = None, backlog: int = 128
) -> NTCPListener:
    """`Node.open_listener` on the node of the innermost `open_node` block."""
    return await _node().open_listener(port, name=name, allow=allow, backlog=backlog)


async def open_datagram_socket(
    port: int | None = None, *, name: str | None = None, allow: Sequence[str] | None = None
) -> NTCPDatagramSocket:
    """`Node.open_datagram_socket` on the node of the innermost `open_node` block."""
    return await _node().open_datagram_socket(port, name=name, allow=allow)


async def serve(
    handler: Callable[[NTCPStream], Awaitable[object]],
    port: int,
    *,
    name: str | None = None,
    allow: Sequence[str] | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[NTCPListener]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Call `handler(stream)` in a task of its own for every stream that arrives, as `trio.serve_tcp` does.

    Opens a node of its own when there is none around. `task_status.started` gets the list of one listener.
    """
    if _current_node.get(None) is None:
        async with open_node(name=name):
            await _serve(handler, port, name, allow, handler_nursery, task_status)
    await _serve(handler, port, name, allow, handler_nursery, task_status)
    raise AssertionError("unreachable")


async def _serve(
    handler: Callable[[NTCPStream], Awaitable[object]],
    port: int,
    name: str | None,
    allow: Sequence[str] | None,
    handler_nursery: trio.Nursery | None,
    task_status: trio.TaskStatus[list[NTCPListener]],
) -> None:
    listener = await open_listener(port, name=name, allow=allow)
    await trio.serve_listeners(handler, [listener], handler_nursery=handler_nursery, task_status=task_status)


def _node() -> Node:
    node = _current_node.get(None)
    if node is None:
        raise ConfigurationError("no node here: use this inside `async with ntcpsock.trio.open_node():`")
    return node


def _keep_alive(config: Config, session: BrokerSession) -> float:
    """Have the broker session keep itself alive as this network needs it. What the usual intervals of the warm ports
    are multiplied by."""
    if config.keep_alive == "lazy":
        return math.inf
    measured = Lifetimes(config.state_dir).get(session.welcome.observed.host)
    if config.keep_alive == "fixed" or measured is None:
        return 1.0
    interval = keep_alive_interval(measured)
    session.keep_alive_every(interval)
    return interval / USUAL_INTERVAL


def _identity(config: Config) -> Identity:
    """The permanent key of a node with a name; a client without one gets a key for this run."""
    if config.identity is not None:
        return load_identity(config.identity)
    if config.name is not None:
        return load_identity(config.state_dir / "node.key")
    return Identity.generate()


async def _stun_servers(config: Config, announced: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """The configured servers by number, else those that the broker names."""
    if not config.stun:
        return tuple(announced)
    servers: dict[Endpoint, None] = {}
    for text in config.stun:
        host, port = parse_host_port(text, DEFAULT_STUN_PORT)
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            raise BrokerUnreachable(f"STUN server {text}: {error}") from error
        # One address of each family.
        firsts = {family: Endpoint(*address[:2]) for family, _, _, _, address in reversed(found)}
        servers.update(dict.fromkeys(firsts.values()))
    return tuple(servers)
