"""Nodes whose streams move, on loopback with a real broker; and those who would like to move streams of others."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from world import open_world

from ntcpsock._errors import BadMessage, PeerRefused
from ntcpsock._node import Node
from ntcpsock._report import Report
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.connect import dial_for
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving import greeting

PORT = 8000


async def connect(dialler: Node, listener: Node) -> tuple[NTCPStream, NTCPStream]:
    async with await listener.open_listener(PORT) as accepting:
        dialled = await dialler.open_stream(listener.node_id, PORT)
        return dialled, await accepting.accept()


def silent() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, "silent")


async def echo_byte(one: NTCPStream, other: NTCPStream) -> None:
    await one.send_all(b"x")
    assert await other.receive_some() == b"x"
    await other.send_all(b"y")
    assert await one.receive_some() == b"y"


async def carrier_of(node: Node, dial: Dial, listener: Node) -> Carrier:
    connection = await dial_for(node, dial, Report(listener.node_id, "dialer", trio.current_time()))
    carrier = connection.carrier
    assert not isinstance(carrier, BareRoad | PlainCarrier)
    return carrier


async def answer_to(carrier: Carrier, frame: bytes) -> int | None:
    """The listener's, None where it refuses or closes."""
    try:
        return await greeting.ask(carrier, frame)
    except (OSError, BadMessage):
        return None


@pytest.mark.parametrize("loser", ["dialler", "both"])
async def test_a_lost_path_is_replaced(tmp_path: Path, loser: str) -> None:
    """Nobody listens on the port any more: it is the stream that is asked for. (What the listener alone notices is for
    the lab: over loopback a reset is the peer's end.)"""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await echo_byte(dialled, accepted)
            before = dialled.path.local
            dialled.lose(silent())
            if loser == "both":
                accepted.lose(silent())
            await echo_byte(dialled, accepted)
            await echo_byte(accepted, dialled)
            assert [move.reason for move in dialled.report.moves] == ["its path was lost"]
            assert len(accepted.report.moves) == 1
            assert dialled.path.local != before
            assert dialled.path == dialled.report.path == dialled.report.moves[0].path
            assert "moved to" in str(dialled.report)


async def test_linger_zero_is_plain_tcp(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice", linger=0) as alice,
        world.node("bob", linger=0) as bob,
    ):
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            dialled.lose(silent())
            with pytest.raises(trio.BrokenResourceError):
                await dialled.receive_some()
            assert not list(bob.moving.dialled_streams)


async def test_a_listener_that_was_restarted_knows_no_stream(tmp_path: Path) -> None:
    """The dialler's connection is reset as soon as it asks."""
    async with open_world(tmp_path) as world, world.node("bob") as bob:
        async with world.node("alice") as alice:
            dialled, accepted = await connect(bob, alice)
            alice.moving.accepted_streams._streams.clear()
            dialled.lose(silent())
            with pytest.raises(trio.BrokenResourceError) as caught:
                await dialled.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            accepted.reset()
        await dialled.aclose()


async def test_books_are_empty_when_streams_have_ended(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        for ending in ("aclose", "reset"):
            dialled, accepted = await connect(bob, alice)
            assert len(list(alice.moving.accepted_streams)) == len(list(bob.moving.dialled_streams)) == 1
            if ending == "reset":
                dialled.reset()
                accepted.reset()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dialled.aclose)
                    nursery.start_soon(accepted.aclose)
            await wait_all_tasks_blocked()
            assert not list(alice.moving.accepted_streams)
            assert not list(bob.moving.dialled_streams)


async def test_a_stolen_session_id_is_of_no_use_to_another_node(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob") as bob,
        world.node("mallory") as mallory,
    ):
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            session_id = next(iter(bob.moving.dialled_streams))._resuming.session_id
            stolen = Dial(alice.public_key, alice.node_id, PORT, resume=session_id)
            with pytest.raises(PeerRefused):
                await carrier_of(mallory, stolen, alice)
            assert alice._acceptor.refused["unknown stream"] >= 1
            await echo_byte(dialled, accepted)
            assert not dialled.report.moves


@pytest.mark.parametrize("attack", ["guessed", "replayed", "another carrier's"])
async def test_a_wrong_resume_is_refused_and_counted(tmp_path: Path, attack: str) -> None:
    """From the right node even: another program there may have seen the id, or an old frame."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await echo_byte(dialled, accepted)
            resuming = next(iter(bob.moving.dialled_streams))._resuming
            dial = Dial(alice.public_key, alice.node_id, PORT, resume=resuming.session_id)
            carrier = await carrier_of(bob, dial, alice)
            frame = resuming.resume(1, dial.dial_id)
            if attack == "guessed":
                frame = frame[:-32] + bytes(32)
            elif attack == "another carrier's":
                frame = resuming.resume(1, bytes(16))
            else:
                next(iter(alice.moving.accepted_streams)).resumable.epoch = 2**40
            assert await answer_to(carrier, frame) is None
            carrier.close()
            reasons = list(alice.moving.accepted_streams.refused)
            assert reasons == ["RESUME: said before" if attack == "replayed" else "RESUME: wrong proof"]
            await echo_byte(dialled, accepted)
            await echo_byte(accepted, dialled)
            assert not accepted.report.moves
