"""UDP ports of one name in several processes: each is found, by whoever asks, and answers come to who has asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ntcpsock.cli.stage import Stage, open_loopback_stage

PATIENCE = 60.0

ECHO = """
import socket, sys
import ntcpsock

with ntcpsock.NTCPSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("alice.ntcp", int(sys.argv[1])))
    print("ready", flush=True)
    while True:
        data, sender = sock.recvfrom(5000)
        sock.sendto(sys.argv[1].encode() + b" " + data, sender)
"""

ASK = """
import socket, sys
import ntcpsock

with ntcpsock.NTCPSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    print(ntcpsock.__name__, flush=True)
    for line in sys.stdin:
        port, size = map(int, line.split())
        message = sock.getsockname()[1].to_bytes(4, "big") + bytes(size)
        sock.sendto(message, ("alice.ntcp", port))
        sock.settimeout({patience})
        data, sender = sock.recvfrom(5000)
        same = data == b"%d " % port + message
        print("same" if same else "other", *ntcpsock.getnameinfo(sender, socket.NI_NUMERICSERV), flush=True)
"""


class Program:
    """A program of a node; it speaks in lines."""

    def __init__(self, stage: Stage, node: str, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=stage.environment(node, NTCP_NAME=node),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, port: int, size: int = 10) -> str:
        assert self.process.stdin is not None
        print(port, size, file=self.process.stdin, flush=True)
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    programs: list[Program] = []
    with open_loopback_stage() as stage:

        def make(node: str, program: str, *arguments: str) -> Program:
            programs.append(Program(stage, node, program.replace("{patience}", str(PATIENCE)), *arguments))
            return programs[-1]

        try:
            yield make
        finally:
            for program in reversed(programs):
                program.end()


@pytest.mark.timeout(300)
def test_each_port_is_found_in_its_process(start: Start) -> None:
    for port in (53, 54):
        start("alice", ECHO, str(port))
    bob = start("bob", ASK)
    # The way to the first process is there when the second one is asked for: what it refuses is not lost.
    for port in (53, 54, 53, 54):
        assert bob.ask(port) == f"same alice.ntcp {port}"
    assert bob.ask(54, 4000) == "same alice.ntcp 54"
    # Another process of the client's name is a client of its own: nobody gets the other's answers.
    also_bob = start("bob", ASK)
    for port in (53, 54):
        assert also_bob.ask(port) == f"same alice.ntcp {port}"
        assert bob.ask(port) == f"same alice.ntcp {port}"
