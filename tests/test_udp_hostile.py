"""Offers that name others' UDP addresses, and dials that are not what they say: each costs what its budget says."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._identity import Identity
from ntcpsock._traversal.aim import MAX_UNPROVEN_HOSTS, Standpoint
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.checks.machine import MAX_TRIES
from ntcpsock._traversal.checks.message import derive_credentials, encode_request, new_transaction_id
from ntcpsock._traversal.checks.pairs import Outgoing
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.follow import MAX_CHECK_ROUNDS
from ntcpsock._traversal.punch.message import Candidate, Offer
from ntcpsock._traversal.surroundings import Surroundings

PEER = "203.0.113.7"
KEY = Identity.generate().public_key
TOKEN = bytes(32)


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Outgoing]:
    """What would have been sent, in place of sending it; the node is not on the broker's machine."""
    outgoing: list[Outgoing] = []

    def send(port: UdpPort, out: Outgoing) -> bool:
        outgoing.append(out)
        return True

    monkeypatch.setattr(UdpPort, "send", send)
    standpoint = Standpoint("192.0.2.1", frozenset({"198.51.100.53"}), frozenset({"10.0.0.2"}))
    monkeypatch.setattr(Surroundings, "standpoint", standpoint)
    return outgoing


def delivery() -> Delivery:
    return Delivery(KEY, bytes(8), None, b"", PEER)


def offer(number: int, round_number: int, places: list[tuple[str, int]]) -> Offer:
    candidates = tuple(Candidate("srflx", "udp", *place) for place in places)
    return Offer(number.to_bytes(16, "big"), TOKEN, 8000, round_number, candidates)


async def test_victims_get_one_small_datagram_each(tmp_path: Path, sent: list[Outgoing]) -> None:
    """Round after round, each with new victims."""
    async with open_world(tmp_path) as world, world.node("alice", techniques=("udp-punch",)) as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            sent.clear()
            for round_number in range(1, 8):
                far = [(f"198.51.100.{round_number}", 4000 + number) for number in range(4)]
                far += [(f"198.18.{round_number}.{number}", 4000) for number in range(4)]
                nursery.start_soon(alice._acceptor.offered, delivery(), offer(1, round_number, far))
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.8)
            hosts = Counter(out.remote.host for out in sent)
            assert set(hosts.values()) == {1}
            assert len(hosts) <= MAX_UNPROVEN_HOSTS
            assert max(len(out.data) for out in sent) < 150
            nursery.cancel_scope.cancel()


async def test_the_peers_own_address_gets_a_bounded_number(tmp_path: Path, sent: list[Outgoing]) -> None:
    async with open_world(tmp_path) as world, world.node("alice", techniques=("udp-punch",)) as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            sent.clear()
            for round_number in range(1, 17):
                near = [(PEER, 2000 + 8 * round_number + number) for number in range(8)]
                nursery.start_soon(alice._acceptor.offered, delivery(), offer(1, round_number, near))
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(1.5)
            ports = Counter(out.remote.port for out in sent)
            assert {out.remote.host for out in sent} == {PEER}
            assert len(ports) == 8 * MAX_CHECK_ROUNDS
            assert max(ports.values()) <= MAX_TRIES
            nursery.cancel_scope.cancel()


async def test_services_and_low_ports_get_nothing(tmp_path: Path, sent: list[Outgoing]) -> None:
    async with open_world(tmp_path) as world, world.node("alice", techniques=("udp-punch",)) as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            sent.clear()
            places = [
                ("198.51.100.53", 3478),
                ("198.18.0.1", 53),
                ("10.0.0.2", 5000),
                ("169.254.169.254", 8000),
            ]
            places += [
                ("127.0.0.1", 5000),
                ("224.0.0.251", 5353),
                ("255.255.255.255", 5000),
                ("0.0.0.0", 5000),
            ]
            nursery.start_soon(alice._acceptor.offered, delivery(), offer(1, 1, places))
            await trio.sleep(0.5)
            assert sent == []
            nursery.cancel_scope.cancel()


async def test_a_dialer_without_the_token_of_its_offer_gets_no_answer(tmp_path: Path) -> None:
    """It knows the dial id, and the port from the card; its checks carry somebody else's integrity."""
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        async with await alice.open_listener(8000), trio.open_nursery() as nursery:
            nursery.start_soon(alice._acceptor.offered, delivery(), offer(1, 1, [(PEER, 9)]))
            await trio.testing.wait_all_tasks_blocked()
            warm = alice.listening_port
            assert warm is not None
            assert warm.datagram is not None
            port = warm.datagram.port
            wrong = derive_credentials(b"w" * 32, 1, "dialer")
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as stranger:
                await stranger.bind(("127.0.0.1", 0))
                for _ in range(100):
                    check = encode_request(
                        wrong,
                        new_transaction_id(),
                        priority=1,
                        controlling=True,
                        tie_breaker=1,
                        nominate=True,
                    )
                    await stranger.sendto(check, ("127.0.0.1", port.number))
                with trio.move_on_after(0.3) as silence:
                    await stranger.recv(100)
            assert silence.cancelled_caught
            nursery.cancel_scope.cancel()
