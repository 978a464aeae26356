"""The one engine thread: started once, never waits for itself, ends in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from fake_node import FakeNetwork, FakeStream
from sync_support import Background, fake_network, listener, pair, wait_until

import ntcpsock
from ntcpsock import NTCPSocket, _portal


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


def engine_threads() -> int:
    return sum(thread.name == "ntcpsock" for thread in threading.enumerate())


def test_one_engine_for_all_threads(network: FakeNetwork) -> None:
    portals = [thread.result() for thread in [Background(_portal.get) for _ in range(20)]]
    assert len(set(portals)) == 1
    assert engine_threads() == 1


def test_call_returns_and_raises(network: FakeNetwork) -> None:
    portal = _portal.get()

    async def double(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value * 2

    async def fail() -> None:
        raise FileNotFoundError(2, "no")

    assert portal.call(double, 21) == 42
    with pytest.raises(FileNotFoundError):
        portal.call(fail)


def test_a_call_that_forgets_its_time_out_is_cancelled(network: FakeNetwork) -> None:
    with pytest.raises(TimeoutError):
        _portal.get().call(trio.sleep_forever, timeout=0.01)


def test_the_engine_does_not_wait_for_itself(network: FakeNetwork) -> None:
    portal = _portal.get()

    async def nested() -> None:
        portal.call(trio.sleep, 0)

    with pytest.raises(OSError, match=r"ntcpsock\.trio"):
        portal.call(nested)


def test_stop_ends_waiting_calls_with_an_oserror(network: FakeNetwork) -> None:
    network.silent.add("bob")
    client = NTCPSocket()
    waiting = Background(client.connect, ("bob.ntcp", 1))
    wait_until(lambda: len(network.opened) == 1)
    _portal.stop()
    with pytest.raises(ConnectionAbortedError):
        waiting.result()
    assert "closed None" in network.events
    with client, pytest.raises(ntcpsock.NameNotFound):  # a new engine
        client.connect(("carol.ntcp", 1))
    assert engine_threads() == 1


def test_a_stopped_portal_refuses(network: FakeNetwork) -> None:
    portal = _portal.get()
    _portal.stop()
    assert not portal.alive
    with pytest.raises(ConnectionAbortedError):
        portal.call(trio.sleep, 0)
    portal.soon(print)
    portal.stop()


def test_an_engine_that_breaks_fails_calls_and_is_replaced(
    network: FakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    portal = _portal.get()
    waiting = Background(portal.call, trio.sleep_forever)
    wait_until(lambda: len(portal._calls) == 1)

    def break_it() -> None:
        raise ZeroDivisionError

    portal.soon(break_it)
    with pytest.raises(ConnectionAbortedError):
        waiting.result()
    wait_until(lambda: not portal.alive)
    assert "the engine stopped" in caplog.text
    assert _portal.get() is not portal


def test_stop_brings_out_what_was_written(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel goes on sending for a program that has exited."""
    server = listener()
    client, accepted = pair(server)
    [dialled, arrived] = network.streams
    sent = {dialled: 0, arrived: 0}
    for stream in network.streams:
        # A peer that takes everything.
        async def take(data: bytes, stream: FakeStream = stream) -> None:
            await trio.lowlevel.checkpoint()
            sent[stream] += len(data)

        monkeypatch.setattr(stream, "send_all", take)
    client.sendall(b"x" * 300_000)
    client.close()
    accepted.sendall(b"y" * 400_000)
    _portal.stop()
    assert sent == {dialled: 300_000, arrived: 400_000}
    assert dialled._out.ended
    assert arrived._out.ended
    assert accepted.recv(1) == b""
    accepted.close()
    server.close()


def test_sockets_of_a_stopped_engine_can_be_closed(network: FakeNetwork) -> None:
    server = listener()
    client, accepted = pair(server)
    _portal.stop()
    for end in (client, accepted, server):
        end.close()
    assert engine_threads() == 0


def test_start_takes_settings(network: FakeNetwork) -> None:
    ntcpsock.start(name="alice", connect_timeout=3)
    assert network.opened[0].name == "alice"
    assert network.opened[0].connect_timeout == 3
    ntcpsock.start(name="alice", connect_timeout=3)  # again: ready already
    with pytest.raises(TypeError):
        ntcpsock.start(ntcpsock.Config(), name="alice")


def test_start_says_what_is_wrong(network: FakeNetwork) -> None:
    network.open_error = ntcpsock.BrokerUnreachable("no broker")
    with pytest.raises(ntcpsock.BrokerUnreachable):
        ntcpsock.start()


def test_a_socket_brings_its_configuration(network: FakeNetwork) -> None:
    config = ntcpsock.Config(connect_timeout=0.05)
    network.silent.add("bob")
    with NTCPSocket(config=config) as client, pytest.raises(TimeoutError):
        client.connect(("bob.ntcp", 1))
    other = ntcpsock.Config(connect_timeout=7)
    with NTCPSocket(config=other) as client, pytest.raises(ntcpsock.ConfigurationError):
        client.connect(("bob.ntcp", 1))
