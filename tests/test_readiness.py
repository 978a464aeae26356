"""Many descriptors, one task."""

from __future__ import annotations

import logging
import os
import select
import socket
from functools import partial

import pytest
import trio
import trio.testing

from ntcpsock._address import Endpoint
from ntcpsock._readiness import readiness
from ntcpsock._traversal.checks.pairs import Outgoing
from ntcpsock._traversal.checks.port import open_udp_port

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux has it")


async def test_each_is_told_of_its_own() -> None:
    watching = readiness()
    assert watching is not None
    assert readiness() is watching
    pairs = [socket.socketpair() for _ in range(100)]
    read: list[int] = []

    def take(number: int, other: socket.socket) -> None:
        other.recv(1)
        read.append(number)

    for number, (end, other) in enumerate(pairs):
        other.setblocking(False)
        watching.watch(other, partial(take, number, other))
        end.send(bytes([number]))
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert sorted(read) == list(range(100))
    for _, other in pairs[50:]:
        watching.forget(other)
        watching.forget(other)
    for end, _ in pairs:
        end.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert sorted(read[100:]) == list(range(50))
    for end, other in pairs:
        watching.forget(other)
        end.close()
        other.close()


async def test_one_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    watching = readiness()
    assert watching is not None
    (bad_end, bad), (end, good) = socket.socketpair(), socket.socketpair()
    told = trio.Event()

    def fail() -> None:
        bad.recv(1)
        raise ValueError("of this one")

    watching.watch(bad, fail)
    watching.watch(good, told.set)
    with caplog.at_level(logging.ERROR, "ntcpsock"):
        bad_end.send(b"x")
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert "of this one" in caplog.text
    end.send(b"x")
    with trio.fail_after(5):
        await told.wait()
    for sock in (bad, good):
        watching.forget(sock)
    for sock in (bad_end, bad, end, good):
        sock.close()


async def test_what_ends_in_a_forked_child_goes_on_here() -> None:
    watching = readiness()
    assert watching is not None
    end, other = socket.socketpair()
    told = trio.Event()
    watching.watch(other, told.set)
    child = os.fork()
    if not child:
        watching.forget(other)
        os._exit(0)
    await trio.to_thread.run_sync(os.waitpid, child, 0)
    end.send(b"x")
    with trio.fail_after(5):
        await told.wait()
    watching.forget(other)
    end.close()
    other.close()


async def test_a_watched_port_reads_without_a_task_until_it_is_closed() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    readiness()
    with_watcher = trio.lowlevel.current_statistics().tasks_living
    assert with_watcher <= before + 1
    ports = [open_udp_port() for _ in range(10)]
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    try:
        for port in ports:
            assert port.watch()
            assert port.watch()
            assert port.is_running
            await port.run()  # somebody reads already
        assert trio.lowlevel.current_statistics().tasks_living == with_watcher
        remote = Endpoint("127.0.0.1", server.getsockname()[1])
        ports[0].send(Outgoing(0, remote, b"\xff"))
        _, source = server.recvfrom(100)
        server.sendto(b"\xff unknown", ("127.0.0.1", source[1]))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ports[0].dropped["unknown datagram"] == 1
    finally:
        for port in ports:
            port.close()
        server.close()
    watching = readiness()
    assert watching is not None
    assert not watching._callbacks
    assert not any(port.is_running for port in ports)
