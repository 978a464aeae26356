"""Ports and paths over loopback: whom a port listens to, what a path sends where, and what strangers achieve."""

from __future__ import annotations

import gc
import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from checks_support import TOKEN

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks import port as port_module
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.machine import ChecksMachine
from ntcpsock._traversal.checks.message import derive_credentials, encode_request, new_transaction_id
from ntcpsock._traversal.checks.pairs import Valid
from ntcpsock._traversal.checks.port import UdpPort, open_udp_port
from ntcpsock._traversal.stun.message import binding_request, encode_message

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    yield
    gc.collect()


def new_path(
    port: UdpPort, side: str, *remotes: Endpoint, token: bytes = TOKEN, guess: bool = True
) -> PunchedPath:
    leads = side == "dialer"
    credentials = derive_credentials(token, 1, "dialer" if leads else "listener")
    machine = ChecksMachine(credentials, controlling=leads, now=trio.current_time(), rtt=0.01)
    for remote in remotes:
        machine.add_pair(0, remote, now=trio.current_time())
    guesses = [(0, remote) for remote in remotes] if leads and guess else []
    return PunchedPath(port, machine, credentials.local_fragment, guesses=guesses, rtt=0.01)


@asynccontextmanager
async def two_ports() -> AsyncIterator[tuple[UdpPort, UdpPort, trio.Nursery]]:
    first, second = open_udp_port(), open_udp_port()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run)
        nursery.start_soon(second.run)
        try:
            yield first, second, nursery
        finally:
            first.close()
            second.close()
            nursery.cancel_scope.cancel()


def at(port: UdpPort) -> Endpoint:
    return Endpoint(HOST, port.number)


async def received(path: PunchedPath) -> list[bytes]:
    return await received_by(path, 5)


async def received_by(path: PunchedPath, seconds: float) -> list[bytes]:
    with trio.fail_after(seconds):
        while not (datagrams := path.try_receive()):
            await path.wait_readable()
    return datagrams


async def test_what_is_sent_first_arrives_with_the_first_check() -> None:
    async with two_ports() as (near, far, nursery):
        listener = new_path(far, "listener")
        listener.start()
        nursery.start_soon(listener.run)
        dialer = new_path(near, "dialer", at(far))
        dialer.start()
        assert dialer.try_send([b"\x40first"]) == 1
        nursery.start_soon(dialer.run)
        assert await received(listener) == [b"\x40first"]
        assert listener.try_send([b"\x40answer"]) == 1
        assert await received(dialer) == [b"\x40answer"]
        with trio.fail_after(5):
            await dialer.wait_nominated()
            await listener.wait_nominated()
        assert (dialer.remote, listener.remote) == (at(far), at(near))
        assert dialer.mapped == at(near)
        assert dialer.local == at(near)


async def test_what_was_sent_goes_once_more_to_a_place_that_is_heard_of_later() -> None:
    async with two_ports() as (near, far, nursery):
        elsewhere = open_udp_port()
        listener = new_path(far, "listener")
        dialer = new_path(near, "dialer", at(elsewhere))
        listener.start()
        dialer.start()
        dialer.try_send([b"\x40first"])
        for path in (listener, dialer):
            nursery.start_soon(path.run)
        dialer.check(0, at(far), "srflx", 16)
        dialer.guess([(0, at(far))])
        assert await received(listener) == [b"\x40first"]
        assert dialer.remote == at(far)
        elsewhere.close()


@pytest.mark.parametrize("settles", [(), ("dialer",), ("listener",), ("dialer", "listener")])
async def test_a_settled_path_has_a_socket_of_its_own(settles: tuple[str, ...]) -> None:
    """The kernel tells it from the port's other traffic; nothing is lost on the way there, nor waits for ever."""
    async with two_ports() as (near, far, nursery):
        paths = {"listener": new_path(far, "listener"), "dialer": new_path(near, "dialer", at(far))}
        for path in paths.values():
            path.start()
            nursery.start_soon(path.run)
        with trio.fail_after(5):
            await paths["dialer"].wait_nominated()
            await paths["listener"].wait_nominated()
        got: list[bytes] = []

        async def receive() -> None:
            while len(got) < 20:
                got.extend(await received(paths["listener"]))

        async with trio.open_nursery() as receiving:
            receiving.start_soon(receive)
            for number in range(20):
                if number == 10:
                    for name in settles:
                        paths[name].settle()
                assert paths["dialer"].try_send([b"\x40%d" % number]) == 1
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert got == [b"\x40%d" % number for number in range(20)]
        for path in paths.values():
            path.close()
            with pytest.raises(trio.ClosedResourceError):
                path.try_send([b"\x40"])


async def test_many_dialers_at_one_port() -> None:
    async with two_ports() as (near, far, nursery):
        del near
        ports, pairs = [], []
        for number in range(8):
            token = bytes([number]) * 32
            ports.append(open_udp_port())
            nursery.start_soon(ports[-1].run)
            pair = new_path(far, "listener", token=token), new_path(ports[-1], "dialer", at(far), token=token)
            pairs.append(pair)
            for path in pair:
                path.start()
                nursery.start_soon(path.run)
        for number, (listener, dialer) in enumerate(pairs):
            with trio.fail_after(5):
                await listener.wait_nominated()
                await dialer.wait_nominated()
            listener.settle()
            dialer.settle()
            dialer.try_send([b"\x40%d" % number])
        for number, (listener, _) in enumerate(pairs):
            assert await received(listener) == [b"\x40%d" % number]
        for listener, dialer in pairs:
            listener.close()
            dialer.close()
        for port in ports:
            port.close()


async def test_a_peer_whose_address_changes_is_followed() -> None:
    async with two_ports() as (near, far, nursery):
        listener, dialer = new_path(far, "listener"), new_path(near, "dialer", at(far))
        for path in (listener, dialer):
            path.start()
            nursery.start_soon(path.run)
        with trio.fail_after(5):
            await dialer.wait_nominated()
            await listener.wait_nominated()
        listener.settle()
        # As a NAT does it that has forgotten: the same path, from another port.
        async with two_ports() as (moved, _, _):
            before = near.sockets[0]
            near.sockets[0] = moved.sockets[0]
            moved.register(dialer)
            dialer.machine.probe(trio.current_time())
            dialer._notify()
            with trio.fail_after(10):
                while listener.remote != at(moved):
                    await trio.sleep(0.01)
            listener.try_send([b"\x40there"])
            moved.claim((0, at(far)), dialer)
            assert await received(dialer) == [b"\x40there"]
            near.sockets[0] = before
        listener.close()
        dialer.close()


async def test_a_check_and_a_packet_that_come_before_their_offer_wait_for_it() -> None:
    async with two_ports() as (near, far, nursery):
        dialer = new_path(near, "dialer", at(far))
        other = new_path(far, "listener", token=b"o" * 32)
        other.start()
        dialer.start()
        dialer.try_send([b"\x40early"])
        nursery.start_soon(dialer.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        listener = new_path(far, "listener")
        listener.start()
        assert await received(listener) == [b"\x40early"]
        for path in (listener, dialer, other):
            path.close()


# --- strangers ------------------------------------------------------------------------------------


async def flood(far: UdpPort, datagrams: list[bytes]) -> list[bytes]:
    """Send from a stranger's socket; what comes back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((HOST, 0))
        stranger.setblocking(False)
        for number, data in enumerate(datagrams):
            stranger.sendto(data, at(far))
            if number % 50 == 49:
                await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.02)
        answers = []
        while True:
            try:
                answers.append(stranger.recv(2048))
            except BlockingIOError:
                return answers


async def test_unknown_datagrams_are_dropped_and_counted() -> None:
    async with two_ports() as (_, far, _):
        assert await flood(far, [b"\x40junk"] * 500) == []
        assert far.dropped["unknown datagram"] == 500


async def test_a_flood_of_datagrams_at_a_punched_port_keeps_nothing_and_stops_nobody() -> None:
    async with two_ports() as (near, far, nursery):
        listener = new_path(far, "listener")
        listener.start()
        assert await flood(far, [b"\x40junk" * 200] * 2000) == []
        assert len(far._early) <= port_module._MOST_EARLY
        assert listener.try_receive() == []
        dialer = new_path(near, "dialer", at(far))
        for path in (dialer, listener):
            nursery.start_soon(path.run)
        dialer.start()
        dialer.try_send([b"\x40mine"])
        assert await received(listener) == [b"\x40mine"]
        for path in (dialer, listener):
            path.close()


async def test_a_flood_of_checks_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """By a fake clock it is all at once: so many are looked at, none is answered."""
    port = open_udp_port()
    source = Endpoint("203.0.113.5", 5)
    check = encode_request(
        derive_credentials(b"x" * 32, 1, "dialer"),
        new_transaction_id(),
        priority=1,
        controlling=True,
        tie_breaker=1,
    )
    for _ in range(5000):
        port._dispatch(check, 0, source, trio.current_time())
    assert port.dropped["flood of checks"] == 5000 - port_module.STRANGERS_AT_ONCE
    await trio.sleep(1)
    before = port.dropped["flood of checks"]
    for _ in range(100):
        port._dispatch(check, 0, source, trio.current_time())
    assert port.dropped["flood of checks"] == before
    port.close()


async def test_checks_with_guessed_credentials_get_no_answer() -> None:
    async with two_ports() as (_, far, _):
        listener = new_path(far, "listener")
        listener.start()
        right = derive_credentials(TOKEN, 1, "dialer")
        forged = type(right)(right.local_fragment, "guess", right.remote_fragment, "guess")
        checks = [
            encode_request(
                credentials, new_transaction_id(), priority=1, controlling=True, tie_breaker=1, nominate=True
            )
            for credentials in [forged, derive_credentials(b"y" * 32, 1, "dialer")] * 20
        ]
        # A plain question for an address is for STUN servers: no port of ours is one.
        checks += [encode_message(binding_request(new_transaction_id()))] * 20
        assert await flood(far, checks) == []
        assert listener.machine.refused == {"wrong integrity": 20}
        assert far.dropped["no check"] == 20
        listener.close()


async def test_answers_that_nobody_asked_for() -> None:
    async with two_ports() as (_, far, _):
        listener = new_path(far, "listener")
        listener.start()
        response = bytearray(encode_message(binding_request(new_transaction_id())))
        response[0] = 1
        assert await flood(far, [bytes(response)] * 50) == []
        assert far.dropped["response to nothing"] == 50
        listener.close()


async def test_a_peers_flood_is_bounded() -> None:
    """Also a peer that has proven itself makes us keep only so much that nobody reads."""
    async with two_ports() as (near, far, nursery):
        listener, dialer = new_path(far, "listener"), new_path(near, "dialer", at(far))
        for path in (listener, dialer):
            path.start()
            nursery.start_soon(path.run)
        with trio.fail_after(5):
            await dialer.wait_nominated()
            await listener.wait_nominated()
        for _ in range(40):
            dialer.try_send([b"\x40" + bytes(1000)] * 20)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert listener.dropped + len(listener.try_receive()) == 800
        assert listener.dropped >= 500
        for path in (listener, dialer):
            path.close()


# --- waiting and ending ---------------------------------------------------------------------------


async def test_waits_end_when_a_path_is_interrupted_or_closed() -> None:
    async with two_ports() as (near, far, nursery):
        for end in ("interrupt", "close", "settled interrupt", "settled close"):
            token = end.encode().ljust(32, b".")
            dialer = new_path(near, "dialer", at(far), token=token)
            listener = new_path(far, "listener", token=token)
            for path in (listener, dialer):
                path.start()
                nursery.start_soon(path.run)
            with trio.fail_after(5):
                await dialer.wait_nominated()
                await listener.wait_nominated()
            if end.startswith("settled"):
                dialer.settle()
            async with trio.open_nursery() as waiting:

                async def wait(path: PunchedPath = dialer) -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await path.wait_readable()

                waiting.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                getattr(dialer, end.split()[-1])()
            dialer.close()
            listener.close()
            await trio.testing.wait_all_tasks_blocked()


async def test_a_port_is_closed_when_the_last_path_has_left_it() -> None:
    async with two_ports() as (_, far, _):
        first, second = new_path(far, "listener"), new_path(far, "listener", token=b"z" * 32)
        first.start()
        second.start()
        far.retire()
        first.close()
        assert not far.closed
        second.close()
        assert far.closed


async def test_a_path_whose_peer_is_silent_breaks(autojump_clock: trio.testing.MockClock) -> None:
    port = open_udp_port()
    path = new_path(port, "dialer", Endpoint(HOST, 9))
    path.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(path.run)
        path.machine._select(path.machine._pairs[0, Endpoint(HOST, 9)], trio.current_time())
        path._notify()
        with pytest.raises(OSError, match="not answered"):
            await received_by(path, math.inf)
        assert 25 < trio.current_time() < 40
        nursery.cancel_scope.cancel()
    assert path.is_closed
    port.close()


async def test_a_way_that_comes_late_changes_nothing() -> None:
    """As after a birthday that has hit twice: what is sent goes by the nominated way."""
    async with two_ports() as (near, far, nursery):
        listener, dialer = new_path(far, "listener"), new_path(near, "dialer", at(far))
        for path in (listener, dialer):
            path.start()
            nursery.start_soon(path.run)
        with trio.fail_after(5):
            await dialer.wait_nominated()
            await listener.wait_nominated()
        late = Endpoint(HOST, 9)
        dialer._came_alive((0, late), Valid(0, late, 0.1, at(near)))
        dialer.try_send([b"\x40by the nominated way"])
        assert await received(listener) == [b"\x40by the nominated way"]
        for path in (listener, dialer):
            path.close()
