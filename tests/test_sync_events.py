"""200 non-blocking connects by name under each way of waiting: one clean event for each, and nothing else.

"Clean" is what a plain connect over loopback gives: writable, not readable, no error, no end of the connection.
"""

from __future__ import annotations

import asyncio
import errno
import select
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import uvloop
from fake_node import FakeNetwork, FakeNode
from sync_support import PATIENCE, Background, fake_network, listener

import ntcpsock
from ntcpsock import NTCPSocket, _portal

# All of a round are under way at once; select() knows descriptors below 1024 only.
ROUNDS = 4
AT_ONCE = 50

ADDRESS = ("alice.ntcp", 8000)
_SO_ERROR = (socket.SOL_SOCKET, socket.SO_ERROR)


class Gate:
    """Dials wait while it is shut."""

    def __init__(self) -> None:
        self._open = trio.Event()

    def open(self) -> None:
        _portal.get().soon(self._open.set)

    def shut(self) -> None:
        self._open = trio.Event()

    async def wait(self) -> None:
        await self._open.wait()


@pytest.fixture(params=[False, True], ids=["fakes", "encrypted"])
def network(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeNetwork]:
    """Two pumps: tasks for streams without TLS, and the thread for TLS over TCP."""
    with fake_network(monkeypatch, tmp_path) as network:
        network.encrypted = request.param
        yield network


@pytest.fixture
def gate(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    dial = FakeNode.open_stream

    async def wait(self: FakeNode, name: str, port: int, **options: Any) -> object:
        await gate.wait()
        return await dial(self, name, port, **options)

    monkeypatch.setattr(FakeNode, "open_stream", wait)
    return gate


@contextmanager
def accepting(count: int) -> Iterator[Callable[[], list[NTCPSocket]]]:
    """A listener and a thread that accepts so many; the yielded function waits for them."""
    with listener() as server, ExitStack() as stack:

        def accept() -> list[NTCPSocket]:
            return [stack.enter_context(server.accept()[0]) for _ in range(count)]

        yield Background(accept).result


class Waiter:
    """One way to ask the kernel; `register` comes before connect()."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.sockets: dict[int, NTCPSocket] = {}
        self.poll: Any = {"poll": select.poll, "epoll": select.epoll, "edges": select.epoll}.get(kind, int)()

    def register(self, sock: NTCPSocket) -> None:
        self.sockets[sock.fileno()] = sock
        if self.kind == "poll":
            self.poll.register(sock, select.POLLIN | select.POLLPRI | select.POLLOUT)
        elif self.kind != "select":
            edges = select.EPOLLET if self.kind == "edges" else 0
            self.poll.register(
                sock, select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | edges
            )

    def unregister(self, descriptor: int) -> None:
        del self.sockets[descriptor]
        if self.kind != "select":
            self.poll.unregister(descriptor)

    def wait(self, timeout: float) -> list[tuple[int, int]]:
        """(descriptor, events): 4 is writable and nothing else, for all kinds."""
        if self.kind == "select":
            waiting = list(self.sockets)
            found: Counter[int] = Counter()
            for value, ready in zip(
                (1, 4, 2), select.select(waiting, waiting, waiting, timeout), strict=True
            ):
                found.update(dict.fromkeys(ready, value))
            return list(found.items())
        if self.kind == "poll":
            events: list[tuple[int, int]] = self.poll.poll(timeout * 1000)
        else:
            events = self.poll.poll(timeout)
        return events

    def close(self) -> None:
        if self.kind in ("epoll", "edges"):
            self.poll.close()


@pytest.mark.parametrize("kind", ["select", "poll", "epoll", "edges"])
def test_registered_before_connect(gate: Gate, kind: str) -> None:
    for _ in range(ROUNDS):
        gate.shut()
        waiter = Waiter(kind)
        with accepting(AT_ONCE) as accepted, ExitStack() as stack:
            stack.callback(waiter.close)
            clients = [stack.enter_context(NTCPSocket()) for _ in range(AT_ONCE)]
            for client in clients:
                client.setblocking(False)
                waiter.register(client)
            for client in clients:
                assert client.connect_ex(ADDRESS) == errno.EINPROGRESS
            assert waiter.wait(0.05) == []  # all of them wait
            gate.open()
            seen: Counter[int] = Counter()
            while len(seen) < AT_ONCE:
                for descriptor, events in waiter.wait(PATIENCE):
                    assert events == 4
                    seen[descriptor] += 1
                    if kind != "edges":  # these tell a state again and again, edges only its changes
                        assert waiter.sockets[descriptor].getsockopt(*_SO_ERROR) == 0
                        waiter.unregister(descriptor)
            ends = accepted()
            assert waiter.wait(0.05) == []
            assert set(seen.values()) == {1}
            for client in clients:
                assert client.getsockopt(*_SO_ERROR) == 0
                assert client.peer is not None
                client.sendall(b"x")
            assert [end.recv(2) for end in ends] == [b"x"] * AT_ONCE


class Recording(selectors.EpollSelector):
    """What an event loop is told of each descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, list[int]] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout)
        for key, mask in events:
            self.told.setdefault(key.fd, []).append(mask)
        return events


class Asked(NTCPSocket):
    """Counts how often an event loop asks what has become of the connect: once an event."""

    asked = 0

    def getsockopt(self, *args: Any) -> Any:
        self.asked += args == _SO_ERROR
        return super().getsockopt(*args)


def test_asyncio_sock_connect(network: FakeNetwork) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ROUNDS):
            with accepting(AT_ONCE) as accepted, ExitStack() as stack:
                clients = [stack.enter_context(Asked()) for _ in range(AT_ONCE)]
                for client in clients:
                    client.setblocking(False)
                selector.told.clear()
                await asyncio.gather(*(loop.sock_connect(client, ADDRESS) for client in clients))
                for client in clients:
                    # asyncio looks once more before it forgets a descriptor: a state, no second change.
                    assert set(selector.told[client.fileno()]) == {selectors.EVENT_WRITE}
                    assert client.asked == 1
                    assert client.peer is not None
                    await loop.sock_sendall(client, b"x")
                assert [end.recv(2) for end in accepted()] == [b"x"] * AT_ONCE

    selector = Recording()
    with (
        ntcpsock.patched(),
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner,
    ):
        runner.run(main())


def test_asyncio_open_connection(network: FakeNetwork) -> None:
    async def main() -> None:
        for _ in range(ROUNDS):
            with accepting(AT_ONCE) as accepted:
                selector.told.clear()
                pairs = await asyncio.gather(*(asyncio.open_connection(*ADDRESS) for _ in range(AT_ONCE)))
                for _, writer in pairs:
                    told = selector.told[writer.get_extra_info("socket").fileno()]
                    assert set(told) == {selectors.EVENT_WRITE}
                    writer.write(b"x")
                assert [end.recv(2) for end in accepted()] == [b"x"] * AT_ONCE
                for _, writer in pairs:
                    writer.close()
                await asyncio.gather(*(writer.wait_closed() for _, writer in pairs))

    selector = Recording()
    with (
        ntcpsock.patched(),
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner,
    ):
        runner.run(main())


def test_uvloop_sock_connect(network: FakeNetwork) -> None:
    """uvloop resolves by the C library, which knows numbers only; the socket object is ours."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uvloop.Loop)
        number = ntcpsock.gethostbyname(ADDRESS[0])
        for _ in range(ROUNDS):
            with accepting(AT_ONCE) as accepted, ExitStack() as stack:
                clients = [stack.enter_context(Asked()) for _ in range(AT_ONCE)]
                for client in clients:
                    client.setblocking(False)
                await asyncio.gather(*(loop.sock_connect(client, (number, 8000)) for client in clients))
                for client in clients:
                    assert client.asked == 1
                    assert client.peer is not None
                    await loop.sock_sendall(client, b"x")
                assert [end.recv(2) for end in accepted()] == [b"x"] * AT_ONCE

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("make", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_a_failed_sock_connect_under_a_loop(network: FakeNetwork, make: Callable[[], Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        number = ntcpsock.gethostbyname(ADDRESS[0])
        for _ in range(AT_ONCE):
            with NTCPSocket() as client:
                client.setblocking(False)
                with pytest.raises(ConnectionRefusedError):
                    await loop.sock_connect(client, (number, 1))

    with listener(), asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
