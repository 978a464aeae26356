"""Datagrams that cross to a program together, and arrive one by one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntcpsock._datagram_runs import send_runs


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        sender.bind(("127.0.0.1", 0))
        sender.setblocking(False)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        yield sender, receiver


class Counting:
    """A socket whose system calls are counted; the first of them that are together may be refused."""

    def __init__(self, sock: socket.socket, refusals: list[int]) -> None:
        self.sock = sock
        self.refusals = refusals
        self.calls = 0

    def sendmsg(self, buffers: Any, control: Any, flags: int, address: Any) -> int:
        self.calls += 1
        if len(buffers) > 1 and self.refusals:
            number = self.refusals.pop()
            raise OSError(number, "refused")
        return self.sock.sendmsg(buffers, control, flags, address)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.sampled_from([0, 1, 500, 1200, 1200, 1200, 9000]), max_size=20))
def test_whole_and_in_order(pair: tuple[socket.socket, socket.socket], sizes: list[int]) -> None:
    sender, receiver = pair
    datagrams = [bytes([number]) * size for number, size in enumerate(sizes)]
    send_runs(sender, datagrams, (), receiver.getsockname())
    assert [receiver.recvfrom(65536) for _ in datagrams] == [
        (datagram, sender.getsockname()) for datagram in datagrams
    ]


def test_in_few_system_calls(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    counting: Any = Counting(sender, [])
    send_runs(counting, [bytes(1000)] * 100, (), receiver.getsockname())
    assert counting.calls == 2  # 64 in a run
    assert [len(receiver.recv(2000)) for _ in range(100)] == [1000] * 100


def test_a_kernel_that_cuts_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    counting: Any = Counting(sender, [errno.EIO])
    send_runs(counting, [b"one", b"two", b"end"], (), receiver.getsockname())
    assert [receiver.recv(100) for _ in range(3)] == [b"one", b"two", b"end"]
    with pytest.raises(OSError, match="refused"):
        send_runs(Counting(sender, [errno.EBADF]), [b"one", b"two"], (), receiver.getsockname())  # type: ignore[arg-type]


def test_what_does_not_fit_is_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    send_runs(sender, [bytes(1000)] * 200, (), receiver.getsockname())
    assert len(receiver.recv(2000)) == 1000
