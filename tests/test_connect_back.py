"""The STUN server connects back to a TCP client that asks for it: to nobody else, not too often, or not at all."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from stun_support import own_endpoint, serving

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._servers import connect_back
from ntcpsock._servers.connect_back import ConnectBacks
from ntcpsock._traversal.punch.driver import choose_port, open_punch_listener, open_punch_socket
from ntcpsock._traversal.stun.attributes import ErrorCodeAttribute, ResponseOrigin, XorMappedAddress
from ntcpsock._traversal.stun.connect_back import ConnectBack, ConnectBackOutcome
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.driver import exchange_over_tcp
from ntcpsock._traversal.stun.machine import Failed, Succeeded
from ntcpsock._traversal.stun.message import Message, binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.server import BindingServer, ConnectBackOrder
from ntcpsock._traversal.stun.usages import ChangeRequest

ID = b"connect back"
A1P1, CLIENT = Endpoint("198.51.100.1", 3478), Endpoint("203.0.113.9", 40000)


def order_for(
    change: ChangeRequest, other: str | None = "198.51.100.2", local: Endpoint = A1P1, **server: object
) -> bytes | ConnectBackOrder | None:
    binding = BindingServer(A1P1, other, 3479, **{"connects_back": True, **server})  # type: ignore[arg-type]
    return binding.handle_stream_message(encode_message(binding_request(ID, change)), CLIENT, local)


@pytest.mark.parametrize(
    ("change", "local", "host"),
    [
        (ChangeRequest(False, True), "198.51.100.1", "198.51.100.1"),
        (ChangeRequest(True, False), "198.51.100.1", "198.51.100.2"),
        (ChangeRequest(True, True), "198.51.100.2", "198.51.100.1"),
    ],
)
def test_only_the_source_is_connected_to(change: ChangeRequest, local: str, host: str) -> None:
    order = order_for(change, local=Endpoint(local, 3478))
    assert isinstance(order, ConnectBackOrder)
    assert (order.host, order.target) == (host, CLIENT)


@pytest.mark.parametrize(
    ("change", "server"),
    [
        (ChangeRequest(False, True), {"connects_back": False}),
        (ChangeRequest(True, False), {"other": None}),
    ],
)
def test_who_cannot_says_so(change: ChangeRequest, server: dict[str, object]) -> None:
    answer = order_for(change, **server)  # type: ignore[arg-type]
    assert isinstance(answer, bytes)
    error = decode_message(answer).get(ErrorCodeAttribute)
    assert error is not None
    assert error.code == 420


def test_the_attribute_on_the_wire() -> None:
    for number in (*ConnectBackOutcome, 200):
        message = Message(1, MessageClass.SUCCESS_RESPONSE, ID, (ConnectBack(number),))
        assert decode_message(encode_message(message)).get(ConnectBack) == ConnectBack(number)
    with pytest.raises(BadMessage):
        ConnectBack.decode_untrusted(b"\1", b"")


@asynccontextmanager
async def client(
    server: Endpoint, *, listening: bool
) -> AsyncIterator[tuple[trio.socket.SocketType, list[bytes]]]:
    """A connected client, and what is said to its port."""
    port, heard = choose_port(), list[bytes]()

    async def listen(listener: trio.socket.SocketType) -> None:
        with listener:
            while True:
                sock, _ = await listener.accept()
                with sock:
                    heard.append(await sock.recv(100))

    async with trio.open_nursery() as nursery:
        if listening:
            nursery.start_soon(listen, open_punch_listener(port))
        with open_punch_socket(port) as sock:
            await sock.connect(tuple(server))
            yield sock, heard
        nursery.cancel_scope.cancel()


async def connect_back_to(sock: trio.socket.SocketType, *change: bool) -> Message:
    event = await exchange_over_tcp(sock, binding_request(ID, ChangeRequest(*change)))
    assert isinstance(event, Succeeded)
    return event.response


@pytest.mark.parametrize("change_address", [True, False])
async def test_a_listening_client_is_reached(change_address: bool) -> None:
    async with (
        serving(other_address="127.0.0.2") as addresses,
        client(addresses.primary, listening=True) as (sock, heard),
    ):
        response = await connect_back_to(sock, change_address, not change_address)
        assert response.get(ConnectBack) == ConnectBack(ConnectBackOutcome.CONNECTED)
        assert response.get(XorMappedAddress) == XorMappedAddress(own_endpoint(sock))
        origin = response.get(ResponseOrigin)
        assert origin is not None
        assert origin.endpoint.host == ("127.0.0.2" if change_address else "127.0.0.1")
        assert origin.endpoint.port not in (addresses.primary.port, own_endpoint(sock).port)
        while not heard:
            await trio.sleep(0.01)
        assert heard == [ID]
        assert addresses.counters.connect_backs == 1


async def test_a_client_that_does_not_listen_refuses() -> None:
    async with serving() as addresses, client(addresses.primary, listening=False) as (sock, _):
        response = await connect_back_to(sock, False, True)
        assert response.get(ConnectBack) == ConnectBack(ConnectBackOutcome.RESET)


async def test_the_operator_can_switch_it_off() -> None:
    async with (
        serving(connect_back=False) as addresses,
        client(addresses.primary, listening=True) as (sock, heard),
    ):
        event = await exchange_over_tcp(sock, binding_request(ID, ChangeRequest(False, True)))
        assert isinstance(event, Failed)
        assert event.code == 420
        assert heard == []


async def test_who_asks_too_often_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_back, "_BURST", 3.0)
    monkeypatch.setattr(connect_back, "_RATE", 1e-6)
    async with serving() as addresses, client(addresses.primary, listening=False) as (sock, _):
        outcomes = [(await connect_back_to(sock, False, True)).get(ConnectBack) for _ in range(5)]
        assert (
            outcomes
            == [ConnectBack(ConnectBackOutcome.RESET)] * 3 + [ConnectBack(ConnectBackOutcome.NOT_TRIED)] * 2
        )
        assert (addresses.counters.connect_backs, addresses.counters.connect_backs_refused) == (3, 2)


async def test_not_too_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose accept queue is full leaves the server's SYN unanswered: a silent target, without a network."""
    monkeypatch.setattr(connect_back, "_MOST_AT_ONCE", 2)
    with socket.socket() as full, socket.socket() as filler, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler.connect(full.getsockname())
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        backs = ConnectBacks()
        order = ConnectBackOrder(binding_request(ID), "127.0.0.1", Endpoint(*full.getsockname()), A1P1)
        found: list[ConnectBackOutcome] = []

        async def carry_out() -> None:
            found.append((await backs.carry_out(order))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(carry_out)
        assert sorted(found) == [ConnectBackOutcome.TIMED_OUT] * 2 + [ConnectBackOutcome.NOT_TRIED]


async def test_cancelled_it_leaves_nothing() -> None:
    backs = ConnectBacks()
    order = ConnectBackOrder(binding_request(ID), "127.0.0.1", Endpoint("127.0.0.1", choose_port()), A1P1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await backs.carry_out(order)
    assert scope.cancelled_caught
    outcome, _ = await backs.carry_out(order)
    assert outcome is ConnectBackOutcome.RESET
