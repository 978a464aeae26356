"""One UDP socket and many peers by name: real nodes, a real broker, real paths over loopback, in three processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datagram_crowd
import pytest

from ntcpsock.cli.stage import Stage, open_loopback_stage

ASK = """
import socket, sys
import ntcpsock

count, port = int(sys.argv[1]), int(sys.argv[2])
names = {{f"peer{{number}}" for number in range(count)}}
with ntcpsock.NTCPSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    answered = {{}}
    sock.settimeout({pause})
    for _ in range({rounds}):  # as a program does whose datagrams may get lost
        for name in sorted(names - answered.keys()):
            sock.sendto(b"hello " + name.encode(), (name + ".ntcp", port))
        try:
            while len(answered) < count:
                data, sender = sock.recvfrom(100)
                greeting, _, name = data.decode().partition(" from ")
                shown = ntcpsock.getnameinfo(sender, 0)[0]
                assert greeting == "hello " + name, data
                assert shown == name + ".ntcp", (shown, name)
                assert sender[1] == port, sender
                answered[name] = sender
        except TimeoutError:
            continue
        break
    assert len(set(answered.values())) == count, len(answered)
    # Each again, over the paths that are there now.
    for name, address in answered.items():
        sock.sendto(b"again " + name.encode(), address)
    again = set()
    while len(again) < count:
        again.add(sock.recvfrom(100))
    assert again == {{(f"again {{name}} from {{name}}".encode(), address) for name, address in answered.items()}}
print("all", len(answered))
"""


@contextmanager
def crowd(stage: Stage, count: int) -> Iterator[None]:
    """So many nodes with an echo."""
    argv = [sys.executable, datagram_crowd.__file__, stage.broker, str(stage.folder / "crowd"), str(count)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


@pytest.mark.timeout(300)
def test_one_socket_and_a_hundred_nodes() -> None:
    count = 100
    with open_loopback_stage() as stage, crowd(stage, count):
        program = ASK.format(pause=5.0, rounds=12)
        done = subprocess.run(
            [sys.executable, "-c", program, str(count), str(datagram_crowd.PORT)],
            env=stage.environment("asks"),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert (done.stdout, done.returncode) == (f"all {count}\n", 0), done.stderr
