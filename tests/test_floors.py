"""The floors of the architecture (docs/design.md), held by reading every import of the package.

Each floor knows only those below it, so a reader of one file never has to look up, and what decides can be
tested without what does. Imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ntcpsock"

WORLD = frozenset({"trio", "socket", "ssl", "time", "select", "threading", "subprocess", "asyncio", "random"})


@dataclass(frozen=True)
class Floor:
    """modules: patterns of dotted names without `ntcpsock.`; knows: floors that may be imported."""

    name: str
    modules: tuple[str, ...]
    knows: frozenset[str]
    why: str
    forbidden: frozenset[str] = frozenset()
    why_forbidden: str = ""


# The first floor whose pattern fits is a module's floor.
FLOORS = (
    Floor(
        "F0 words",
        ("_version", "_errors", "_address", "_config", "_identity", "_report", "_diagnosis"),
        frozenset({"F0 words"}),
        "words are what all floors share, so they depend on none",
        frozenset({"trio", "ssl", "threading", "select", "asyncio"}),
        "a word neither waits nor connects",
    ),
    Floor(
        "F2 state",
        ("_experience", "_lifetimes", "_path_ages", "_state"),
        frozenset({"F0 words", "F2 state"}),
        "keys and pins in files are of use to nodes, servers and commands alike",
        frozenset({"trio", "socket", "ssl", "select", "asyncio"}),
        "files do not wait",
    ),
    Floor(
        "F2 names",
        ("_names",),
        frozenset({"F0 words"}),
        "which number stands for a name is a table, and the faces' business what they do with it",
        frozenset({"trio", "ssl", "select", "asyncio"}),
        "`import ntcpsock` loads it",
    ),
    Floor(
        "F2 drivers",
        (
            "_nursery",
            "_readiness",
            "_traversal.*.driver",
            "_traversal.checks.port",
            "_traversal.checks.sockets",
            "_traversal.portmap.gateway",
            "_traversal.portmap.upnp",
            "_traversal.discovery.lifetime_driver",
            "_traversal.discovery.tcp_driver",
            "_traversal.discovery.udp_driver",
            "_traversal.punch.given",
            "_traversal.broker.climb",
            "_traversal.broker.link",
            "_traversal.broker.side",
            "_traversal.broker.told",
            "_traversal.interfaces",
            "_traversal.network.clocks",
            "_traversal.broker.reach",
            "_traversal.broker.transport",
            "_traversal.turn.allocation",
            "_traversal.turn.path",
            "_traversal.turn.port",
            "_traversal.turn.transport",
            "_traversal.http.tls",
            "_traversal.relay.tunnel",
            "_freed",
            "_slim_event",
            "_session.binding",
            "_session.carrier",
            "_session.datagram_path",
            "_session.datagram_road",
            "_session.driver",
            "_session.driver_life",
            "_session.guards",
            "_session.plain",
            "_session.quic.accepting",
            "_session.quic.carrier",
            "_session.quic.driver",
            "_session.receiving",
            "_session.sending",
            "_session.socket_path",
            "_session.stream",
            "_session.tls",
            "_session.udp_batch",
        ),
        frozenset({"F0 words", "F1 protocols", "F2 state", "F2 notions", "F2 drivers"}),
        "a driver moves the bytes of one protocol; what to do with the outcome is decided above",
    ),
    Floor(
        "F2 raw",
        ("_raw.capture", "_raw.inject", "_raw.privileges"),
        frozenset({"F0 words", "F1 protocols", "F2 drivers"}),
        "raw packets in and out, for whoever may; what they are for is decided above",
    ),
    Floor(
        "F2 notions",
        ("_traversal.candidate", "_traversal.nat"),
        frozenset({"F0 words", "F1 protocols", "F2 notions"}),
        "a notion of candidates and NATs is data",
        frozenset({"trio", "threading", "select", "asyncio"}),
        "only drivers wait",
    ),
    Floor(
        "F3 pure decisions",
        (
            "_traversal.plan",
            "_traversal.nominate",
            "_traversal.aim",
            "_traversal.bursts",
            "_traversal.prediction",
            "_traversal.recent",
            "_traversal.start",
            "_traversal.explain",
            "_traversal.discovery.findings",
            "_traversal.discovery.prospects",
            "_traversal.discovery.router",
            "_traversal.discovery.survival",
            "_traversal.relay_choice",
            "_traversal.relay_plan",
            "_traversal.datagram_plan",
        ),
        frozenset({"F0 words", "F1 protocols", "F2 notions", "F3 pure decisions"}),
        "both sides compute the same plan, from data alone",
        WORLD - {"random"},
        "a decision that looked at a clock or a socket could not be table-tested",
    ),
    Floor(
        "F3 decisions",
        (
            "_traversal.discover",
            "_traversal.gather",
            "_traversal.gather_udp",
            "_traversal.hops",
            "_traversal.learn",
            "_traversal.mapping",
            "_traversal.mapping_probe",
            "_traversal.observe",
            "_traversal.observe_udp",
            "_traversal.ports",
            "_traversal.relay_times",
            "_traversal.round_port",
            "_traversal.signals",
            "_traversal.strategies",
            "_traversal.strategies.*",
        ),
        frozenset(
            {
                "F0 words",
                "F1 protocols",
                "F2 notions",
                "F2 drivers",
                "F2 raw",
                "F3 pure decisions",
                "F3 decisions",
            }
        ),
        "a strategy is one attempt; it does not know the race that it is in",
    ),
    Floor(
        "F4 orchestration",
        (
            "_traversal.race",
            "_traversal.patience",
            "_traversal.course",
            "_traversal.joint",
            "_traversal.mapped",
            "_traversal.dial",
            "_traversal.introductions",
            "_traversal.pairs",
            "_traversal.pending",
            "_traversal.prove",
            "_traversal.surroundings",
            "_traversal.time_limit",
            "_traversal.direct",
            "_traversal.moving",
            "_traversal.moving.*",
            "_traversal.relayed",
            "_traversal.turned",
            "_traversal.connect",
            "_traversal.accept",
            "_traversal.follow",
            "_traversal.follower_attempts",
            "_traversal.offered",
            "_traversal.opened",
            "_traversal.outcome",
            "_traversal.side",
            "_traversal.standing",
            "_datagram_socket",
            "_datagram_way",
            "_datagram_ways",
            "_datagrams",
            "_diagnose",
            "_listener",
            "_admission",
            "_node",
            "_node_network",
            "_node_ports",
            "_node_turn",
            "_node_settings",
            "_registration",
            "_traversal.dial_mappings",
        ),
        frozenset(
            {
                "F0 words",
                "F1 protocols",
                "F2 state",
                "F2 notions",
                "F2 drivers",
                "F2 raw",
                "F3 pure decisions",
                "F3 decisions",
                "F4 orchestration",
            }
        ),
        "orchestration serves the faces and does not know them",
    ),
    Floor(
        "F1 protocols",
        (
            "_traversal",
            "_traversal.stun",
            "_traversal.stun.*",
            "_traversal.broker",
            "_traversal.broker.*",
            "_traversal.portmap",
            "_traversal.portmap.*",
            "_traversal.discovery",
            "_traversal.discovery.*",
            "_traversal.checks",
            "_traversal.checks.*",
            "_traversal.punch",
            "_traversal.punch.*",
            "_traversal.http",
            "_traversal.http.*",
            "_traversal.turn",
            "_traversal.turn.*",
            "_traversal.network",
            "_traversal.network.*",
            "_traversal.relay",
            "_traversal.relay.*",
            "_session",
            "_session.carrier",
            "_session.datagram_frames",
            "_session.frames",
            "_session.hello",
            "_session.liveness",
            "_session.machine",
            "_session.reassembly",
            "_session.resumption",
            "_session.send_buffer",
            "_session.quic",
            "_session.quic.bbr",
            "_session.quic.configuration",
            "_session.quic.connection",
            "_session.quic.core_clock",
            "_session.quic.core_window",
            "_session.quic.datagram_queues",
            "_session.quic.delivery_rate",
            "_session.quic.dormancy",
            "_session.quic.established",
            "_session.quic.failure",
            "_session.quic.generations",
            "_session.quic.machine",
            "_session.quic.pacer",
            "_session.quic.pings",
            "_session.quic.received",
            "_session.quic.resequencing",
            "_session.quic.size_check",
            "_session.quic.sending",
            "_raw",
            "_raw.packet",
        ),
        frozenset({"F0 words", "F1 protocols"}),
        "a protocol is bytes and `now` in, bytes and events out",
        WORLD - {"random"},
        "then it runs in a test without network or clock, at any time and in any order",
    ),
    Floor(
        "F5 trio face",
        ("trio", "_datagram_sizes", "_trio_datagrams", "_trio_socket"),
        frozenset({"F0 words", "F2 state", "F2 names", "F2 drivers", "F4 orchestration", "F5 trio face"}),
        "the trio face shows nodes, listeners and streams to users; how they come about is below",
    ),
    Floor(
        "F6 sync face",
        (
            "",
            "_arrivals",
            "_broken",
            "_datagram_filter",
            "_datagram_flows",
            "_datagram_gate",
            "_datagram_local",
            "_datagram_runs",
            "_datagram_switch",
            "_datagram_table",
            "_desk",
            "_earlier",
            "_engine",
            "_forwarding",
            "_gate",
            "_gevent",
            "_hop",
            "_inquiry",
            "_known",
            "_listening",
            "_node_slot",
            "_on_import",
            "_os_exit",
            "_owner",
            "_parking",
            "_passing",
            "_patch",
            "_portal",
            "_publish",
            "_pumps",
            "_punched",
            "_resolver",
            "_socket",
            "_socket_connect",
            "_socket_datagrams",
            "_socket_listen",
            "_socket_state",
            "_source_port",
            "_ssl",
            "_uvloop",
        ),
        frozenset({"F0 words", "F2 names", "F5 trio face", "F6 sync face", "F6 pump"}),
        "the sync face is one user of the trio face: whatever it needs, every trio user can have",
    ),
    Floor(
        "F6 pump",
        ("_confirmation", "_pump", "_pump_link", "_pump_loop"),
        frozenset({"F0 words", "F1 protocols", "F2 drivers", "F6 sync face", "F6 pump"}),
        "for the sake of speed the pump moves the frames of a stream by itself, and knows of no node",
    ),
    Floor(
        "relays at brokers",
        ("_servers.relay_offering",),
        frozenset({"F0 words", "F1 protocols", "F2 state", "F2 drivers", "servers"}),
        "to a broker a relay that registers is a node like others; no other server is anybody's client",
    ),
    Floor(
        "servers",
        ("_servers", "_servers.*"),
        frozenset({"F0 words", "F1 protocols", "F2 state", "F2 raw", "servers"}),
        "servers share the wire formats with the client, never its behaviour",
    ),
    Floor(
        "lab",
        ("testing", "testing.*"),
        frozenset({"lab"}),
        "the lab judges the library, so it must not depend on it; and it is lent to other projects",
    ),
    Floor(
        "command line protocols",
        ("cli.socks5",),
        frozenset({"F0 words"}),
        "a protocol is bytes in and bytes out",
        WORLD,
        "then it runs in a test without network or clock",
    ),
    Floor(
        "command line",
        ("__main__", "cli", "cli.*", "_start_up.*"),
        frozenset(
            {
                "F0 words",
                "F2 state",
                "F5 trio face",
                "F6 sync face",
                "servers",
                "lab",
                "command line protocols",
                "command line",
            }
        ),
        "a command does what any user's program could do",
    ),
)


def floor_of(module: str) -> Floor | None:
    return next((f for f in FLOORS if any(fnmatchcase(module, pattern) for pattern in f.modules)), None)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


KNOWN = {name for name, _ in modules()}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything that the file imports; `from a import b` gives a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative imports hide the floor"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_module = base.split(".")[0] == "ntcpsock" and _own(inner) in KNOWN
                yield (inner if is_module else base), node.lineno


def _own(dotted: str) -> str:
    return dotted.removeprefix("ntcpsock").removeprefix(".")


@pytest.mark.parametrize(
    ("module", "path"), list(modules()), ids=[name or "ntcpsock" for name, _ in modules()]
)
def test_imports_go_down(module: str, path: Path) -> None:
    floor = floor_of(module)
    assert floor is not None, f"ntcpsock.{module} stands on no floor: give it one in {Path(__file__).name}"
    for imported, line in imports(path):
        where = f"{path.relative_to(PACKAGE.parent)}:{line}"
        root = imported.split(".")[0]
        if root != "ntcpsock":
            assert root not in floor.forbidden, (
                f"{where} imports {imported}; {floor.name} must not: {floor.why_forbidden}"
            )
            continue
        own = _own(imported)
        other = floor_of(own)
        assert other is not None, f"{where} imports {imported}, which stands on no floor"
        assert other.name in floor.knows, (
            f"{where}: {floor.name} imports {imported} of {other.name}, but {floor.why}"
        )


def test_importing_ntcpsock_does_not_import_trio() -> None:
    # A program under `ntcp run` that uses no .ntcp name must not pay for the engine.
    code = "import ntcpsock, sys; print([m for m in ('trio', 'typer', 'rich', 'cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_imports_no_library() -> None:
    code = (
        "import sys; sys.argv = ['ntcp', '--version']; from ntcpsock.cli import main; main();"
        "print([m for m in ('trio', 'typer', 'rich', 'nacl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, loaded = done.stdout.splitlines()
    assert version.startswith("ntcp ")
    assert loaded in ("[]", "['nacl']")
