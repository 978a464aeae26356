"""`ntcp serve`: STUN, broker and relay in one process."""

from __future__ import annotations

import errno
import ipaddress
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntcpsock._address import DEFAULT_BROKER_PORT, DEFAULT_STUN_PORT, BrokerAddress, Endpoint
from ntcpsock._config import default_state_dir
from ntcpsock._errors import ConfigurationError
from ntcpsock.cli.options import StateDir
from ntcpsock.cli.output import Output, run_command

if TYPE_CHECKING:
    import trio

    from ntcpsock._servers.broker import BrokerServer
    from ntcpsock._servers.stun import StunAddresses

DEFAULT_OTHER_STUN_PORT = DEFAULT_STUN_PORT + 1


def serve(
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDR", help="Address to listen on.")
    ] = "0.0.0.0",
    other_address: Annotated[
        str | None,
        typer.Option("--other-address", metavar="ADDR", help="Second address of the STUN server (RFC 5780)."),
    ] = None,
    broker_port: Annotated[
        int, typer.Option("--broker-port", min=0, max=65535, metavar="PORT")
    ] = DEFAULT_BROKER_PORT,
    stun_port: Annotated[
        int, typer.Option("--stun-port", min=0, max=65535, metavar="PORT")
    ] = DEFAULT_STUN_PORT,
    other_stun_port: Annotated[
        int, typer.Option("--other-stun-port", min=0, max=65535, metavar="PORT")
    ] = DEFAULT_OTHER_STUN_PORT,
    tcp: Annotated[
        bool, typer.Option("--tcp/--no-tcp", help="Broker and relay over TCP too, on the broker's port.")
    ] = True,
    state_dir: StateDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="The ready line as a JSON object.")] = False,
) -> None:
    """Run a STUN server, a broker and a relay until SIGINT or SIGTERM.

    Prints one line when ready: `ready ntcp://ADDR:6060?key=KEY`, which is what NTCP_BROKER takes.
    """
    for option, address in (("--listen", listen), ("--other-address", other_address)):
        if address is not None and not _is_address(address):
            raise typer.BadParameter("expected a numeric address", param_hint=option)
    options = Options(listen, other_address, broker_port, stun_port, other_stun_port, state_dir, tcp)

    async def main() -> None:
        await _serve(options, as_json)

    run_command(Output(), main)


@dataclass(frozen=True, slots=True)
class Options:
    """Where the servers of one `ntcp serve` are. Port 0: any free one."""

    listen: str
    other_address: str | None
    broker_port: int
    stun_port: int
    other_stun_port: int
    state_dir: Path | None
    tcp: bool = True


async def _serve(options: Options, as_json: bool) -> None:
    import trio

    from ntcpsock._servers.limits import raise_descriptor_limit

    raise_descriptor_limit()
    # Signals are caught before anything is bound: whoever sees the ready line may send one.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            ready = await start_servers(nursery, options)
            print(json.dumps(ready.to_event()) if as_json else f"ready {ready.broker}", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


@dataclass(frozen=True, slots=True)
class Ready:
    """What clients need to know: the broker's address with its key, and the STUN servers."""

    broker: BrokerAddress
    stun: tuple[Endpoint, ...]

    def to_event(self) -> dict[str, object]:
        return {"event": "ready", "broker": str(self.broker), "stun": [str(server) for server in self.stun]}


async def start_servers(nursery: trio.Nursery, options: Options) -> Ready:
    """Start both servers in `nursery`. Raises OSError, in words, for an address that cannot be had."""
    with _explained("STUN", options.listen, options.stun_port, "--stun-port"):
        stun: StunAddresses = await nursery.start(_serve_stun, options)
    # Two servers to the clients, which so learn how their NAT's mappings vary. A wildcard address means
    # to them: the host at which you reached the broker. So it stays right behind a forwarding router,
    # and on each of several interfaces.
    announced = tuple(dict.fromkeys((stun.endpoints[0], stun.endpoints[-1])))
    with _explained("broker", options.listen, options.broker_port, "--broker-port"):
        broker: BrokerServer = await nursery.start(_serve_broker, options, announced)
    host = reachable_address(options.listen)
    return Ready(
        BrokerAddress(host, broker.address.port, broker.key),
        tuple(Endpoint(reachable_address(server.host), server.port) for server in announced),
    )


async def _serve_stun(options: Options, task_status: trio.TaskStatus[StunAddresses]) -> None:
    from ntcpsock._servers.stun import serve_stun

    await serve_stun(
        options.listen,
        options.stun_port,
        other_address=options.other_address,
        # Port 0 means: wherever there is room. So does it for the second port, unless it was given.
        other_port=options.other_stun_port
        if options.stun_port or options.other_stun_port != DEFAULT_OTHER_STUN_PORT
        else 0,
        task_status=task_status,
    )


async def _serve_broker(
    options: Options, announced: tuple[Endpoint, ...], task_status: trio.TaskStatus[BrokerServer]
) -> None:
    from ntcpsock._servers.broker import serve_broker

    await serve_broker(
        options.listen,
        options.broker_port,
        state_dir=options.state_dir or default_state_dir(),
        tcp=options.tcp,
        stun=announced,
        task_status=task_status,
    )


def reachable_address(listen: str) -> str:
    """`listen`, or the host's first address where that is the wildcard."""
    address = ipaddress.ip_address(listen)
    if not address.is_unspecified:
        return listen
    family, probe, loopback = (
        (socket.AF_INET6, "2001:db8::1", "::1")
        if address.version == 6
        else (socket.AF_INET, "192.0.2.1", "127.0.0.1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            # Connecting a UDP socket sends nothing: it asks the kernel for the way out.
            sock.connect((probe, 9))
            return str(sock.getsockname()[0])
        except OSError:
            return loopback


@contextmanager
def _explained(what: str, host: str, port: int, option: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        hint = f"; choose another port with {option}" if error.errno == errno.EADDRINUSE else ""
        raise OSError(
            error.errno, f"{what} server: cannot listen on {Endpoint(host, port)}: {reason}{hint}"
        ) from error


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
