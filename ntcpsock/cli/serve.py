"""`ntcp serve`: STUN, broker and relay in one process."""

from __future__ import annotations

import errno
import ipaddress
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ntcpsock._address import (
    DEFAULT_BROKER_PORT,
    DEFAULT_STUN_PORT,
    BrokerAddress,
    Endpoint,
)
from ntcpsock._config import default_state_dir
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers import logs
from ntcpsock._servers.operator_options import ADMIN_OPTIONS, BAN_OPTIONS, POLICY_OPTIONS, RELAY_OPTIONS
from ntcpsock._servers.option import Option
from ntcpsock._servers.options import (
    OPTIONS,
    RELAY_LIMITS,
    Source,
    keys_of,
    read_settings,
    relay_places,
    stun_endpoints,
)
from ntcpsock._servers.places import all_listens, reachable_address, told_addresses, version_of
from ntcpsock.cli.option_parameters import with_options
from ntcpsock.cli.options import StateDir
from ntcpsock.cli.output import Output, run_command

if TYPE_CHECKING:
    import trio

    from ntcpsock._servers.broker import BrokerServer
    from ntcpsock._servers.certificate import CertificateFiles
    from ntcpsock._servers.gate import Gate
    from ntcpsock._servers.relay import RelayLimits
    from ntcpsock._servers.stun import StunAddresses, StunCounters

DEFAULT_OTHER_STUN_PORT = DEFAULT_STUN_PORT + 1

# Two STUN servers of each are announced, and a Welcome has room for eight.
MAX_LISTENS = 4


#: Who may do what, how much, and where the operator finds the server; read again at SIGHUP, most of them.
OPERATOR_OPTIONS = (*POLICY_OPTIONS, *BAN_OPTIONS, *RELAY_OPTIONS, *ADMIN_OPTIONS)
_RELAY_LIMITS = tuple(OPTIONS[name] for name in RELAY_LIMITS)

_SETTINGS = (
    *OPERATOR_OPTIONS,
    *_RELAY_LIMITS,
    *(
        OPTIONS[name]
        for name in (
            "listen",
            "state_dir",
            "stun",
            "relay",
            "store",
            "certificate",
            "key",
            "behind",
            "metrics_from",
            "drain",
            "allow_spoofing",
            "log",
            "connect_back",
        )
    ),
    Option("other_address", "", "list"),
    Option("broker_port", "", "integer"),
    Option("stun_port", "", "integer"),
    Option("other_stun_port", "", "integer"),
    Option("tcp", "", "switch"),
)


def _help(name: str) -> str:
    text = OPTIONS[name].help
    return text[0].upper() + text[1:] + "."


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """File and environment become the defaults of the other options."""
    try:
        context.default_map = {**(context.default_map or {}), **read_settings(path, _SETTINGS)}
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None
    return path


def serve(
    context: typer.Context,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="ADDR",
            help="Address to listen on, IPv4 or IPv6; may be repeated. 0.0.0.0: all of IPv4; ::, and no address: all.",
        ),
    ] = None,
    other_address: Annotated[
        list[str] | None,
        typer.Option(
            "--other-address",
            metavar="ADDR",
            help="Second address of the STUN server (RFC 5780), for the --listen of its family.",
        ),
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
    connect_back: Annotated[
        bool,
        typer.Option(
            "--connect-back/--no-connect-back",
            help="Connect to TCP clients of the STUN server that ask for it, so that they learn how they are filtered.",
        ),
    ] = True,
    tcp: Annotated[
        bool, typer.Option("--tcp/--no-tcp", help="Broker and relay over TCP too, on the broker's port.")
    ] = True,
    state_dir: StateDir = None,
    stun: Annotated[
        list[str] | None,
        typer.Option("--stun", metavar="HOST:PORT", help="Further STUN server that nodes are told."),
    ] = None,
    relay: Annotated[list[str] | None, typer.Option("--relay", metavar="RELAY", help=_help("relay"))] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URL", help=_help("store"))] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help=_help("certificate"))
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help=_help("key"))] = None,
    behind: Annotated[
        list[str] | None, typer.Option("--behind", metavar="ADDR", help=_help("behind"))
    ] = None,
    metrics_from: Annotated[
        list[str] | None, typer.Option("--metrics-from", metavar="ADDR", help=_help("metrics_from"))
    ] = None,
    drain: Annotated[float, typer.Option("--drain", min=0, metavar="SECONDS", help=_help("drain"))] = 30.0,
    allow_spoofing: Annotated[bool, typer.Option("--allow-spoofing", help=_help("allow_spoofing"))] = False,
    log: Annotated[str, typer.Option("--log", metavar="FORM", help=_help("log"))] = "text",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=_read_config,
            help="TOML file with these settings, by their names with underscores. Or: NTCP_SERVE_* variables, by the "
            "same names.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The ready line as a JSON object.")] = False,
    **operator: Any,
) -> None:
    """Run a STUN server, a broker and a relay until SIGINT or SIGTERM, which lets relayed connections end.

    Prints one line when ready: `ready ntcp://ADDR:6060?key=KEY`, which is what NTCP_BROKER takes, and one that says
    where `ntcp admin` finds it. SIGHUP reads the file and the certificate again.
    """
    source = Source(_SETTINGS, config, _given(context), {})
    for option, addresses in (("--listen", listen), ("--other-address", other_address)):
        if not all(_is_address(address) for address in addresses or ()):
            raise typer.BadParameter("expected a numeric address", param_hint=option)
    families = [version_of(address) for address in other_address or ()]
    if len(families) != len(set(families)):
        raise typer.BadParameter("at most one of each family", param_hint="--other-address")
    listens = all_listens(listen or ["::"])
    if not set(families) <= {version_of(address) for address in listens}:
        raise typer.BadParameter("no --listen of its family", param_hint="--other-address")
    if len(listens) > MAX_LISTENS:
        raise typer.BadParameter(f"at most {MAX_LISTENS} addresses", param_hint="--listen")
    options = Options(
        listens,
        tuple(other_address or ()),
        broker_port,
        stun_port,
        other_stun_port,
        connect_back,
        state_dir,
        allow_spoofing,
        tcp,
        tuple(stun or ()),
        None if relay is None else tuple(relay),
        certificate,
        key,
        tuple(behind or ()),
        tuple(metrics_from or ()),
        drain,
        store=store,
    )

    async def main() -> None:
        logs.set_up(log, operator["log_level"])
        await _serve(options, as_json, Namespace(**source.read(), source=source))

    run_command(Output(), main)


@dataclass(frozen=True, slots=True)
class Options:
    """Where the servers of one `ntcp serve` are. listen: IPv4 first. Port 0: any free one."""

    listen: tuple[str, ...]
    other_addresses: tuple[str, ...]
    broker_port: int
    stun_port: int
    other_stun_port: int
    connect_back: bool
    state_dir: Path | None
    allow_spoofing: bool = False
    tcp: bool = True
    stun: tuple[str, ...] = ()
    relays: tuple[str, ...] | None = None
    certificate: Path | None = None
    key: Path | None = None
    behind: tuple[str, ...] = ()
    metrics_from: tuple[str, ...] = ()
    drain: float = 30.0
    gate: Gate | None = None
    relay_nodes: frozenset[bytes] = frozenset()
    relay_limits: RelayLimits | None = None
    store: str | None = None

    def other_address(self, listen: str) -> str | None:
        """The second address for the STUN server at `listen`: only the first of its family has one."""
        family = version_of(listen)
        if listen != next(address for address in self.listen if version_of(address) == family):
            return None
        return next((other for other in self.other_addresses if version_of(other) == family), None)


def _given(context: typer.Context) -> dict[str, Any]:
    """The options of the command line itself."""
    known = {option.name for option in _SETTINGS}
    return {
        name: value
        for name, value in context.params.items()
        if name in known and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


async def _serve(options: Options, as_json: bool, settings: Namespace) -> None:
    from ntcpsock._servers.bans import BanFile
    from ntcpsock._servers.descriptors import raise_descriptor_limit
    from ntcpsock._servers.operated import Operated, Parts, make_gate, operate, relay_limits, stun_status
    from ntcpsock._servers.running import run_until_signalled

    raise_descriptor_limit()
    ban_file = BanFile((options.state_dir or default_state_dir()) / "bans.json")
    options = replace(
        options,
        gate=make_gate(vars(settings), ban_file),
        relay_nodes=keys_of("relay_node", settings.relay_node),
        relay_limits=relay_limits(vars(settings)),
    )

    async def start(nursery: trio.Nursery) -> Operated:
        ready = await start_servers(nursery, options)
        server = ready.server
        parts = Parts(server.core, server.relay, server.certificate)
        status = partial(stun_status, ready.counters)
        operated = await operate(nursery, ready, settings, "serve", parts, ban_file=ban_file, status=status)
        return replace(operated, service=replace(ready, as_json=as_json, admin=operated.admin))

    await run_until_signalled(start, drain=options.drain)


@dataclass(frozen=True, slots=True)
class Ready:
    """What clients need to know: the broker's address with its key, and the STUN servers."""

    broker: BrokerAddress
    stun: tuple[Endpoint, ...]
    server: BrokerServer
    as_json: bool = False
    counters: Sequence[StunCounters] = ()
    admin: Path | None = None

    @property
    def ready(self) -> str:
        """The line that says so."""
        return json.dumps(self.to_event()) if self.as_json else f"ready {self.broker}"

    async def drain(self, seconds: float) -> None:
        """As the broker does it, with its relay."""
        await self.server.drain(seconds)

    def reload(self) -> None:
        """Read the certificate again. Raises ConfigurationError."""
        self.server.reload()

    def to_event(self) -> dict[str, object]:
        event: dict[str, object] = {
            "event": "ready",
            "broker": str(self.broker),
            "stun": [str(server) for server in self.stun],
        }
        return event if self.admin is None else event | {"admin": str(self.admin)}


async def start_servers(nursery: trio.Nursery, options: Options) -> Ready:
    """Start all servers in `nursery`. Raises OSError, in words, for an address that cannot be had."""
    from ntcpsock._servers.certificate import certificate_files

    certificate = certificate_files(options.certificate, options.key)
    announced: list[Endpoint] = []
    counters: list[StunCounters] = []
    stun_ports = (options.stun_port, options.other_stun_port)
    for address in options.listen:
        with _explained("STUN", address, stun_ports[0], "--stun-port"):
            stun: StunAddresses = await nursery.start(_serve_stun, options, address, stun_ports, certificate)
        # Two servers of each family to the clients, which so learn how their NAT's mappings vary. A wildcard
        # address means to them: the host at which you reached the broker. So it stays right behind a forwarding
        # router, and on each of several interfaces.
        announced += dict.fromkeys((stun.endpoints[0], stun.endpoints[-1]))
        counters.append(stun.counters)
        # Where the system chose the ports, all addresses have the same.
        stun_ports = (stun.endpoints[0].port, stun.endpoints[-1].port)
    announced += stun_endpoints(options.stun)
    with _explained("broker", options.listen[0], options.broker_port, "--broker-port"):
        broker: BrokerServer = await nursery.start(_serve_broker, options, announced, counters, certificate)
    reachable = [reachable_address(address) for address in options.listen]
    host = next(
        (address for address in reachable if not ipaddress.ip_address(address).is_loopback), reachable[0]
    )
    return Ready(
        BrokerAddress(host, broker.address.port, broker.key),
        tuple(Endpoint(reachable_address(server.host), server.port) for server in announced),
        broker,
        counters=counters,
    )


async def _serve_stun(
    options: Options,
    listen: str,
    ports: tuple[int, int],
    certificate: CertificateFiles | None,
    task_status: trio.TaskStatus[StunAddresses],
) -> None:
    from ntcpsock._servers.stun import serve_stun

    port, other_port = ports
    await serve_stun(
        listen,
        port,
        other_address=options.other_address(listen),
        # Port 0 means: wherever there is room. So does it for the second port, unless it was given.
        other_port=other_port if port or other_port != DEFAULT_OTHER_STUN_PORT else 0,
        connect_back=options.connect_back,
        certificate=certificate,
        task_status=task_status,
    )


async def _serve_broker(
    options: Options,
    announced: Sequence[Endpoint],
    counters: Sequence[StunCounters],
    certificate: CertificateFiles | None,
    task_status: trio.TaskStatus[BrokerServer],
) -> None:
    from ntcpsock._servers.broker import serve_broker

    await serve_broker(
        options.listen,
        options.broker_port,
        state_dir=options.state_dir or default_state_dir(),
        tcp=options.tcp,
        stun=announced,
        elsewhere=told_addresses(options.listen),
        relays=relay_places(options.relays),
        behind=options.behind,
        certificate=certificate,
        metrics_from=options.metrics_from,
        stun_counters=counters,
        allow_spoofing=options.allow_spoofing,
        gate=options.gate,
        relay_nodes=options.relay_nodes,
        relay_limits=options.relay_limits,
        store=options.store,
        task_status=task_status,
    )


@contextmanager
def _explained(what: str, host: str, port: int, option: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError:
        raise
    except ValueError as error:
        # An address that is none, or too many of them.
        raise ConfigurationError(f"{what} server: {error}") from error
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


#: `serve` with the options of the operator, which are in the file's table alone.
serve_command = with_options(serve, (*OPERATOR_OPTIONS, *_RELAY_LIMITS), "Who may do what, and how much")
