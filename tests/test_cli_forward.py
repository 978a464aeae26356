"""`ntcp forward` over loopback, with `ntcp expose` at the other end and a real `ntcp serve`."""

from __future__ import annotations

import errno
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from service_support import (
    DEADLINE,
    NTCP,
    Command,
    Handler,
    answer_after_end,
    dial,
    echo,
    is_reset,
    read_all,
    reset,
    tcp_service,
    unused_port,
)

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@contextmanager
def service_by_name(
    stage: Stage, name: str, handler: Handler, *options: str
) -> Iterator[tuple[Command, Command]]:
    """A service, exposed as `name`, and a forward to it: both commands."""
    with (
        tcp_service(handler) as port,
        Command(stage, name, "expose", f"{name}:80", "--to", str(port)) as exposed,
        Command(stage, "caller", "forward", "0", f"{name}:80", *options) as forward,
    ):
        yield exposed, forward


def test_http_server_fetched_by_curl(stage: Stage, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    (tmp_path / "file.bin").write_bytes(data)
    port = unused_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout is not None
        assert b"Serving" in server.stdout.readline()
        with (
            Command(stage, "web", "expose", "web:80", "--to", f"localhost:{port}") as exposed,
            Command(stage, "caller", "forward", "127.0.0.1:0", "web.ntcp:80") as forward,
        ):
            assert exposed.listening["to"] == ["localhost", port]
            host, local_port = forward.place
            url = f"http://{host}:{local_port}/file.bin"
            assert fetch(url) == data
            opened, closed = forward.wait_for("opened"), forward.wait_for("closed")
    finally:
        stop(server)
        server.stdout.close()  # type: ignore[union-attr]
    assert (opened["kind"], opened["peer"]["name"], opened["peer"]["port"]) == ("lan", "web", 80)
    assert closed["connection"] == opened["connection"] == 1
    assert closed["broken_by"] is None
    assert 0 < closed["sent"] < 10_000
    assert closed["received"] > len(data)


def fetch(url: str, *options: str) -> bytes:
    """By curl where there is one; the standard library will do for the rest of the world."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    argv = ["curl", "--silent", "--show-error", "--fail", "--max-time", str(DEADLINE), *options, url]
    return subprocess.run(argv, capture_output=True, timeout=2 * DEADLINE, check=True).stdout


def test_half_close(stage: Stage) -> None:
    with service_by_name(stage, "half", answer_after_end) as (_, forward), dial(forward.place) as client:
        client.sendall(bytes(100_000))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"100000 bytes"
        closed = forward.wait_for("closed")
        assert (closed["sent"], closed["received"], closed["broken_by"]) == (100_000, 12, None)


def test_reset_by_the_client(stage: Stage) -> None:
    seen: list[object] = []

    def handler(connection: socket.socket) -> None:
        connection.sendall(connection.recv(10))
        seen.append(is_reset(connection))

    with service_by_name(stage, "reset-1", handler) as (exposed, forward):
        client = dial(forward.place)
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
        reset(client)
        assert forward.wait_for("closed")["broken_by"] == "client"
        assert exposed.wait_for("closed")["broken_by"] == "peer"
    assert seen == [True]


def test_reset_by_the_service(stage: Stage) -> None:
    def handler(connection: socket.socket) -> None:
        connection.sendall(connection.recv(10))
        connection.recv(10)
        reset(connection)

    with service_by_name(stage, "reset-2", handler) as (exposed, forward), dial(forward.place) as client:
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
        client.sendall(b"go")
        assert is_reset(client)
        assert forward.wait_for("closed")["broken_by"] == "peer"
        assert exposed.wait_for("closed")["broken_by"] == "service"


def test_a_slow_service_slows_its_client_and_a_reset_meanwhile_is_seen(stage: Stage) -> None:
    go_on = threading.Event()
    ended: list[int] = []

    def handler(connection: socket.socket) -> None:
        go_on.wait(DEADLINE)
        received = 0
        try:
            while data := connection.recv(1 << 20):
                received += len(data)
        finally:
            ended.append(received)

    with service_by_name(stage, "slow", handler) as (exposed, forward):
        client = dial(forward.place)
        client.setblocking(False)
        sent = 0
        while select.select([], [client], [], 3)[1]:
            sent += client.send(bytes(1 << 16))
            assert sent < 200_000_000, "nobody slows the client down"
        reset(client)
        # The forward is not reading its client, who would not be heard for ever.
        assert forward.wait_for("closed")["broken_by"] == "client"
        go_on.set()
        assert exposed.wait_for("closed")["broken_by"] == "peer"
    assert 0 < ended[0] <= sent


def test_fifty_at_once(stage: Stage) -> None:
    with service_by_name(stage, "fifty", echo) as (exposed, forward), ExitStack() as stack:
        clients = [stack.enter_context(dial(forward.place)) for _ in range(50)]
        messages = [os.urandom(50_000) for _ in clients]
        for client, message in zip(clients, messages, strict=True):
            client.sendall(message)
            client.shutdown(socket.SHUT_WR)
        assert [read_all(client) for client in clients] == messages
        code, stopped = forward.end()
        assert (code, stopped["total"], stopped["failed"]) == (0, 50, 0)
        assert stopped["sent"] == stopped["received"] == 50 * 50_000
        code, stopped = exposed.end(signal.SIGINT)
        assert (code, stopped["total"]) == (0, 50)


def test_limit(stage: Stage) -> None:
    with (
        service_by_name(stage, "limit", echo, "--max-connections", "2") as (_, forward),
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(dial(forward.place)) for _ in range(3)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        assert forward.wait_for("limit")["connections"] == 2
        assert [client.recv(1) for client in clients[:2]] == [b"0", b"1"]
        assert not select.select([clients[2]], [], [], 0.5)[0]
        clients[0].close()
        assert clients[2].recv(1) == b"2"


def test_nobody_there(stage: Stage) -> None:
    with service_by_name(stage, "there", echo) as (_, _unused):
        with Command(stage, "caller", "forward", "0", "there:81") as forward:
            with dial(forward.place) as client:
                assert is_reset(client)
            error = forward.wait_for("error")
            assert (error["type"], error["errno"], error["connection"]) == (
                "PeerRefused",
                errno.ECONNREFUSED,
                1,
            )
            assert error["report"]["stages"]
        with Command(stage, "caller", "forward", "0", "nobody-has-this:80") as forward:
            for number in (1, 2):
                with dial(forward.place) as client:
                    assert is_reset(client)
                error = forward.wait_for("error")
                assert (error["type"], error["connection"]) == ("NameNotFound", number)
            assert forward.end() == (
                0,
                {"event": "stopped", "total": 2, "failed": 2, "sent": 0, "received": 0},
            )


def test_stopped_with_an_open_connection(stage: Stage) -> None:
    with service_by_name(stage, "open", echo) as (exposed, forward), dial(forward.place) as client:
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
        code, stopped = forward.end()
        assert (code, stopped["sent"], stopped["received"]) == (0, 5, 5)
        # Half a conversation must not look like a whole one.
        assert is_reset(client)
        assert exposed.wait_for("closed")["broken_by"] == "peer"


def test_what_is_just_ending_ends_in_order(stage: Stage) -> None:
    ended: list[bytes] = []

    def handler(connection: socket.socket) -> None:
        ended.append(read_all(connection))

    with service_by_name(stage, "ending", handler) as (exposed, forward):
        clients = [dial(forward.place) for _ in range(20)]
        for client in clients:
            client.sendall(b"hello")
        for _ in clients:
            exposed.wait_for("opened")
        for client in clients:
            client.close()
        code, stopped = forward.end()
        assert (code, stopped["sent"]) == (0, 100)
        assert [event["broken_by"] for event in forward.before if event["event"] == "closed"] == [None] * 20
    assert ended == [b"hello"] * 20


def test_second_signal_waits_for_nothing(stage: Stage) -> None:
    with service_by_name(stage, "twice", echo) as (_, forward), dial(forward.place) as client:
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
        forward.process.send_signal(signal.SIGINT)
        assert forward.end(signal.SIGINT)[0] == 0
        assert is_reset(client)


@pytest.mark.parametrize(
    ("local", "host", "wide"),
    [
        ("0", "127.0.0.1", False),
        ("localhost:0", None, False),
        ("[::1]:0", "::1", False),
        ("*:0", "0.0.0.0", True),
    ],
)
def test_where_it_listens(stage: Stage, local: str, host: str | None, wide: bool) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    with Command(stage, "caller", "forward", local, "nobody-has-this:80") as forward:
        assert host in (None, forward.place[0])
        assert len({port for _, port in forward.listening["addresses"]}) == 1
        warnings = [event["message"] for event in forward.before if event["event"] == "warning"]
        assert bool(warnings) == wide
        assert all("whoever reaches this address" in warning for warning in warnings)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_port_in_use(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*NTCP, "forward", str(port), "alice:80"],
            env=stage.environment("caller"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"ntcp: cannot listen on 127.0.0.1:{port}: Address already in use")


@pytest.mark.parametrize(
    "local", ["", "nonsense", "1:2:3", "127.0.0.1:", "-1", "65536", "::1:80", "alice.ntcp:80"]
)
def test_malformed_place(local: str) -> None:
    done = subprocess.run(
        [*NTCP, "forward", "--", local, "alice:80"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, "LOCAL" in done.stderr) == (2, True)


def test_broker_that_is_down(stage: Stage) -> None:
    done = subprocess.run(
        [*NTCP, "forward", "0", "alice:80"],
        env=stage.environment("caller", NTCP_BROKER="ntcp://127.0.0.1:9", NTCP_BROKER_TIMEOUT="2"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert "BrokerUnreachable" in done.stderr
    assert "Traceback" not in done.stderr


def test_live_line_at_a_terminal(stage: Stage) -> None:
    controller, terminal = pty.openpty()
    try:
        with (
            tcp_service(echo) as port,
            Command(stage, "live", "expose", "live:80", "--to", str(port)),
        ):
            local = unused_port()
            process = subprocess.Popen(
                [*NTCP, "forward", str(local), "live:80"],
                env=stage.environment("caller", TERM="xterm", COLUMNS="100"),
                stdout=subprocess.DEVNULL,
                stderr=terminal,
            )
            try:
                assert "leads to live.ntcp:80" in read_until(controller, "leads to live.ntcp:80")
                with dial(("127.0.0.1", local)) as client:
                    client.sendall(bytes(1500))
                    text = read_until(controller, "1.5 kB  ↓ 1.5 kB")
                    assert "1 open" in text
                    assert "1 lan" in read_until(controller, "1 lan")
                process.terminate()
                read_until(controller, "stopped after 1 connections")
                assert process.wait(DEADLINE) == 0
            finally:
                stop(process)
    finally:
        os.close(controller)
        os.close(terminal)


def read_until(fd: int, text: str) -> str:
    """What a terminal shows, up to `text`; without colours."""
    import re

    shown, deadline = b"", time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 1)[0]:
            shown += os.read(fd, 4096)
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))
        if text in plain:
            return plain
    raise AssertionError(f"no {text!r} in {shown!r}")
