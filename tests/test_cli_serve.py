"""`ntcp serve`: the ready line, the end by signal, and what it says when it cannot start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ntcpsock._address import BrokerAddress, parse_broker
from ntcpsock._config import Config
from ntcpsock._servers import places
from ntcpsock._servers.places import all_listens, reachable_address, told_addresses
from ntcpsock._traversal.stun.driver import binding_over_tcp, binding_over_udp
from ntcpsock.cli.stage import open_loopback_stage
from ntcpsock.trio import open_node

SERVE = [sys.executable, "-m", "ntcpsock", "serve"]
needs_ipv6 = pytest.mark.skipif(not places._has_ipv6(), reason="this host has no IPv6 loopback")
FREE = ["--broker-port", "0", "--stun-port", "0"]


def start(*options: str, state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SERVE, "--listen", "127.0.0.1", *options, "--state-dir", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ready_line_and_clean_end(number: signal.Signals, tmp_path: Path) -> None:
    with start(*FREE, state=tmp_path) as process:
        assert process.stdout is not None
        line, admin = process.stdout.readline(), process.stdout.readline()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert (admin, stdout) == (f"admin {tmp_path / 'admin-serve.sock'}\n", "")
    word, _, uri = line.strip().partition(" ")
    address = parse_broker(uri)
    assert (word, address.host) == ("ready", "127.0.0.1")
    assert address.port > 0
    assert address.key is not None


@pytest.mark.parametrize(("option", "answers"), [("--tcp", True), ("--no-tcp", False)])
def test_the_broker_has_a_tcp_port_beside_udp(option: str, answers: bool, tmp_path: Path) -> None:
    with start(*FREE, option, state=tmp_path) as process:
        assert process.stdout is not None
        address = parse_broker(process.stdout.readline().split()[1])
        try:
            with socket.create_connection((address.host, address.port), 60) as sock:
                sock.sendall(b"GET /.well-known/ntcp HTTP/1.1\r\nHost: x\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
                assert answers
        except ConnectionRefusedError:
            assert not answers
        process.send_signal(signal.SIGTERM)


def test_json_ready_line_and_a_key_that_stays(tmp_path: Path) -> None:
    keys = set()
    for _ in range(2):
        with start(*FREE, "--json", state=tmp_path) as process:
            assert process.stdout is not None
            event = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 0
        assert event["event"] == "ready"
        assert event["admin"] == str(tmp_path / "admin-serve.sock")
        assert len(event["stun"]) == 2
        keys.add(parse_broker(event["broker"]).key)
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("kind", "option", "word"),
    [
        (socket.SOCK_DGRAM, "--broker-port", "broker"),
        (socket.SOCK_DGRAM, "--stun-port", "STUN"),
        (socket.SOCK_STREAM, "--stun-port", "STUN"),
    ],
)
def test_port_in_use(kind: socket.SocketKind, option: str, word: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, kind) as occupant:
        occupant.bind(("127.0.0.1", 0))
        port = occupant.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            occupant.listen()
        options = {"--broker-port": "0", "--stun-port": "0", "--other-stun-port": "0", option: str(port)}
        with start(*[part for pair in options.items() for part in pair], state=tmp_path) as process:
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr == (
        f"ntcp: {word} server: cannot listen on 127.0.0.1:{port}: Address already in use; "
        f"choose another port with {option}\n"
    )


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--listen", "localhost"], 2, "expected a numeric address"),
        (["--broker-port", "65536"], 2, "--broker-port"),
        (["--nonsense"], 2, "No such option"),
        (["--other-address", "127.0.0.1"], 1, "the other address must be a different one"),
        (["--listen", "198.51.100.77"], 1, "cannot listen on 198.51.100.77:3478"),
    ],
)
def test_mistakes(options: list[str], status: int, words: str, tmp_path: Path) -> None:
    with start(*options, state=tmp_path) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert words in stderr
    assert "Traceback" not in stderr


async def test_servers_answer(tmp_path: Path) -> None:
    with open_loopback_stage() as stage:
        config = Config(broker=stage.broker, state_dir=tmp_path)
        with trio.fail_after(60):
            async with open_node(config) as node:
                assert len(node.stun_servers) == 2
                for server in node.stun_servers:
                    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
                        await sock.bind(("127.0.0.1", 0))
                        assert (await binding_over_udp(sock, server)).mapped == sock.getsockname()
                    with trio.socket.socket() as stream:
                        await stream.connect(server)
                        assert (await binding_over_tcp(stream)).mapped == stream.getsockname()


@needs_ipv6
def test_both_families(tmp_path: Path) -> None:
    command = [
        *SERVE,
        *FREE,
        "--json",
        "--state-dir",
        str(tmp_path),
        "--listen",
        "::1",
        "--listen",
        "127.0.0.1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        told = parse_broker(event["broker"])
        assert told.host == "127.0.0.1"
        assert [server.rpartition(":")[0] for server in event["stun"]] == ["127.0.0.1"] * 2 + ["[::1]"] * 2
        for host in ("127.0.0.1", "::1"):
            config = Config(broker=str(BrokerAddress(host, told.port, told.key)), state_dir=tmp_path / host)
            assert trio.run(told_servers, config) == event["stun"]
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


async def told_servers(config: Config) -> list[str]:
    with trio.fail_after(60):
        async with open_node(config) as node:
            return [str(server) for server in node.stun_servers]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--other-address", "127.0.0.2", "--other-address", "127.0.0.3"], "at most one of each family"),
        (["--other-address", "::1"], "no --listen of its family"),
        ([f"--listen=127.0.0.{number}" for number in range(2, 6)], "at most 4 addresses"),
    ],
)
def test_addresses_that_do_not_fit_together(options: list[str], words: str, tmp_path: Path) -> None:
    with start(*options, state=tmp_path) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in " ".join(stderr.split())


@needs_ipv6
def test_what_listening_addresses_stand_for() -> None:
    assert all_listens(["::"]) == ("0.0.0.0", "::")
    assert all_listens(["0.0.0.0"]) == ("0.0.0.0",)
    assert all_listens(["2001:db8::1", "192.0.2.1", "192.0.2.1"]) == ("192.0.2.1", "2001:db8::1")


def test_a_machine_without_ipv6_listens_on_all_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_has_ipv6", lambda: False)
    assert all_listens(["::"]) == ("0.0.0.0",)


def test_what_nodes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    firsts = {"0.0.0.0": "10.0.0.5", "::": "2001:db8::5"}
    monkeypatch.setattr(places, "reachable_address", lambda address: firsts.get(address, address))
    assert told_addresses(["0.0.0.0", "::"]) == ["2001:db8::5"]
    assert told_addresses(["10.0.0.7", "192.0.2.1"]) == ["10.0.0.7", "192.0.2.1"]


def test_reachable_address() -> None:
    assert reachable_address("127.0.0.5") == "127.0.0.5"
    assert not reachable_address("0.0.0.0").startswith("0.")
    assert reachable_address("::") != "::"
