"""Over loopback a non-blocking connect by name is done when the peer's accept queue has the connection."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from fake_node import FakeNetwork
from session_support import tls_streams
from sync_support import PATIENCE, fake_network, listener

from ntcpsock import NTCPSocket, _confirmation


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        network.encrypted = True
        yield network


def test_accept_has_it_at_once(network: FakeNetwork) -> None:
    with listener() as server:
        server.setblocking(False)
        for _ in range(20):
            with NTCPSocket() as client:
                client.setblocking(False)
                assert client.connect_ex(("alice.ntcp", 8000)) == errno.EINPROGRESS
                assert select.select([], [client], [], PATIENCE)[1]
                server.accept()[0].close()


def test_data_counts_as_well() -> None:
    async def main() -> None:
        there, back = await tls_streams()
        await back.send_all(b"hello")
        await _confirmation.wait_confirmed(there)
        assert await there.receive_some() == b"hello"
        await back.aclose()
        await _confirmation.wait_confirmed(there)
        assert await there.receive_some() == b""
        await there.aclose()

    trio.run(main)


def test_a_word_is_no_data() -> None:
    async def main() -> None:
        there, back = await tls_streams()
        _confirmation.confirm(back)
        await _confirmation.wait_confirmed(there)
        await there.send_all(b"a")
        assert await back.receive_some() == b"a"
        await back.send_all(b"b")
        assert await there.receive_some() == b"b"
        there.reset()
        with pytest.raises(trio.BrokenResourceError):
            await back.receive_some()
        await _confirmation.wait_confirmed(back)  # a broken stream is not waited for
        await back.aclose()

    trio.run(main)


def test_who_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_confirmation, "DEADLINE", 0.01)

    async def main() -> None:
        there, back = await tls_streams()
        await _confirmation.wait_confirmed(there)
        await there.aclose()
        await back.aclose()

    trio.run(main)


def test_a_full_accept_queue_does_not_hold_a_connect_for_ever(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_confirmation, "DEADLINE", 0.05)
    with NTCPSocket() as server:
        server.bind(("alice.ntcp", 8000))
        server.listen(0)
        clients = [NTCPSocket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            assert client.connect_ex(("alice.ntcp", 8000)) == errno.EINPROGRESS
            assert select.select([], [client], [], PATIENCE)[1]
        for client in clients:
            server.accept()[0].close()
            client.close()
