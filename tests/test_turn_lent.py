"""TURN servers that the broker lets its nodes use: credentials for a while, an allocation that is ready, a lost one.

The server is the real coturn, which knows nothing but the shared secret.
"""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from test_stun_interop import needs
from test_turn_connect import ONLY_TURN, connected, talk
from turn_support import Coturn, coturn
from world import World, open_world

from ntcpsock._address import encode_node_id
from ntcpsock._errors import ConfigurationError, TraversalFailed
from ntcpsock._node import Node
from ntcpsock._servers.pages import WELL_KNOWN
from ntcpsock._servers.turn_desk import TurnDesk, turn_desk
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.message import TurnPlace, encode_from_broker
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer

SECRET = "north"
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Coturn]:
    with coturn(tmp_path, "--use-auth-secret", f"--static-auth-secret={SECRET}") as running:
        await running.ready()
        yield running


def desk(server: Coturn, transport: str = "udp", secret: str = SECRET, seconds: int = 86400) -> TurnDesk:
    return TurnDesk([f"turn:{server.host}:{server.port}?transport={transport}"], secret, seconds)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


@needs("turnserver")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_nodes_without_settings_use_the_brokers_server(
    tmp_path: Path, server: Coturn, transport: str
) -> None:
    async with (
        open_world(tmp_path, turn=desk(server, transport)) as world,
        world.node("alice") as alice,
        world.node("bob", **ONLY_TURN) as bob,
    ):
        await until(lambda: bob.turn_servers and alice.turn_servers)
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            await talk(dialled, accepted)
            assert (dialled.path.kind, dialled.path.technique) == ("relay", "turn")
            assert dialled.report.attempts[0].notes["TURN server"].endswith(f"transport={transport}")
        # Nobody who reads reports or representations gets in with what is there.
        for word in (SECRET, bob.turn_servers[0].password):
            assert word is not None
            assert word not in str(dialled.report.to_dict()) + repr(bob.turn_servers)


@needs("turnserver")
async def test_another_secret_is_said_to_be_that(tmp_path: Path, server: Coturn) -> None:
    async with (
        open_world(tmp_path, turn=desk(server, secret="south")) as world,
        world.node("alice", techniques=("turn",)) as alice,
        world.node("bob", **ONLY_TURN) as bob,
    ):
        await until(lambda: bob.turn_servers and alice.turn_servers)
        async with await alice.open_listener(8000):
            with pytest.raises(TraversalFailed) as caught:
                await bob.open_stream("alice", 8000)
        assert caught.value.report is not None
        notes = str([attempt.notes for attempt in caught.value.report.attempts])
        assert "does not take these credentials" in notes


@needs("turnserver")
async def test_credentials_are_renewed_before_they_end(tmp_path: Path, server: Coturn) -> None:
    async with open_world(tmp_path, turn=desk(server, seconds=2)) as world, world.node("bob") as bob:
        await until(lambda: bob.turn_servers)
        first: TurnServer = bob.turn_servers[0]
        await until(lambda: bob.turn_servers[0].user != first.user)
        assert bob.turn_servers[0].address == first.address


@needs("turnserver")
async def test_the_nodes_own_servers_come_first(tmp_path: Path, server: Coturn) -> None:
    own = {"turn": ("turn:192.0.2.1",), "turn_user": "u", "turn_password": "p"}
    async with open_world(tmp_path, turn=desk(server)) as world, world.node("bob", **own) as bob:
        await until(lambda: len(bob.turn_servers) == 2)
        assert [server.address.host for server in bob.turn_servers] == ["192.0.2.1", server.host]
    async with open_world(tmp_path, turn=desk(server)) as world, world.node("eve", relay="never") as eve:
        assert eve.turn_servers == ()


async def ready(node: Node) -> TurnAllocation:
    await until(lambda: node.turn._warm is not None)
    warm = node.turn._warm
    assert warm is not None
    return warm


@needs("turnserver")
async def test_where_a_relay_is_likely_an_allocation_is_ready(tmp_path: Path, server: Coturn) -> None:
    async with (
        open_world(tmp_path, turn=desk(server)) as world,
        world.node("alice") as alice,
        world.node("bob", relay="only") as bob,
    ):
        await until(lambda: alice.turn_servers)
        warm = await ready(bob)
        assert alice.turn._warm is None  # nothing says that she will need one
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            await talk(dialled, accepted)
            assert dialled.report.attempts[0].notes["relayed"] == str(warm.relayed)
            # For the next dial there is another one.
            assert (await ready(bob)).relayed != warm.relayed


async def _dial_after_a_restart(world: World, server: Coturn) -> str:
    async with world.node("alice") as alice, world.node("bob", relay="only") as bob:
        await until(lambda: alice.turn_servers)
        warm = await ready(bob)
        server.stop()
        server.start()
        await server.ready()
        dialled, accepted = await connected(alice, bob)
        async with dialled, accepted:
            await talk(dialled, accepted)
            assert dialled.report.attempts[0].notes["relayed"] != str(warm.relayed)
            return dialled.path.technique


@needs("turnserver")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_one_that_the_server_has_forgotten_is_replaced(
    tmp_path: Path, server: Coturn, transport: str
) -> None:
    """Over UDP nothing tells before it is used, over TCP its connection ends."""
    async with open_world(tmp_path, turn=desk(server, transport)) as world:
        assert await _dial_after_a_restart(world, server) == "turn"


# --- the broker's side ----------------------------------------------------------------------------


def test_what_a_node_is_told() -> None:
    """As coturn makes it: the user ends when it says, the password is the HMAC-SHA1 of that in base64."""
    told = TurnDesk(["turns:t.example", "turn:192.0.2.1"], "north", 600).places(bytes(32), 1_000_000.0)
    assert told.seconds == 600
    user = f"1000600:{encode_node_id(bytes(32))[:16]}"
    assert [place.uri for place in told.places] == [
        "turns:t.example:5349?transport=tcp",
        "turn:192.0.2.1:3478?transport=udp",
    ]
    assert {place.username for place in told.places} == {user}
    assert len({place.password for place in told.places}) == 1
    assert told.places[0].password not in repr(told)
    other = TurnDesk(["turn:192.0.2.1"], "north", 600).places(b"\1" * 32, 1_000_000.0)
    assert other.places[0].password != told.places[0].password


def test_the_largest_answer_fits_into_a_datagram() -> None:
    host = "t" * 60 + "." + "u" * 21
    told = TurnDesk([f"turns:{host}"] * 4, "s", 86400).places(bytes(32), 4e9)
    assert len(encode_from_broker(bytes(8), 2**40, 2**31, told)) < MAX_DATAGRAM - 100


@pytest.mark.parametrize(
    ("servers", "secret"),
    [([], "s"), (["turn:a"] * 5, "s"), (["turn:a"], ""), (["stun:a"], "s"), (["turn:" + "a" * 200], "s")],
)
def test_what_cannot_be_told(servers: list[str], secret: str) -> None:
    with pytest.raises(ConfigurationError):
        TurnDesk(servers, secret)


def test_the_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("north\n")
    made = turn_desk(["turn:192.0.2.1"], file)
    assert made is not None
    assert made.places(bytes(32), 0.0) == TurnDesk(["turn:192.0.2.1"], "north").places(bytes(32), 0.0)
    assert turn_desk(None, None) is None
    for servers, secret in ((["turn:a"], None), (None, file), (["turn:a"], tmp_path / "missing")):
        with pytest.raises(ConfigurationError):
            turn_desk(servers, secret)


def test_words_that_are_too_long_are_refused() -> None:
    from ntcpsock._traversal.broker.message import TurnPlaces

    for place in (TurnPlace("turn:" + "a" * 200, "u", "p"), TurnPlace("turn:a", "u" * 100, "p")):
        with pytest.raises(ValueError, match="too long"):
            TurnPlaces((place,), 1)


async def test_the_list_of_servers_holds_no_password(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True, turn=TurnDesk(["turn:192.0.2.1"], SECRET)) as world:
        stream = await trio.open_tcp_stream(*world.server.address)
        async with stream:
            request = f"GET {WELL_KNOWN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            await stream.send_all(request.encode())
            answer = b"".join([bytes(data) async for data in stream])
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["turn"] == ["turn:192.0.2.1:3478?transport=udp"]
