"""`ntcp lab`: connections through real NATs on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ntcpsock.cli.stage import Stage
    from ntcpsock.testing.natlab import Host, Lab

lab_app = typer.Typer(help="Connections through real NATs on this machine.", no_args_is_help=True)

# What host B calls itself, and the port where it listens.
TARGET = "b.ntcp:7000"

# What a lab measures are direct paths. `--technique relay` asks for the other one.
DIRECT = {"NTCP_RELAY": "never"}

_KINDS = "a kind of `ntcp lab list`, or words of RFC 4787 like apdm+adf+sequential=2."
_TRY_DEADLINE = 30.0  # seconds for one try, its time-out and the pause before it included


@lab_app.callback()
def lab() -> None:
    """Connections through real NATs on this machine."""


@lab_app.command("pair")
def pair(
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROGRAM",
            help=f"Run this on host A instead; an echo answers at {TARGET}.",
            show_default=False,
        ),
    ] = None,
    nat_a: Annotated[
        str, typer.Option("--nat-a", metavar="KIND", help=f"Host A's router: {_KINDS}")
    ] = "default",
    nat_b: Annotated[str, typer.Option("--nat-b", metavar="KIND", help="Host B's router.")] = "default",
    cgn_a: Annotated[
        str | None, typer.Option("--cgn-a", metavar="KIND", help="A carrier's NAT before host A's router.")
    ] = None,
    cgn_b: Annotated[
        str | None, typer.Option("--cgn-b", metavar="KIND", help="A carrier's NAT before host B's router.")
    ] = None,
    same_cgn: Annotated[
        bool, typer.Option("--same-cgn", help="Host B's router behind the carrier's NAT of --cgn-a.")
    ] = False,
    same_nat: Annotated[
        bool, typer.Option("--same-nat", help="Host B on the LAN of host A's router.")
    ] = False,
    same_range: Annotated[
        bool, typer.Option("--same-range", help="Both LANs have the same private addresses.")
    ] = False,
    second_a: Annotated[
        str | None, typer.Option("--second-a", metavar="KIND", help="The router of host A's second uplink.")
    ] = None,
    ipv6: Annotated[
        str,
        typer.Option(
            "--ipv6",
            metavar="HOW[,HOW]",
            help="IPv6 of both hosts, or of A and of B: none, open, firewall or reject.",
        ),
    ] = "none",
    delay_ms: Annotated[
        float, typer.Option("--delay-ms", min=0, help="One-way delay of each router's link, in ms.")
    ] = 25.0,
    tries: Annotated[int, typer.Option("--tries", min=1, max=10_000, help="Connect this often.")] = 1,
    technique: Annotated[
        str | None,
        typer.Option(
            "--technique", metavar="T[,T]", help="Only these, at both hosts. Default: all but relay."
        ),
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option("--maps", metavar="a|b", help="Whose router maps ports when it is asked (miniupnpd)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each try, on stdout.")] = False,
) -> None:
    """Connect two hosts behind two NATs, and show what happened.

    Host A dials host B through their routers; `ntcp serve` runs on the public segment. Exit code 1
    when a try failed.
    """
    from ntcpsock.cli.stage import StageError
    from ntcpsock.testing.natlab import LabUnavailable, parse_kind

    kinds = {
        "--nat-a": nat_a,
        "--nat-b": nat_b,
        "--cgn-a": cgn_a,
        "--cgn-b": cgn_b,
        "--second-a": second_a,
    }
    for option, kind in kinds.items():
        try:
            if kind is not None:
                parse_kind(kind)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None
    if same_cgn and (cgn_a is None or cgn_b is not None or same_nat):
        raise typer.BadParameter("needs --cgn-a alone, and no --same-nat", param_hint="--same-cgn")
    if maps is not None and (
        maps not in ("a", "b") or not parse_kind(nat_a if maps == "a" else nat_b).translates
    ):
        raise typer.BadParameter("a or b, whichever router is a NAT", param_hint="--maps")
    settings = technique_settings(technique)
    more = {
        "cgn_a": cgn_a,
        "cgn_b": cgn_b,
        "same_cgn": same_cgn,
        "same_nat": same_nat,
        "same_private_range": same_range,
        "second_a": second_a,
        "ipv6": _ipv6_of_both(ipv6),
    }
    enter_namespaces()
    try:
        with (
            open_lab_stage(nat_a, nat_b, delay_ms / 1000, **more) as (opened, stage),
            _mapping_router(opened, maps) as mapped,
        ):
            start_echo(opened, stage, settings)
            mapped()
            if program:
                raise SystemExit(_run_program(opened, stage, program, settings))
            succeeded = _show(opened, list(dial(opened, stage, tries, dialer=settings)), as_json)
    except (LabUnavailable, StageError) as error:
        print(f"ntcp lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if not succeeded:
        raise SystemExit(1)


def _ipv6_of_both(text: str) -> tuple[str, str]:
    """`HOW` or `HOW,HOW`; what is none of them is a usage error."""
    from ntcpsock.testing.natlab.lab import IPV6

    first, _, second = text.partition(",")
    both = first, second or first
    if not set(both) <= set(IPV6):
        raise typer.BadParameter(f"one or two of {', '.join(IPV6)}", param_hint="--ipv6")
    return both


@lab_app.command("list")
def list_kinds(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each kind, on stdout.")] = False,
) -> None:
    """The kinds of routers that a lab can have, in the words of RFC 4787 and 5382."""
    from ntcpsock.cli.lab_kinds import show_kinds

    show_kinds(as_json=as_json)


def enter_namespaces() -> None:
    """Make network namespaces possible, in a user namespace where need be; exit 1 where they are
    forbidden."""
    if (reason := why_no_namespaces()) is not None:
        print(f"ntcp lab: {reason}", file=sys.stderr)
        raise SystemExit(1)


def why_no_namespaces() -> str | None:
    """None where labs can be opened. Starts this program again in a user namespace, where that helps."""
    from ntcpsock.testing.natlab import LabUnavailable, namespaces_available, reexec_in_user_namespace

    if namespaces_available() is None:
        return None
    try:
        reexec_in_user_namespace()  # returns as root only
    except LabUnavailable as error:
        return f"no network namespaces: {error}"
    return namespaces_available()


@contextmanager
def open_lab_stage(nat_a: str, nat_b: str, delay: float, **more: Any) -> Iterator[tuple[Lab, Stage]]:
    """A lab with `ntcp serve` on its public segment. `more`: other arguments of `open_lab`."""
    from ntcpsock.cli.stage import open_stage
    from ntcpsock.testing.natlab import open_lab

    with open_lab(nat_a, nat_b, delay=delay, **more) as lab:
        options = []
        for first, second in filter(None, (lab.server_addresses, lab.server_addresses6)):
            options += ["--listen", first, "--other-address", second]
        ways = (nat_a, nat_b, more.get("cgn_a"), more.get("cgn_b"))
        if not all(_sends_udp(nat) for nat in ways if nat is not None):
            options += ["--broker-port", "443"]
        with open_stage(lab.server, *options) as stage:
            yield lab, stage


def _sends_udp(nat: str) -> bool:
    from ntcpsock.testing.natlab import Behaviour, parse_kind

    kind = parse_kind(nat)
    return not isinstance(kind, Behaviour) or kind.sends_udp


def start_echo(lab: Lab, stage: Stage, settings: Mapping[str, str] | None = None) -> None:
    """Have host B listen at TARGET and send everything back. settings: of NTCP_*, DIRECT when None."""
    from ntcpsock.cli.stage import READY_DEADLINE

    argv = [sys.executable, "-m", "ntcpsock.cli.lab_peer", "echo", TARGET]
    environment = stage.environment(
        "b", **(DIRECT if settings is None else settings), **_proxy_of(lab.host_b)
    )
    events = stage.start(lab.host_b, "b", argv, environment)
    events.wait_for("listening", READY_DEADLINE)


def dial(
    lab: Lab,
    stage: Stage,
    tries: int,
    *,
    dialer: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Dial TARGET, where `start_echo` listens, from one warm node on host A; the events of all tries, `connected` or
    `error`.

    dialer: NTCP_* settings of that node, DIRECT when None. Raises StageError where it does not work at all.
    """
    from ntcpsock.cli.stage import StageError

    argv = [sys.executable, "-m", "ntcpsock.cli.lab_peer", "dial", TARGET, "--tries", str(tries)]
    environment = stage.environment("a", **(DIRECT if dialer is None else dialer), **_proxy_of(lab.host_a))
    process = stage.start(lab.host_a, "a", argv, environment)
    while (event := process.next(_TRY_DEADLINE)) is not None:
        yield event
    if process.process.wait() not in (0, 1):
        raise StageError(f"the dialer broke:\n{process.errors()}")


def _proxy_of(host: Host) -> dict[str, str]:
    """The environment of programs on a host which has no other way out than an HTTP proxy."""
    return {} if host.proxy is None else {"HTTPS_PROXY": "http://{}:{}".format(*host.proxy)}


def technique_settings(techniques: str | None) -> Mapping[str, str]:
    """The NTCP_* settings of a node that uses only `T[,T]`; what is no technique is a usage error (exit 2)."""
    from ntcpsock._config import TECHNIQUES

    if techniques is None:
        return DIRECT
    unknown = sorted(set(techniques.split(",")) - set(TECHNIQUES))
    if unknown:
        known = ", ".join(TECHNIQUES)
        raise typer.BadParameter(f"unknown {', '.join(unknown)}; known are {known}", param_hint="--technique")
    return {"NTCP_TECHNIQUES": techniques}


@contextmanager
def _mapping_router(lab: Lab, side: str | None) -> Iterator[Callable[[], None]]:
    """Have the router of host `side` map ports. Lends a function that waits for the listener's mapping, which must be
    there before anybody dials; a dialer asks when it needs one."""
    if side is None:
        yield lambda: None
        return
    from ntcpsock.cli.stage import READY_DEADLINE, StageError
    from ntcpsock.testing.natlab import port_mapper

    with port_mapper(lab.nat_a if side == "a" else lab.nat_b) as mapper:

        def wait() -> None:
            deadline = time.monotonic() + READY_DEADLINE
            while side == "b" and not mapper.mappings():
                if time.monotonic() > deadline:
                    raise StageError(f"host B asked its router for no port\n{mapper.log}")
                time.sleep(0.05)

        yield wait


def _run_program(lab: Lab, stage: Stage, program: Sequence[str], settings: Mapping[str, str]) -> int:
    environment = stage.environment("a", **settings, **_proxy_of(lab.host_a))
    process = lab.host_a.popen(program, env=environment, stdin=None, start_new_session=False)
    return int(process.wait())


def _show(lab: Lab, events: Sequence[dict[str, Any]], as_json: bool) -> bool:
    """Print the outcome. Whether every try connected."""
    if as_json:
        for event in events:
            print(json.dumps(event), flush=True)
    else:
        from ntcpsock.cli.lab_view import show_pair

        show_pair(lab, events)
    return bool(events) and all(event["event"] == "connected" for event in events)
