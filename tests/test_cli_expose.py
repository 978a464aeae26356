"""`ntcp expose` over loopback, with `ntcp connect`, Python programs and redis at the other end."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service_support import (
    DEADLINE,
    NTCP,
    Command,
    answer_after_end,
    echo,
    hear_and_reset,
    tcp_service,
    unused_port,
)

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def connect(stage: Stage, address: str, data: bytes, *options: str) -> tuple[int, bytes, str]:
    done = subprocess.run(
        [*NTCP, "connect", address, *options],
        input=data,
        env=stage.environment("dialer"),
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_events_and_end(stage: Stage, signal_number: int) -> None:
    with (
        tcp_service(answer_after_end) as port,
        Command(stage, "svc", "expose", "svc:80", "--to", f"127.0.0.1:{port}") as exposed,
    ):
        assert exposed.listening["name"] == "svc"
        assert exposed.listening["port"] == 80
        assert exposed.listening["to"] == ["127.0.0.1", port]
        assert len(exposed.listening["node_id"]) == 52
        assert connect(stage, "svc:80", b"question") == (0, b"8 bytes", "")
        opened, closed = exposed.wait_for("opened"), exposed.wait_for("closed")
        assert opened["target"] == f"127.0.0.1:{port}"
        assert opened["source"] == opened["peer"]["node_id"]
        assert (opened["kind"], opened["peer"]["port"]) == ("lan", 80)
        assert (closed["sent"], closed["received"], closed["broken_by"]) == (8, 7, None)
        assert exposed.end(signal_number) == (
            0,
            {"event": "stopped", "total": 1, "failed": 0, "sent": 8, "received": 7},
        )


def test_service_that_is_not_there(stage: Stage) -> None:
    port = unused_port()
    with Command(stage, "down", "expose", "down:80", "--to", str(port)) as exposed:
        # The connection by name was there before the service was asked: it is reset, not ended.
        code, output, errors = connect(stage, "down:80", b"")
        assert (code, output) == (1, b"")
        assert "reset" in errors
        error = exposed.wait_for("error")
        assert (error["errno"], error["connection"]) == (errno.ECONNREFUSED, 1)
        assert f"127.0.0.1:{port}: Connection refused" in error["message"]
        # The service comes up, and what failed before is no hindrance.
        with socket.create_server(("127.0.0.1", port)) as service:
            client = subprocess.Popen(
                [*NTCP, "connect", "down:80"],
                env=stage.environment("dialer"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            with client:
                service.settimeout(DEADLINE)
                with service.accept()[0] as connection:
                    connection.sendall(b"up again")
                assert client.stdout is not None
                assert client.stdout.read() == b"up again"
            assert client.returncode == 0


def test_service_that_resets(stage: Stage) -> None:
    with (
        tcp_service(hear_and_reset) as port,
        Command(stage, "rude", "expose", "rude:80", "--to", str(port)) as exposed,
    ):
        code, _, errors = connect(stage, "rude:80", b"hello")
        assert (code, "reset" in errors) == (1, True)
        assert exposed.wait_for("closed")["broken_by"] == "service"


def test_caller_that_dies(stage: Stage) -> None:
    with (
        tcp_service(echo) as port,
        Command(stage, "dying", "expose", "dying:80", "--to", str(port)) as exposed,
    ):
        client = subprocess.Popen(
            [*NTCP, "connect", "dying:80"],
            env=stage.environment("dialer"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"hello")
            client.stdin.flush()
            assert client.stdout.read(5) == b"hello"
            client.kill()
        assert exposed.wait_for("closed")["broken_by"] == "peer"


def test_limit(stage: Stage) -> None:
    with (
        tcp_service(echo) as port,
        Command(stage, "full", "expose", "full:80", "--to", str(port), "--max-connections", "1") as exposed,
    ):
        clients = [
            subprocess.Popen(
                [*NTCP, "connect", "full:80", "-v"],
                env=stage.environment("dialer"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        try:
            for client in clients:
                # Both are connected; one of them waits to be served.
                assert client.stderr is not None
                assert b"connected" in client.stderr.readline()
                assert client.stdin is not None
                client.stdin.write(b"hello")
                client.stdin.flush()
            assert exposed.wait_for("limit")["connections"] == 1
            outputs = {client.stdout: client.stdin for client in clients if client.stdout is not None}
            (first,), _, _ = select.select(list(outputs), [], [], DEADLINE)
            assert first.read(5) == b"hello"
            (second,) = outputs.keys() - {first}
            assert not select.select([second], [], [], 0.5)[0]
            outputs[first].close()  # type: ignore[union-attr]
            assert second.read(5) == b"hello"
        finally:
            for client in clients:
                stop(client)
                for pipe in (client.stdin, client.stdout, client.stderr):
                    if pipe is not None:
                        pipe.close()


def test_allow(stage: Stage) -> None:
    with (
        tcp_service(echo) as port,
        Command(stage, "private", "expose", "private:80", "--to", str(port), "--allow", "friend"),
    ):
        assert "NameNotFound" in connect(stage, "private:80", b"", "--timeout", "10")[2]
        done = subprocess.run(
            [*NTCP, "connect", "private:80", "--name", "friend"],
            input=b"it is me",
            env=stage.environment("friend"),
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"it is me")


@pytest.mark.parametrize("to", ["nonsense", "127.0.0.1:0", "127.0.0.1:http", "bob.ntcp:80", ""])
def test_malformed_service(to: str) -> None:
    done = subprocess.run(
        [*NTCP, "expose", "alice:80", "--to", to],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, "--to" in done.stderr) == (2, True)


def test_name_of_somebody_else(stage: Stage) -> None:
    with Command(stage, "taken", "expose", "taken:80", "--to", "9"):
        done = subprocess.run(
            [*NTCP, "expose", "taken:80", "--to", "9"],
            env=stage.environment("thief"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1
    assert "NameTaken" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    program = shutil.which("redis-server") or "/usr/bin/redis-server"
    if not os.access(program, os.X_OK):
        pytest.skip("no redis-server here")
    port = unused_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=folder,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if b"Ready to accept" in line:
                break
        yield port
    finally:
        stop(process)
        process.stdout.close()  # type: ignore[union-attr]


REDIS_CLIENT = """
import socket

def command(*words):
    return b"".join([b"*%d\\r\\n" % len(words), *(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in words)])

with socket.create_connection(("redis.ntcp", 6379)) as connection, connection.makefile("rb") as answers:
    value = bytes(range(256)) * 4000
    connection.sendall(command(b"SET", b"key", value) + command(b"GET", b"key"))
    assert answers.readline() == b"+OK\\r\\n"
    assert answers.readline() == b"$%d\\r\\n" % len(value)
    assert answers.read(len(value) + 2) == value + b"\\r\\n"
    connection.sendall(command(b"INCR", b"counter") * 1000)
    for number in range(1, 1001):
        assert answers.readline() == b":%d\\r\\n" % number
    connection.sendall(command(b"SUBSCRIBE", b"news"))
    assert answers.readline() == b"*3\\r\\n"
    with socket.create_connection(("redis.ntcp", 6379)) as other:
        for _ in range(5):
            answers.readline()
        other.sendall(command(b"PUBLISH", b"news", b"it works"))
        assert other.recv(100) == b":1\\r\\n"
    while (line := answers.readline()) != b"it works\\r\\n":
        assert line
print("done")
"""


def test_redis(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(REDIS_CLIENT)
    with (
        redis_server(tmp_path) as port,
        Command(stage, "redis", "expose", "redis:6379", "--to", str(port)) as exposed,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ntcpsock", "run", str(tmp_path / "client.py")],
            env=stage.environment("dialer"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        assert [exposed.wait_for("closed")["broken_by"] for _ in range(2)] == [None, None]
