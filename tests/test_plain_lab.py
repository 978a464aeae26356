"""`encryption="off"` between hosts behind real NATs: the program's own descriptor is the punched connection."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ntcpsock.cli.lab import open_lab_stage
from ntcpsock.cli.stage import Stage, stop
from ntcpsock.testing.natlab import Lab, namespaces_available

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
    pytest.mark.timeout(300),
]

TRIES = 4

LISTENER = """
import json, socket, ntcpsock
listener = ntcpsock.create_server(("bob.ntcp", 7000))
print("listening", flush=True)
while True:
    connection, address = listener.accept()
    with connection:
        connection.sendall(b"hello")
        said = b""
        while data := connection.recv(65536):
            said += data
        connection.sendall(said[::-1])
        print(json.dumps([socket.socket.getsockname(connection), socket.socket.getpeername(connection)]), flush=True)
"""

DIALER = """
import json, socket, sys, time, ntcpsock
ntcpsock.start()
for number in range(int(sys.argv[1])):
    with ntcpsock.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
        try:
            connection.connect(("bob.ntcp", 7000))
        except OSError as error:
            print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
            continue
        own = [socket.socket.getsockname(connection), socket.socket.getpeername(connection)]
        greeting = b""
        while len(greeting) < 5:
            greeting += connection.recv(5 - len(greeting))
        connection.sendall(b"abc" * 50000)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while data := connection.recv(65536):
            said += data
        print(json.dumps({
            "own": own,
            "path": [connection.path.technique, connection.path.local, connection.path.remote],
            "whole": [greeting.decode(), said == b"cba" * 50000],
            "size": connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            "blocking": connection.gettimeout() is None,
        }), flush=True)
"""


@contextmanager
def listening(lab: Lab, stage: Stage, encryption: str) -> Iterator[subprocess.Popen[str]]:
    process = lab.host_b.popen(
        [sys.executable, "-c", LISTENER],
        env=stage.environment("bob", NTCP_NAME="bob", NTCP_ENCRYPTION=encryption),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            stop(process)


def dial(lab: Lab, stage: Stage, encryption: str, tries: int) -> list[dict[str, Any]]:
    process = lab.host_a.popen(
        [sys.executable, "-c", DIALER, str(tries)],
        env=stage.environment("a", NTCP_ENCRYPTION=encryption),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            return [json.loads(line) for line in process.stdout]
        finally:
            stop(process)


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "technique"),
    [
        ("default", "default", "tcp-open"),
        pytest.param("reject", "reject", "tcp-open", marks=pytest.mark.slow),
        pytest.param("default", "none", "public", marks=pytest.mark.slow),
        pytest.param("firewall", "firewall", "public", marks=pytest.mark.slow),
    ],
)
def test_the_programs_own_sockets_are_the_punched_ones(nat_a: str, nat_b: str, technique: str) -> None:
    with open_lab_stage(nat_a, nat_b, 0.025) as (lab, stage), listening(lab, stage, "off") as listener:
        dialled = dial(lab, stage, "off", TRIES)
        assert len(dialled) == TRIES
        assert listener.stdout is not None
        for one in dialled:
            theirs = json.loads(listener.stdout.readline())
            assert one["whole"] == ["hello", True]
            assert one["path"][0] == technique
            # What C code would be told: the address of the other side's router, not of a hop on this machine.
            assert one["own"] == one["path"][1:]
            assert not theirs[0][0].startswith("127.")
            assert not theirs[1][0].startswith("127.")
            if nat_a == nat_b == "default":
                assert one["own"][1][1] == theirs[0][1]  # this router keeps ports
                assert one["own"][1][0] != theirs[0][0]
            assert one["size"] == 100000
            assert one["blocking"]


@pytest.mark.parametrize(
    ("here", "there"), [("off", "tls"), pytest.param("tls", "off", marks=pytest.mark.slow)]
)
def test_a_mismatch_is_told_before_any_attempt(here: str, there: str) -> None:
    with open_lab_stage("default", "default", 0.025) as (lab, stage), listening(lab, stage, there):
        for one in dial(lab, stage, here, 2):
            assert one["error"] == "EncryptionMismatch"
            assert "bob.ntcp" in one["text"]
