"""connect() from end to end on loopback: who is reached, who is refused, and what each failure says."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from world import open_world

from ntcpsock._errors import (
    BrokerUnreachable,
    ConfigurationError,
    NameNotFound,
    NameTaken,
    PeerOffline,
    PeerRefused,
    TraversalTimeout,
)
from ntcpsock._node import Node
from ntcpsock._servers.stun import serve_stun
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal import gather, pending, ports
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.punch.message import Answer


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


async def accept_one(node: Node, port: int, dialer: Node, name: str) -> tuple[NTCPStream, NTCPStream]:
    async with await node.open_listener(port) as listener:
        dialled = await dialer.open_stream(name, port)
        return dialled, await listener.accept()


async def test_by_name_and_by_node_id(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        for name in ("alice", "Alice.NTCP", alice.node_id):
            dialled, accepted = await accept_one(alice, 8000, bob, name)
            async with dialled, accepted:
                await dialled.send_all(b"there")
                assert await accepted.receive_some() == b"there"
                await accepted.send_all(b"and back")
                assert await dialled.receive_some() == b"and back"
                assert (dialled.peer.node_id, dialled.peer.port) == (alice.node_id, 8000)
                assert (accepted.peer.name, accepted.peer.node_id) == ("bob", bob.node_id)
                assert dialled.path.kind == accepted.path.kind == "lan"
                assert dialled.path.local == accepted.path.remote
                stages = [stage.name for stage in dialled.report.stages]
                assert stages == ["resolve", "gather", "broker", "punch", "bind"]
                assert dialled.report.failed_stage is None
                assert dialled.report.seconds is not None


async def test_a_node_without_a_name_is_reached_by_its_id(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node() as server, world.node() as client:
        dialled, accepted = await accept_one(server, 9, client, server.node_id)
        async with dialled, accepted:
            assert accepted.peer.name is None
            assert accepted.peer.node_id == client.node_id != server.node_id


async def test_a_node_reaches_itself(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice:
        dialled, accepted = await accept_one(alice, 9, alice, "alice")
        async with dialled, accepted:
            await dialled.send_all(b"me")
            assert await accepted.receive_some() == b"me"
            assert dialled.path.local == accepted.path.remote != dialled.path.remote


async def test_stun_that_comes_late_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that started without a STUN server gathers again until one answers."""
    for module in (ports, gather):
        for name in ("TCP_REFRESH_INTERVAL", "GATHER_RETRY"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 0.05)
    async with open_world(tmp_path) as world:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
        async with world.node("alice", stun=(f"127.0.0.1:{port}",), warm_ports=0) as alice:
            async with await alice.open_listener(8000):
                first = alice.listening_port
                assert first is not None
                assert first.stun_sockets == []
                await world.nursery.start(serve_stun, "127.0.0.1", port)
                with trio.fail_after(60):
                    while (now := alice.listening_port) is first or now is None:
                        await trio.sleep(0.02)
                assert now.stun_sockets


async def test_many_streams_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener, trio.open_nursery() as nursery:

            async def echo() -> None:
                for _ in range(20):
                    nursery.start_soon(echo_one, await listener.accept())

            async def echo_one(stream: NTCPStream) -> None:
                async with stream:
                    await stream.send_all(await stream.receive_some())

            async def dial(number: int) -> None:
                async with await bob.open_stream("alice", 8000) as stream:
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive_some() == b"%d" % number

            nursery.start_soon(echo)
            for number in range(20):
                nursery.start_soon(dial, number)


async def test_both_dial_each_other_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        at_alice, at_bob = await alice.open_listener(1), await bob.open_listener(1)
        async with at_alice, at_bob, trio.open_nursery() as nursery:
            for dialer, name, listener in ((bob, "alice", at_alice), (alice, "bob", at_bob)):

                async def dial(dialer: Node = dialer, name: str = name) -> None:
                    async with await dialer.open_stream(name, 1) as stream:
                        assert await stream.receive_some() == b"hello"

                async def answer(listener: trio.abc.Listener[NTCPStream] = listener) -> None:
                    async with await listener.accept() as stream:
                        await stream.send_all(b"hello")

                nursery.start_soon(dial)
                nursery.start_soon(answer)


# What goes wrong without anybody's ill will.


async def test_nobody_has_the_name(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node() as bob:
        with pytest.raises(NameNotFound, match=r"carol\.ntcp") as caught:
            await bob.open_stream("carol", 8000)
        assert isinstance(caught.value, socket.gaierror)
        assert caught.value.errno == socket.EAI_NONAME
        assert caught.value.report is not None
        assert caught.value.report.failed_stage == "resolve"


async def test_nothing_listens_on_the_port(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        with pytest.raises(PeerRefused, match="8000") as caught:  # no listener at all
            await bob.open_stream("alice", 8000)
        assert caught.value.errno == errno.ECONNREFUSED
        async with await alice.open_listener(8001):
            with pytest.raises(PeerRefused, match="8000"):
                await bob.open_stream("alice", 8000)


async def test_the_peer_said_goodbye(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node() as bob:
        async with world.node("alice") as alice:
            await alice.open_listener(8000)
            await bob.resolve("alice")
        with pytest.raises(PeerOffline, match="not connected to the broker") as caught:
            await bob.open_stream("alice", 8000)
        assert caught.value.errno == errno.ECONNREFUSED
        assert caught.value.report is not None
        assert caught.value.report.failed_stage == "broker"


async def test_the_peer_died_without_a_word(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        listener = await alice.open_listener(8000)
        alice._session._link.close()  # its packets reach nobody from here on
        alice._ports.listening.warm.close() if alice._ports.listening.warm else None
        with pytest.raises(PeerOffline, match="not answered") as caught:
            await bob.open_stream("alice", 8000)
        assert caught.value.report is not None
        assert caught.value.report.failed_stage == "punch"
        listener.close()


async def test_no_broker_is_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with open_world(tmp_path) as world:
            for port, timeout in ((9, 5.0), (silent.getsockname()[1], 0.3)):
                config = world.config(broker=f"ntcp://127.0.0.1:{port}", broker_timeout=timeout)
                with pytest.raises(BrokerUnreachable, match="no answer") as caught:
                    async with world.node(broker=config.broker, broker_timeout=timeout):
                        raise AssertionError("unreachable")
                assert caught.value.errno == errno.ENETUNREACH
                assert caught.value.report is not None
                assert caught.value.report.failed_stage == "broker"


async def test_a_broker_name_that_does_not_resolve(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(BrokerUnreachable):
            async with world.node(broker="ntcp://does-not-exist.invalid:1"):
                raise AssertionError("unreachable")


async def test_no_broker_configured(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(ConfigurationError, match="NTCP_BROKER"):
            async with world.node(broker=None):
                raise AssertionError("unreachable")


async def test_the_broker_goes_away_before_the_dial(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            await bob.resolve("alice")
            world.broker_scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(TraversalTimeout, match="'broker'") as caught:
                await bob.open_stream("alice", 8000, timeout=0.5)
            assert caught.value.errno == errno.ETIMEDOUT
            assert isinstance(caught.value, TimeoutError)
            with pytest.raises(BrokerUnreachable) as without_deadline:
                await bob.open_stream("alice", 8000, timeout=60)
            assert without_deadline.value.report is not None
            assert without_deadline.value.report.failed_stage == "broker"


async def test_a_restarted_broker_finds_everything_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        async with (
            world.node("alice", keep_alive_interval=0.2) as alice,
            world.node(keep_alive_interval=0.2) as bob,
        ):
            async with await alice.open_listener(8000) as listener:
                before = await bob.open_stream("alice", 8000)
                accepted_before = await listener.accept()
                await world.restart_broker()
                with trio.fail_after(60):
                    while True:
                        try:
                            after = await bob.open_stream("alice", 8000)
                            break
                        except (PeerOffline, BrokerUnreachable):
                            await trio.sleep(0.05)
                accepted_after = await listener.accept()
                await before.send_all(b"still here")
                assert await accepted_before.receive_some() == b"still here"
                for stream in (before, accepted_before, after, accepted_after):
                    stream.reset()


async def test_listener_errors(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as nobody:
        async with await alice.open_listener(8000):
            with pytest.raises(NameTaken, match="8000") as caught:
                await alice.open_listener(8000)
            assert caught.value.errno == errno.EADDRINUSE
        async with await alice.open_listener(8000), await alice.open_listener(0) as chosen:
            assert chosen.port >= 49152
        with pytest.raises(ConfigurationError, match="NTCP_NAME=bob"):
            await nobody.open_listener(8000, name="bob")
        with pytest.raises(ConfigurationError, match="another node's id"):
            await alice.open_listener(8000, name=nobody.node_id)


async def test_a_closed_listener_resets_what_nobody_accepted(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        listener = await alice.open_listener(8000)
        stream = await bob.open_stream("alice", 8000)
        while not listener._receiver.statistics().current_buffer_used:
            await trio.sleep(0.01)
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await stream.aclose()


async def test_cancelling_a_dial_leaves_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000):
            for _ in range(20):
                with trio.move_on_after(0.004):
                    (await bob.open_stream("alice", 8000)).reset()
            (await bob.open_stream("alice", 8000)).reset()
    # Whatever a cancelled dial had left open would be a ResourceWarning now, and so an error.


async def test_a_busy_listener_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        async with await alice.open_listener(8000) as listener, trio.open_nursery() as nursery:
            answered: list[Answer] = []
            reply = alice.introductions.reply

            def recording(delivery: Delivery, answer: Answer) -> None:
                answered.append(answer)
                monkeypatch.undo()
                reply(delivery, answer)

            monkeypatch.setattr(pending, "MAX_PENDING", 0)
            monkeypatch.setattr(alice.introductions, "reply", recording)

            async def dial() -> None:
                (await bob.open_stream("alice", 8000)).reset()

            nursery.start_soon(dial)
            (await listener.accept()).reset()
            assert [answer.outcome for answer in answered] == ["busy"]
