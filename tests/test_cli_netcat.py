"""`ntcp listen` and `ntcp connect` as processes, over loopback with a real `ntcp serve`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

NTCP = [sys.executable, "-m", "ntcpsock"]
DEADLINE = 60


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


class Listener:
    """`ntcp listen --json`, listening."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        *options: str,
        stdin: Any = subprocess.PIPE,
        stdout: Any = subprocess.PIPE,
    ) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [*NTCP, "listen", f"{name}:7000", "--json", *options],
            env=stage.environment(name),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        self.listening = self.event()
        assert self.listening["event"] == "listening", self.listening

    def event(self) -> dict[str, Any]:
        assert self.process.stderr is not None
        event: dict[str, Any] = json.loads(self.process.stderr.readline())
        return event

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *args: object) -> None:
        stop(self.process)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def connect(
    stage: Stage, address: str, *options: str, data: bytes = b"", **environment: str
) -> tuple[int, bytes, str]:
    done = subprocess.run(
        [*NTCP, "connect", address, *options],
        input=data,
        env=stage.environment("dialer", **environment),
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_both_ways_and_events(stage: Stage) -> None:
    with Listener(stage, "both") as listener:
        assert listener.listening["name"] == "both"
        assert listener.listening["port"] == 7000
        assert len(listener.listening["node_id"]) == 52
        listener.process.stdin.write(b"from the listener")  # type: ignore[union-attr]
        listener.process.stdin.close()  # type: ignore[union-attr]
        status, output, errors = connect(stage, "both:7000", "--json", data=b"from the dialer")
        assert (status, output) == (0, b"from the listener")
        assert listener.process.stdout is not None
        assert listener.process.stdout.read() == b"from the dialer"
        accepted, closed = listener.event(), listener.event()
        assert listener.process.wait(DEADLINE) == 0
    connected, ended = (json.loads(line) for line in errors.splitlines())
    assert connected["event"] == accepted["event"] == "connected"
    assert 0 < connected["seconds"] < DEADLINE
    assert connected["kind"] == "lan"
    assert connected["technique"] in ("lan", "public", "tcp-open")
    assert connected["peer"] == {
        "name": "both",
        "node_id": listener.listening["node_id"],
        "port": 7000,
    }
    assert connected["local"] == accepted["remote"]
    assert connected["remote"] == accepted["local"]
    assert connected["report"]["stages"]
    assert ended == {"event": "closed", "sent": 15, "received": 17}
    assert closed == {"event": "closed", "sent": 17, "received": 15}


def test_half_close(stage: Stage) -> None:
    # The dialer's stdin ends at once; the listener answers only after it has seen that.
    with Listener(stage, "half") as listener:
        process = subprocess.Popen(
            [*NTCP, "connect", "ntcp://half.ntcp:7000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=stage.environment("dialer"),
        )
        with process:
            assert process.stdin is not None
            assert listener.process.stdout is not None
            process.stdin.write(b"question")
            process.stdin.close()
            assert listener.process.stdout.read(8) == b"question"
            assert process.poll() is None
            listener.process.stdin.write(b"answer")  # type: ignore[union-attr]
            listener.process.stdin.close()  # type: ignore[union-attr]
            assert process.stdout is not None
            assert process.stdout.read() == b"answer"
        assert process.returncode == 0
        assert listener.process.wait(DEADLINE) == 0


def test_files_and_much_data(stage: Stage, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 24
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    with (
        open(target, "wb") as sink,
        Listener(stage, "files", stdin=subprocess.DEVNULL, stdout=sink) as listener,
    ):
        with open(source, "rb") as file:
            done = subprocess.run(
                [*NTCP, "connect", "files:7000"],
                stdin=file,
                env=stage.environment("dialer"),
                capture_output=True,
                timeout=DEADLINE,
                check=True,
            )
        assert (done.stdout, done.stderr) == (b"", b"")  # quiet without -v
        assert listener.process.wait(DEADLINE) == 0
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_keep_open(stage: Stage) -> None:
    with Listener(stage, "kept", "--keep-open", stdin=subprocess.DEVNULL) as listener:
        for number in range(3):
            status, output, errors = connect(stage, "kept:7000", "-v", data=b"%d" % number)
            assert (status, output) == (0, b"")
            assert "connected with kept:7000" in errors
            assert listener.event()["event"] == "connected"
            assert listener.event() == {"event": "closed", "sent": 0, "received": 1}
        listener.process.send_signal(signal.SIGINT)
        assert listener.process.wait(DEADLINE) == 130
        assert listener.process.stdout is not None
        assert listener.process.stdout.read() == b"012"
        assert listener.process.stderr is not None
        assert listener.process.stderr.read() == b""


def test_terminal(stage: Stage) -> None:
    controller, terminal = pty.openpty()
    try:
        with Listener(stage, "terminal", stdin=terminal, stdout=terminal) as listener:
            os.close(terminal)
            with subprocess.Popen(
                [*NTCP, "connect", "terminal:7000"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=stage.environment("dialer"),
            ) as dialer:
                assert dialer.stdin is not None
                assert dialer.stdout is not None
                os.write(controller, b"typed\n")
                assert dialer.stdout.readline() == b"typed\n"
                dialer.stdin.write(b"shown\n")
                dialer.stdin.close()
                shown = b""
                while b"shown" not in shown:
                    shown += os.read(controller, 1000)
                os.write(controller, b"\x04")  # Ctrl-D
                assert dialer.stdout.read() == b""
            assert dialer.returncode == 0
            assert listener.process.wait(DEADLINE) == 0
    finally:
        os.close(controller)


def test_peer_that_dies_is_an_error(stage: Stage) -> None:
    with Listener(stage, "dying") as listener:
        with subprocess.Popen(
            [*NTCP, "connect", "dying:7000", "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=stage.environment("dialer"),
        ) as dialer:
            assert dialer.stderr is not None
            assert json.loads(dialer.stderr.readline())["event"] == "connected"
            listener.process.kill()
            event = json.loads(dialer.stderr.readline())
        assert dialer.returncode == 1
        assert event["event"] == "error"


def test_unknown_name(stage: Stage) -> None:
    status, output, errors = connect(stage, "nobody-has-this:7000", "--json")
    assert (status, output) == (1, b"")
    event = json.loads(errors)
    assert event["event"] == "error"
    assert event["type"] == "NameNotFound"
    assert event["errno"] == socket.EAI_NONAME
    status, _, errors = connect(stage, "nobody-has-this:7000")
    assert status == 1
    assert errors.startswith("ntcp: ")
    assert "NameNotFound" in errors
    assert "Traceback" not in errors


def test_port_that_nobody_listens_on(stage: Stage) -> None:
    with Listener(stage, "other-port"):
        status, _, errors = connect(stage, "other-port:7001", "--json")
    event = json.loads(errors)
    assert (status, event["type"], event["errno"]) == (1, "PeerRefused", errno.ECONNREFUSED)
    assert event["report"]["stages"]
    assert event["stage"]


def test_broker_that_is_down(stage: Stage) -> None:
    started = time.monotonic()
    status, _, errors = connect(
        stage,
        "alice:7000",
        "--json",
        "--timeout",
        "2",
        NTCP_BROKER="ntcp://127.0.0.1:9",
        NTCP_BROKER_TIMEOUT="2",
    )
    event = json.loads(errors)
    assert (status, event["type"], event["errno"]) == (1, "BrokerUnreachable", errno.ENETUNREACH)
    assert time.monotonic() - started < 30


def test_name_of_somebody_else(stage: Stage) -> None:
    with Listener(stage, "taken"):
        done = subprocess.run(
            [*NTCP, "listen", "taken:7000"],
            env=stage.environment("thief"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1
    assert "NameTaken" in done.stderr
    assert "Traceback" not in done.stderr


def test_allow(stage: Stage) -> None:
    friend = subprocess.run(
        [*NTCP, "id"], env=stage.environment("friend"), capture_output=True, text=True, check=True
    ).stdout.strip()
    with Listener(stage, "private", "--allow", friend) as listener:
        status, _, errors = connect(stage, "private:7000", "--json", "--timeout", "10")
        assert status == 1
        assert json.loads(errors)["type"] == "NameNotFound"
        assert listener.process.stdin is not None
        listener.process.stdin.close()
        done = subprocess.run(
            [*NTCP, "connect", "private:7000", "--name", "friend"],
            input=b"it is me",
            env=stage.environment("friend"),
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert listener.process.stdout is not None
        assert listener.process.stdout.read() == b"it is me"


@pytest.mark.parametrize("command", ["listen", "connect"])
@pytest.mark.parametrize("address", ["alice", "alice:0", "alice:99999", "-alice-:1", "alice:http"])
def test_malformed_address(command: str, address: str) -> None:
    done = subprocess.run(
        [*NTCP, command, "--", address], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_no_broker_set(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NTCP_")}
    done = subprocess.run(
        [*NTCP, "connect", "alice:7000"],
        env={**environment, "NTCP_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert "NTCP_BROKER" in done.stderr
    assert "Traceback" not in done.stderr


def test_id_is_stable_and_private(tmp_path: Path) -> None:
    argv = [*NTCP, "id", "--state-dir", str(tmp_path / "new")]
    first, second = (
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    assert len(first.strip()) == 52
    key_file = tmp_path / "new" / "node.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    told = json.loads(subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True).stdout)
    assert told == {"node_id": first.strip(), "name": told["name"], "key_file": str(key_file)}


def test_without_encryption_if_both_ends_say_so(stage: Stage) -> None:
    with Listener(stage, "harry", "--encryption", "off") as harry:
        status, output, errors = connect(stage, "harry:7000", data=b"secret")
        assert status != 0
        assert 'harry.ntcp listens with encryption="off"' in errors
        assert b"secret" not in output
        assert harry.process.stdin is not None
        harry.process.stdin.write(b"in the open")
        harry.process.stdin.close()
        status, output, _ = connect(stage, "harry:7000", "--encryption", "off", data=b"and back")
        assert (status, output) == (0, b"in the open")
        assert harry.process.stdout is not None
        assert harry.process.stdout.read() == b"and back"
        assert harry.process.wait(DEADLINE) == 0
        harry.process.stdin = None


def test_an_encryption_that_does_not_exist(stage: Stage) -> None:
    status, _, errors = connect(stage, "harry:7000", "--encryption", "none")
    assert status == 2
    assert "--encryption" in errors
