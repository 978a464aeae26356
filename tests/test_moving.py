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
from ntcpsock._session.liveness import Liveness
from ntcpsock._session.plain import PlainCarrier
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.connect import dial_for
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.moving import greeting, redial
from ntcpsock._traversal.moving.agreed import Agreed
from ntcpsock._traversal.moving.dialler import DialledStream
from ntcpsock._traversal.moving.kept import ABRUPT_LINGER, CLOSED
from ntcpsock._traversal.moving.listener import GIVEN_UP, AcceptedStream
from ntcpsock._traversal.moving.redial import DiallerContext
from ntcpsock._traversal.punch.message import Signal
from ntcpsock._traversal.strategies.base import Connection

PORT = 8000

pytestmark = pytest.mark.usefixtures("between_machines")


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


async def test_what_was_agreed_at_the_end_of_a_try_is_not_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a try is over when the carrier is there: the listener moves, so the dialler has to go with it."""

    async def slowly(node: DiallerContext, dial: Dial, report: Report) -> Connection:
        over = trio.current_effective_deadline()
        with trio.CancelScope(shield=True):
            connection = await dial_for(node, dial, report)
            await trio.sleep_until(over)
        return connection

    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await echo_byte(dialled, accepted)
            monkeypatch.setattr(redial, "dial_for", slowly)
            (kept,) = bob.moving.dialled_streams
            await kept._move("a direct path", within=3.0)
            await echo_byte(dialled, accepted)
            assert [move.reason for move in dialled.report.moves] == ["a direct path"]
            assert [move.reason for move in accepted.report.moves] == ["a better path"]


async def test_a_try_has_its_time(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            (kept,) = bob.moving.dialled_streams
            with pytest.raises(TimeoutError, match=r"no other path to .* within 0\.0 s"):
                await kept._move("a direct path", within=0.0)
            await echo_byte(dialled, accepted)
            assert not dialled.report.moves


async def test_a_reset_right_after_a_move_is_a_move_that_was_given_up(tmp_path: Path) -> None:
    """Any other reset of a direct path is the end of the peer's program, as far as one can see."""
    reset = ConnectionResetError(errno.ECONNRESET, "reset")
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            (theirs,) = alice.moving.accepted_streams
            assert isinstance(theirs, AcceptedStream)
            assert theirs.patience(reset) == ABRUPT_LINGER < alice.linger
            (kept,) = bob.moving.dialled_streams
            await kept._move("a direct path")
            assert theirs.patience(reset) == alice.linger
            theirs._moved_at -= GIVEN_UP
            assert theirs.patience(reset) == ABRUPT_LINGER


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


@pytest.mark.parametrize("ends", ["dialler", "listener"])
async def test_a_reset_without_a_path_is_told_by_the_broker(tmp_path: Path, ends: str) -> None:
    """Long before the other end has lost its patience."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        one, other = (dialled, accepted) if ends == "dialler" else (accepted, dialled)
        await echo_byte(dialled, accepted)
        one.driver.suspend()
        other.driver.suspend()
        for stream in (one, other):
            (kept,) = bob.moving.dialled_streams if stream is dialled else alice.moving.accepted_streams
            kept._lost_at = trio.current_time()
        one.reset()
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError) as caught:
            await other.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await other.aclose()


async def test_a_dialler_that_does_not_know_the_stream_says_so(tmp_path: Path) -> None:
    """The word of its end was lost: the listener asks it to move."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        bob.moving.dialled_streams._streams.clear()
        accepted.lose(silent())
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError) as caught:
            await accepted.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        dialled.reset()
        await accepted.aclose()


async def test_nobody_else_ends_a_stream_without_a_path(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        world.node("alice") as alice,
        world.node("bob") as bob,
        world.node("mallory") as mallory,
    ):
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            (there,), (here,) = alice.moving.accepted_streams, bob.moving.dialled_streams
            word = Signal(here._resuming.session_id, 1, CLOSED, b"")
            for stream in (there, here):
                stream.stream.driver.suspend()
                stream._lost_at = trio.current_time()
            mallory.introductions.tell(alice.public_key, alice._session.instance, word)
            mallory.introductions.tell(bob.public_key, bob._session.instance, word)
            await trio.testing.wait_all_tasks_blocked(0.05)
            for stream in (there, here):
                assert stream.is_lost()
                stream._lost_at = None
                stream.stream.go_on()
            await echo_byte(dialled, accepted)


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


async def agreed(dialler: Node, listener: Node, before: dict[DialledStream, Agreed | None]) -> None:
    """Until both ends know where to go without a word, anew since `before`."""
    with trio.fail_after(30):
        for stream in dialler.moving.dialled_streams:
            while stream._agreements.current is before.get(stream):
                await trio.sleep(0.01)
            before[stream] = stream._agreements.current
    assert len(listener._acceptor.dials.standing) == len(list(dialler.moving.dialled_streams))


@pytest.mark.parametrize("loser", ["dialler", "both"])
async def test_without_a_broker_a_stream_goes_where_both_ends_agreed(tmp_path: Path, loser: str) -> None:
    """More than once: each new path has an agreement of its own."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            world.broker_scope.cancel()
            before: dict[DialledStream, Agreed | None] = {}
            for count in (1, 2):
                await agreed(bob, alice, before)
                dialled.lose(silent())
                if loser == "both":
                    accepted.lose(silent())
                await echo_byte(dialled, accepted)
                await echo_byte(accepted, dialled)
                assert len(dialled.report.moves) == len(accepted.report.moves) == count
        await wait_all_tasks_blocked()
        assert not alice._acceptor.dials.standing
        assert not alice._acceptor.dials.under_way


async def test_the_listener_goes_by_the_port_that_it_has_told(tmp_path: Path) -> None:
    """Although it has had another one since, and nobody could say so."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await agreed(bob, alice, {})
            world.broker_scope.cancel()
            before = alice._ports.listening.warm
            accepted.lose(silent())
            alice._ports.listening.renew()
            with trio.fail_after(30):
                while alice._ports.listening.warm is before:
                    await trio.sleep(0.01)
            dialled.lose(silent())
            await echo_byte(dialled, accepted)
            assert before is not None
            assert dialled.path.remote is not None
            assert dialled.path.remote[1] == before.port


async def test_a_listener_that_is_reached_elsewhere_says_so(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await agreed(bob, alice, {})
            before = alice._ports.listening.warm
            assert before is not None
            alice._ports.listening.renew()
            (kept,) = bob.moving.dialled_streams
            agreement = kept._agreements.current
            assert agreement is not None
            with trio.fail_after(30):
                while agreement._dial.answer.candidates == before.offered:  # type: ignore[union-attr]
                    await trio.sleep(0.01)
            world.broker_scope.cancel()
            dialled.lose(silent())
            await echo_byte(dialled, accepted)


async def test_another_path_is_looked_for_while_the_present_one_is_silent(tmp_path: Path) -> None:
    """And nobody looks any more once it is alive."""
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await agreed(bob, alice, {})
            (kept,) = bob.moving.dialled_streams
            await echo_byte(dialled, accepted)
            liveness = dialled.driver._liveness = Liveness(trio.current_time())
            liveness.silent = True
            kept.tend(trio.current_time())
            liveness.silent = False
            kept.tend(trio.current_time())
            await wait_all_tasks_blocked()
            assert kept._going_as_agreed is None
            liveness.silent = True
            with trio.fail_after(30):
                while not dialled.report.moves:
                    liveness.silent = True
                    kept.tend(trio.current_time())
                    await trio.sleep(0.01)
            assert dialled.report.moves[0].pause == 0
            await echo_byte(dialled, accepted)
            await echo_byte(accepted, dialled)


@pytest.mark.parametrize("how", ["by the broker", "for no stream"])
async def test_a_standing_offer_is_for_a_stream_and_comes_by_it(tmp_path: Path, how: str) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            (kept,) = bob.moving.dialled_streams
            offered = Dial(alice.public_key, alice.node_id, PORT, standing=True)
            if how == "by the broker":
                offered.resume = kept._resuming.session_id
            else:
                offered.say = kept.say
                offered.instance = b"x" * 8
            warm = await bob.take_port()
            await bob.introductions.introduce(offered, offered.offer(1, warm, 0.0))
            warm.close()
            await echo_byte(dialled, accepted)
            await wait_all_tasks_blocked(0.05)
            assert offered.dial_id not in alice._acceptor.dials.standing
            assert offered.dial_id not in alice._acceptor.dials.under_way


async def test_one_dial_id_for_two_standing_offers_harms_nobody(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node("bob") as bob:
        dialled, accepted = await connect(bob, alice)
        async with dialled, accepted:
            await agreed(bob, alice, {})
            (kept,), (there,) = bob.moving.dialled_streams, alice.moving.accepted_streams
            agreement = kept._agreements.current
            assert agreement is not None
            assert there._standing is not None
            there._standing.begin()
            agreement.offer()  # again, with the id of the one that is followed or is about to be
            agreement.offer()
            await echo_byte(dialled, accepted)
            there._standing.begin()
            await wait_all_tasks_blocked(0.05)
            accepted.lose(silent())
            dialled.lose(silent())
            await echo_byte(dialled, accepted)
        await wait_all_tasks_blocked()
        assert not alice._acceptor.dials.standing


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
