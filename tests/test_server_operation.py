"""How an operator runs servers: settings, /metrics, /healthz, /readyz, SIGTERM that drains, SIGHUP that reads again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from certificates import Authority
from prometheus_client.parser import text_string_to_metric_families
from relay_support import running_broker, say
from world import open_world

from ntcpsock._address import Endpoint, parse_broker
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.logs import JsonLines
from ntcpsock._servers.options import OPTIONS, parse_arguments, read_settings, relay_places
from ntcpsock._servers.round_trips import BOUNDS, RoundTrips
from ntcpsock._state import load_identity
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._traversal.http.message import encode_request, upgrade_request
from ntcpsock._traversal.relay.message import SESSION_LENGTH, TICKET_HEADER, UPGRADE, issue_pair, to_header

SERVERS = Path(__file__).parents[1] / "servers"
PATIENCE = 60.0


@contextmanager
def running(*command: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The ready line, and the process, which is killed at the end if it is still there."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error", **environment},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            assert line.startswith("ready "), process.stderr.read() if process.stderr else ""
            yield line, process
        finally:
            process.kill()


def get(place: Endpoint, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{place}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[str, float]:
    """By name, with the reason behind it where there is one."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            reason = sample.labels.get("reason") or sample.labels.get("le")
            found[f"{sample.name}/{reason}" if reason else sample.name] = sample.value
    return found


async def test_metrics_of_a_broker_with_its_relay(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        async with world.node("alice") as alice, world.node(relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                async with await bob.open_stream("alice", 8000) as mine, await listening.accept() as theirs:
                    await mine.send_all(b"x" * 100_000)
                    while len(await theirs.receive_some(1)):
                        break
                    page = await trio.to_thread.run_sync(get, world.server.address, "/metrics")
                    with pytest.raises(OSError, match="nobody"):
                        await bob.open_stream("nobody", 8000)
            after = await trio.to_thread.run_sync(get, world.server.address, "/metrics")
    assert (page[0], after[0]) == (200, 200)
    first, last = samples(page[1]), samples(after[1])
    assert (first["ntcp_broker_nodes"], first["ntcp_broker_names"]) == (2, 1)
    assert (first["ntcp_relay_pairs"], first["ntcp_relay_connections"]) == (1, 2)
    assert first["ntcp_relay_joined_total"] == 1
    assert first["ntcp_relay_bytes_total"] > 1000
    assert first["ntcp_broker_introductions_total"] >= 1
    assert first["ntcp_broker_registrations_total"] >= 1
    assert first["ntcp_broker_sessions_total"] == 2
    assert first["ntcp_broker_round_trip_seconds_count"] >= 2
    assert first["ntcp_broker_round_trip_seconds_bucket/+Inf"] >= 2
    assert first["process_resident_memory_bytes"] > 1_000_000
    assert last["ntcp_broker_refused_total/not found"] == 1
    assert last["ntcp_broker_lookups_total"] > first["ntcp_broker_lookups_total"]
    assert last["ntcp_web_accepted_total"] > first["ntcp_web_accepted_total"]


async def test_metrics_are_not_for_everybody() -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
    forwarded = b"X-Forwarded-For: 192.0.2.1\r\n"
    async with running_broker() as server:
        assert (await say(server.address, request + b"\r\n")).startswith(b"HTTP/1.1 200 ")
        # A front on this machine that we were not told of: whom it brings is no neighbour.
        assert (await say(server.address, request + forwarded + b"\r\n")).startswith(b"HTTP/1.1 403 ")
    async with running_broker(behind=["127.0.0.1"]) as server:
        assert (await say(server.address, request + forwarded + b"\r\n")).startswith(b"HTTP/1.1 403 ")
    async with running_broker(behind=["127.0.0.1"], metrics_from=["192.0.2.0/24"]) as server:
        assert (await say(server.address, request + forwarded + b"\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_the_histogram_of_round_trips_is_bounded() -> None:
    trips = RoundTrips()
    for number in range(10_000):
        trips.challenged(Endpoint("192.0.2.1", number), 0.0)
    assert len(trips._challenged) == 4096
    for number, bound in enumerate((*BOUNDS, 100.0)):
        trips.challenged(Endpoint("192.0.2.2", number), 0.0)
        trips.answered(Endpoint("192.0.2.2", number), bound)
        trips.answered(Endpoint("192.0.2.2", number), bound)
    assert trips.counts == [1] * (len(BOUNDS) + 1)


def test_servers_without_http_have_a_port_for_it(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = Endpoint("127.0.0.1", probe.getsockname()[1])
    options = ("--listen", "127.0.0.1", "--port", "0", "--metrics", str(place))
    with running(str(SERVERS / "stun_server.py"), *options) as (line, process):
        host, _, port = line.split()[1].rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12), (host, int(port)))
            assert sock.recv(1000)[:2] == b"\1\1"
        status, text = get(place, "/metrics")
        assert (status, samples(text)["ntcp_stun_udp_requests_total"]) == (200, 1)
        assert get(place, "/healthz") == (200, "ok\n")
        assert get(place, "/readyz") == (200, "ready\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    with running(str(SERVERS / "udp_broker.py"), *options, "--state-dir", str(tmp_path)) as (_, process):
        assert samples(get(place, "/metrics")[1])["ntcp_broker_nodes"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def seats(relay: Endpoint, secret: bytes, number: int) -> list[socket.socket]:
    """Both ends of a relayed connection."""
    ends = []
    session = number.to_bytes(SESSION_LENGTH, "big")
    for ticket in issue_pair(secret, session, b"d" * 32, b"l" * 32, time.time()):
        sock = socket.create_connection(relay, PATIENCE)
        request = upgrade_request("relay", "/relay", UPGRADE, {TICKET_HEADER: to_header(ticket).decode()})
        sock.sendall(encode_request(request))
        ends.append(sock)
    return ends


@pytest.mark.parametrize("script", ["relay.py", "tcp_broker.py", "serve"])
def test_sigterm_lets_relayed_connections_end(script: str, tmp_path: Path) -> None:
    secret = load_identity(tmp_path / "relay.key").seed
    options = ["--listen", "127.0.0.1"]
    if script == "serve":
        command = ["-m", "ntcpsock", "serve", "--broker-port", "0", "--stun-port", "0", "--state-dir"]
    else:
        command = [str(SERVERS / script), "--port", "0"]
        command += ["--state-dir"] if script == "tcp_broker.py" else ["--relay-key"]
    place = str(tmp_path / "relay.key" if script == "relay.py" else tmp_path)
    with running(*command, place, *options) as (line, process):
        where = line.split()[1]
        address = parse_broker(f"ntcp://{where}" if script == "relay.py" else where)
        relay = Endpoint(address.host, address.port)
        one, two = seats(relay, secret, 1)
        assert one.recv(1000).startswith(b"HTTP/1.1 101 ")
        assert two.recv(1000).startswith(b"HTTP/1.1 101 ")
        assert get(relay, "/readyz") == (200, "ready\n")
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while get(relay, "/readyz") != (503, "draining\n"):
            assert time.monotonic() < deadline
        # What there is goes on, and nothing new comes.
        one.sendall(b"still here")
        assert two.recv(100) == b"still here"
        late, other = seats(relay, secret, 2)
        assert late.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert process.poll() is None
        for sock in (one, two, late, other):
            sock.close()
        assert process.wait(PATIENCE) == 0


def test_a_drain_has_its_bound_and_a_second_signal_ends_it(tmp_path: Path) -> None:
    secret = load_identity(tmp_path / "relay.key").seed
    command = [str(SERVERS / "relay.py"), "--listen", "127.0.0.1", "--port", "0", "--relay-key"]
    command.append(str(tmp_path / "relay.key"))
    for drain, signals in (("0.3", 1), ("1000", 2)):
        with running(*command, "--drain", drain) as (line, process):
            host, _, port = line.split()[1].rpartition(":")
            relay = Endpoint(host, int(port))
            ends = seats(relay, secret, 1)
            assert ends[0].recv(1000).startswith(b"HTTP/1.1 101 ")
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                while get(relay, "/readyz")[0] != 503:
                    assert process.poll() is None
                process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            for sock in ends:
                sock.close()


def test_sighup_reads_the_certificate_again_and_says_what_is_wrong(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue(tmp_path, "localhost")
    options = ["--listen", "127.0.0.1", "--port", "0", "--state-dir", str(tmp_path), "--log", "json"]
    files = ["--certificate", str(certificate), "--key", str(key)]
    with running(str(SERVERS / "tcp_broker.py"), *options, *files) as (line, process):
        broker = parse_broker(line.split()[1])
        assert process.stderr is not None
        event = json.loads(process.stderr.readline())
        assert event["message"] == f"serving: {line}, admin {tmp_path / 'admin-tcp_broker.sock'}"
        messages = []
        for text in (key.read_text(), "no key"):
            key.write_text(text)
            process.send_signal(signal.SIGHUP)
            event = json.loads(process.stderr.readline())
            assert event["logger"] == "ntcpsock.server"
            messages.append((event["level"], event["message"]))
        assert messages[0] == ("info", "files were read again")
        assert messages[1][0] == "error"
        assert str(key) in messages[1][1]
        assert get(Endpoint(broker.host, broker.port), "/healthz") == (200, "ok\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_settings_come_from_flags_environment_and_file_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(
        'listen = ["127.0.0.1"]\nport = 1\nstate_dir = "~/ntcp"\ndrain = 5\nallow_spoofing = true\nlog = "json"\n'
    )
    names = ("listen", "port", "state_dir", "drain", "allow_spoofing", "behind", "connect_back")
    argv = ["--config", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NTCP_SERVE_PORT", "2")
        patch.setenv("NTCP_SERVE_BEHIND", "192.0.2.1, 192.0.2.2")
        settled = parse_arguments("a test", names, argv, port=6060)
        assert (settled.listen, settled.port, settled.drain) == (["127.0.0.1"], 2, 5.0)
        assert settled.state_dir == Path.home() / "ntcp"
        assert (settled.allow_spoofing, settled.connect_back, settled.log) == (True, True, "json")
        assert settled.behind == ["192.0.2.1", "192.0.2.2"]
        settled = parse_arguments(
            "a test", names, [*argv, "--port", "3", "--listen", "::1", "--no-connect-back"], port=6060
        )
        assert (settled.port, settled.listen, settled.connect_back) == (3, ["::1"], False)
    assert parse_arguments("a test", names, [], port=6060).port == 6060


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = 1", "unknown setting colour; known are behind, drain, listen, port"),
        ('port = "x"', "port: expected a number"),
        ("port = 1.5", "port: expected a number"),
        ("port = true", "port: expected a number"),
        ('listen = "::"', "listen: expected a list of strings"),
        ("drain = []", "drain: expected a number"),
        ("port = ", "Invalid value"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    options = [OPTIONS[name] for name in ("listen", "port", "drain", "behind")]
    with pytest.raises(ConfigurationError, match=words):
        read_settings(file, options, {})


def test_what_is_wrong_in_the_environment_is_said() -> None:
    options = [OPTIONS["port"], OPTIONS["allow_spoofing"]]
    with pytest.raises(ConfigurationError, match="NTCP_SERVE_PORT: expected a number"):
        read_settings(None, options, {"NTCP_SERVE_PORT": "many"})
    with pytest.raises(ConfigurationError, match="NTCP_SERVE_ALLOW_SPOOFING: expected true or false"):
        read_settings(None, options, {"NTCP_SERVE_ALLOW_SPOOFING": "perhaps"})
    assert read_settings(None, options, {"NTCP_SERVE_ALLOW_SPOOFING": "off"}) == {"allow_spoofing": False}


def test_ntcp_serve_reads_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        f'listen = ["127.0.0.1"]\nbroker_port = 0\nstun_port = 0\nstate_dir = "{tmp_path}"\ndrain = 0\n'
    )
    serve = ("-m", "ntcpsock", "serve", "--config", str(file))
    with running(*serve, NTCP_SERVE_STUN="192.0.2.9:3478") as (line, process):
        broker = parse_broker(line.split()[1])
        assert broker.host == "127.0.0.1"
        document = json.loads(get(Endpoint(broker.host, broker.port), "/.well-known/ntcp")[1])
        assert document["stun"][-1] == "192.0.2.9:3478"
        assert len(document["stun"]) == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    file.write_text("port = 6060\n")
    done = subprocess.run([sys.executable, *serve], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown setting port" in done.stderr.replace("\n", " ")


def test_relays_are_told_with_and_without_tls() -> None:
    assert relay_places(
        ["192.0.2.1", "[2001:db8::1]:7000", "wss://relay.example", "wss://relay.example:8443"]
    ) == [
        RelayPlace("192.0.2.1", 6060),
        RelayPlace("2001:db8::1", 7000),
        RelayPlace("relay.example", 443, True),
        RelayPlace("relay.example", 8443, True),
    ]
    assert relay_places(None) is None


def test_a_certificate_without_its_key_is_said(tmp_path: Path) -> None:
    certificate, _ = Authority(tmp_path).issue(tmp_path, "localhost")
    for options, words in (
        (["--certificate", str(certificate)], "certificate "),
        (["--certificate", str(tmp_path / "none.pem")], "No such file"),
        (["--key", str(certificate)], "a key without a certificate"),
    ):
        done = subprocess.run(
            [sys.executable, str(SERVERS / "tcp_broker.py"), "--state-dir", str(tmp_path), *options],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "option", "words"),
    [
        ("ntcp", ("--behind", "somewhere"), "somewhere"),
        ("script", ("--behind", "somewhere"), "somewhere"),
        ("script", ("--metrics-from", "10.0.0.0/99"), "10.0.0.0/99"),
        ("ntcp", ("--relay", "relay.example:6061"), "relay.example"),
        ("ntcp", ("--stun", "stun.example"), "stun.example"),
        ("ntcp", ("--log", "loud"), "text or json"),
    ],
)
def test_what_is_no_address_is_said_in_a_line(
    program: str, option: tuple[str, str], words: str, tmp_path: Path
) -> None:
    free = ("--listen", "127.0.0.1", "--state-dir", str(tmp_path))
    command: tuple[str, ...]
    if program == "script":
        command = (str(SERVERS / "tcp_broker.py"), "--port", "0", *free)
    else:
        command = ("-m", "ntcpsock", "serve", "--broker-port", "0", "--stun-port", "0", *free)
    done = subprocess.run([sys.executable, *command, *option], capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_lines_hold_fields_and_exceptions() -> None:
    import logging

    try:
        raise OSError("why")
    except OSError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "broke %s", ("it",), sys.exc_info()
        )
    record.fields = {"relay": Endpoint("192.0.2.1", 1)}
    event = json.loads(JsonLines().format(record))
    assert (event["level"], event["logger"], event["message"]) == ("error", "x", "broke it")
    assert event["relay"] == ["192.0.2.1", 1]
    assert "OSError: why" in event["exception"]


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        options = ("--listen", "127.0.0.1", "--port", "0", "--state-dir", str(tmp_path))
        command = (str(SERVERS / "tcp_broker.py"), *options)
        with running(*command, NOTIFY_SOCKET=str(tmp_path / "notify")) as (_, process):
            assert sock.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert sock.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0


def test_servers_load_where_there_is_no_unix() -> None:
    """As on Windows: without the modules that only Unix has."""
    program = """
import importlib, pkgutil, sqlite3, subprocess, sys, tempfile, trio, typer, h11, wsproto, msgspec, nacl.bindings
import cryptography.x509
for name in ("resource", "fcntl", "termios", "pwd", "grp"):
    sys.modules[name] = None
sys.platform = "win32"
import ntcpsock._servers, ntcpsock.cli.serve
for module in pkgutil.iter_modules(ntcpsock._servers.__path__):
    importlib.import_module("ntcpsock._servers." + module.name)
descriptors = importlib.import_module("ntcpsock._servers.descriptors")
assert descriptors.descriptor_limit() > 1000
descriptors.raise_descriptor_limit()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
