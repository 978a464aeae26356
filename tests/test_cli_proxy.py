"""`ntcp proxy` over loopback: curl and raw SOCKS 5 clients, with a real `ntcp serve`."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from service_support import (
    DEADLINE,
    NTCP,
    Command,
    answer_after_end,
    dial,
    echo,
    is_reset,
    read_all,
    reset,
    tcp_service,
    unused_port,
)

from ntcpsock._errors import (
    BrokerUnreachable,
    ConfigurationError,
    IdentityMismatch,
    NameNotFound,
    PeerOffline,
    PeerRefused,
    TraversalFailed,
    TraversalTimeout,
)
from ntcpsock.cli.proxy import read_users
from ntcpsock.cli.socks5 import Reply
from ntcpsock.cli.socks5_server import Refused, reply_to
from ntcpsock.cli.stage import Stage, open_loopback_stage


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.fixture(scope="module")
def echo_by_name(stage: Stage) -> Iterator[Command]:
    """`echo.ntcp:7` sends back what it gets."""
    with tcp_service(echo) as port, Command(stage, "echo", "expose", "echo:7", "--to", str(port)) as exposed:
        yield exposed


@pytest.fixture(scope="module")
def proxy(stage: Stage) -> Iterator[Command]:
    with Command(stage, "caller", "proxy", "--socks5", "0") as command:
        yield command


def receive_exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (chunk := client.recv(count - len(data))):
        data += chunk
    return data


def request(client: socket.socket, host: str, port: int) -> int:
    """Ask for a connection; the reply code."""
    client.sendall(b"\x05\x01\x00")
    assert receive_exactly(client, 2) == b"\x05\x00"
    name = host.encode()
    client.sendall(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + struct.pack("!H", port))
    head = receive_exactly(client, 4)
    assert head[0] == 5
    address = receive_exactly(client, {1: 6, 4: 18}[head[3]])
    assert head[1] or any(address), "a success names our address"
    return head[1]


def http_answer(connection: socket.socket) -> None:
    while b"\r\n\r\n" not in connection.recv(65536):
        pass
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    return subprocess.run(
        ["curl", "--silent", "--max-time", str(DEADLINE), *arguments],
        capture_output=True,
        timeout=2 * DEADLINE,
        check=False,
    )


def at(command: Command) -> str:
    host, port = command.place
    return f"{host}:{port}"


def test_curl(stage: Stage, proxy: Command) -> None:
    with (
        tcp_service(http_answer) as port,
        Command(stage, "web", "expose", "web:80", "--to", str(port)),
    ):
        done = curl("--socks5-hostname", at(proxy), "http://web.ntcp/")
        assert (done.returncode, done.stdout) == (0, b"hello")
        opened = proxy.wait_for("opened")
        assert (opened["target"], opened["peer"]["name"]) == ("web.ntcp:80", "web")
        assert proxy.wait_for("closed")["broken_by"] is None


def test_fifty_at_once(echo_by_name: Command, proxy: Command) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(proxy.place)) for _ in range(50)]
        # All requests are under way before the first answer is read.
        for client in clients:
            client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03\x09echo.ntcp\x00\x07")
        for client in clients:
            assert receive_exactly(client, 2 + 10)[:4] == b"\x05\x00\x05\x00"
        messages = [os.urandom(20_000) for _ in clients]
        for client, message in zip(clients, messages, strict=True):
            client.sendall(message)
            client.shutdown(socket.SHUT_WR)
        assert [read_all(client) for client in clients] == messages


def test_data_before_the_answer(echo_by_name: Command, proxy: Command) -> None:
    with dial(proxy.place) as client:
        client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03\x09echo.ntcp\x00\x07" + b"early")
        assert receive_exactly(client, 12 + 5)[12:] == b"early"


def test_half_close_and_reset(stage: Stage, proxy: Command) -> None:
    seen: list[bool] = []

    def handler(connection: socket.socket) -> None:
        if connection.recv(1, socket.MSG_PEEK) == b"r":
            connection.recv(1)
            connection.sendall(b"ready")
            seen.append(is_reset(connection))
        else:
            answer_after_end(connection)

    with (
        tcp_service(handler) as port,
        Command(stage, "ends", "expose", "ends:80", "--to", str(port)) as exposed,
    ):
        with dial(proxy.place) as client:
            assert request(client, "ends.ntcp", 80) == Reply.SUCCEEDED
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"8 bytes"
        assert exposed.wait_for("closed")["broken_by"] is None
        client = dial(proxy.place)
        assert request(client, "ends.ntcp", 80) == Reply.SUCCEEDED
        client.sendall(b"r")
        assert receive_exactly(client, 5) == b"ready"
        reset(client)
        assert exposed.wait_for("closed")["broken_by"] == "peer"
    assert seen == [True]


@pytest.mark.parametrize(
    ("host", "port", "reply"),
    [
        ("nobody-has-this.ntcp", 80, Reply.HOST_UNREACHABLE),
        ("-not-a-name-.ntcp", 80, Reply.HOST_UNREACHABLE),
        ("echo.ntcp", 9, Reply.CONNECTION_REFUSED),
        ("localhost", 80, Reply.NOT_ALLOWED),
        ("192.0.2.1", 80, Reply.NOT_ALLOWED),
    ],
)
def test_refusals(echo_by_name: Command, proxy: Command, host: str, port: int, reply: Reply) -> None:
    with dial(proxy.place) as client:
        assert request(client, host, port) == reply
        assert read_all(client) == b""
    assert proxy.wait_for("error")["message"]


def test_curl_explains_a_refusal(proxy: Command) -> None:
    done = curl("--show-error", "--socks5-hostname", at(proxy), "http://nobody-has-this.ntcp/")
    assert done.returncode == 97  # CURLE_PROXY
    assert b"(4)" in done.stderr


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x05\x01\x07"]
)
def test_clients_that_speak_something_else(proxy: Command, data: bytes) -> None:
    with dial(proxy.place) as client:
        client.sendall(data)
        assert read_all(client) in (b"", b"\x05\xff")
    assert proxy.wait_for("error")["message"]


def test_passthrough(stage: Stage) -> None:
    closed_port = unused_port()
    with (
        tcp_service(echo) as port,
        Command(stage, "caller", "proxy", "--socks5", "0", "--passthrough") as proxy,
    ):
        assert proxy.listening["passthrough"] is True
        for host in ("localhost", "127.0.0.1"):
            with dial(proxy.place) as client:
                assert request(client, host, port) == Reply.SUCCEEDED
                client.sendall(b"plain")
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"plain"
            assert proxy.wait_for("opened")["kind"] == "plain"
        with dial(proxy.place) as client:
            assert request(client, "127.0.0.1", closed_port) == Reply.CONNECTION_REFUSED
        assert proxy.wait_for("error")["errno"] == errno.ECONNREFUSED
        with dial(proxy.place) as client:
            assert request(client, "nowhere.invalid", 80) == Reply.HOST_UNREACHABLE
        assert proxy.end(signal.SIGINT)[0] == 0


def test_users(stage: Stage, echo_by_name: Command, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("# who may\n\nbob:secret\n")
    with Command(stage, "caller", "proxy", "--socks5", "*:0", "--users", str(file)) as proxy:
        assert not [event for event in proxy.before if event["event"] == "warning"]
        place = ("127.0.0.1", proxy.place[1])
        for password, answer in ((b"secret", b"\x01\x00"), (b"guess", b"\x01\x01")):
            with dial(place) as client:
                client.sendall(b"\x05\x02\x00\x02")
                assert receive_exactly(client, 2) == b"\x05\x02"
                client.sendall(b"\x01\x03bob" + bytes((len(password),)) + password)
                assert receive_exactly(client, 2) == answer
                client.sendall(b"\x05\x01\x00\x03\x09echo.ntcp\x00\x07")
                assert receive_exactly(client, 4)[:2] == (b"\x05\x00" if password == b"secret" else b"")
        assert proxy.wait_for("error")["message"] == "wrong user name or password"


def test_listening_wide_without_users(stage: Stage) -> None:
    with Command(stage, "caller", "proxy", "--socks5", "*:0") as proxy:
        (warning,) = (event["message"] for event in proxy.before)
        assert "whoever reaches this address can connect to names through this node" in warning


@pytest.mark.parametrize("text", ["", "bob", ":secret", "bob:", f"{'b' * 256}:x"])
def test_malformed_users(tmp_path: Path, text: str) -> None:
    file = tmp_path / "users"
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        read_users(file)
    done = subprocess.run(
        [*NTCP, "proxy", "--broker", "127.0.0.1:9", "--users", str(file)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    with pytest.raises(ConfigurationError, match="No such file"):
        read_users(tmp_path / "missing")


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (NameNotFound("x"), Reply.HOST_UNREACHABLE),
        (PeerOffline("x"), Reply.CONNECTION_REFUSED),
        (PeerRefused("x"), Reply.CONNECTION_REFUSED),
        (TraversalTimeout("x"), Reply.TTL_EXPIRED),
        (TraversalFailed("x"), Reply.HOST_UNREACHABLE),
        (BrokerUnreachable("x"), Reply.NETWORK_UNREACHABLE),
        (IdentityMismatch("x"), Reply.NOT_ALLOWED),
        (ConfigurationError("x"), Reply.HOST_UNREACHABLE),
        (OSError(errno.EHOSTUNREACH, "x"), Reply.HOST_UNREACHABLE),
        (OSError(errno.EMFILE, "x"), Reply.GENERAL_FAILURE),
        (socket.gaierror(socket.EAI_NONAME, "x"), Reply.HOST_UNREACHABLE),
        (TimeoutError(), Reply.TTL_EXPIRED),
        (Refused("x", Reply.NOT_ALLOWED), Reply.NOT_ALLOWED),
        (Refused("x", None), None),
        (trio.BrokenResourceError(), None),
    ],
)
def test_reply_codes(error: Exception, reply: Reply | None) -> None:
    assert reply_to(error) is reply
