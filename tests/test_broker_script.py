"""servers/udp_broker.py as a process: ready line, signals, exit codes, state that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from broker_support import make_identity

from ntcpsock._address import parse_broker
from ntcpsock._errors import NameTaken
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import open_broker_session

SCRIPT = Path(__file__).parents[1] / "servers" / "udp_broker.py"


def start(state_dir: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [
            sys.executable,
            SCRIPT,
            "--listen",
            "127.0.0.1",
            "--port",
            "0",
            "--state-dir",
            state_dir,
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_and_stops_and_remembers(tmp_path: Path, number: signal.Signals) -> None:
    uris = []
    for identity in (make_identity(1), make_identity(2)):
        process, line = await trio.to_thread.run_sync(start, tmp_path, "--stun", "192.0.2.1:3479")
        try:
            assert line.startswith("ready ntcp://127.0.0.1:")
            address = parse_broker(line.split()[1])
            uris.append(address)
            async with open_broker_session(
                address, identity, pins=Pins(None), keep_alive_interval=20.0, timeout=30.0
            ) as session:
                assert str(session.welcome.stun[0]) == "192.0.2.1:3479"
                if len(uris) == 1:
                    await session.set_registration(("alice",), (), None, None)
                else:
                    # Another process, the same key, and it knows whose name it is.
                    assert await session.lookup("alice") == make_identity(1).public_key
                    with pytest.raises(NameTaken):
                        await session.set_registration(("alice",), (), None, None)
            process.send_signal(number)
            output, errors = await trio.to_thread.run_sync(process.communicate)
        finally:
            process.kill()
        assert process.returncode == 0
        # The second line was read with the first.
        assert (output, errors) == ("", "")
    assert uris[0].key == uris[1].key
    assert (tmp_path / "broker.key").stat().st_mode & 0o077 == 0


def test_what_cannot_work_is_said_in_a_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, SCRIPT, "--state-dir", tmp_path, *arguments], capture_output=True, text=True
        )
        return done.returncode, done.stderr

    for arguments in (
        ("--listen", "203.0.113.77", "--port", "0"),
        ("--listen", "127.0.0.1", "--port", "70000"),
        ("--listen", "127.0.0.1", "--port", "0", "--stun", "stun.example:3478"),
    ):
        code, errors = run(*arguments)
        assert code == 1
        assert errors.startswith("udp_broker: ")
        assert errors.count("\n") == 1
