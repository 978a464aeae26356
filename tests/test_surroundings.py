"""What a node learns where it is, and what it does with it in its next dials."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from world import open_world

from ntcpsock._address import Endpoint
from ntcpsock._errors import TraversalFailed
from ntcpsock._experience import FAILED_NODES, Experience
from ntcpsock._traversal import direct, joint
from ntcpsock._traversal.broker.driver import BrokerSession, Introduction
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.punch.message import Offer, decode_sealed_payload_untrusted
from ntcpsock._traversal.strategies import STRATEGIES
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.surroundings import LOOK_AROUND_INTERVAL, MAX_FAILING, Surroundings

RELAYS = (Endpoint("198.51.100.56", 6060),)
SERVERS = (Endpoint("198.51.100.54", 3478), Endpoint("198.51.100.55", 3478))


@pytest.fixture(autouse=True)
def leaks_show_where_they_are_made() -> Iterator[None]:
    """A socket that nobody closed is an error (ResourceWarning) in the test that made it, not in a later one."""
    yield
    gc.collect()


def surroundings(experience: Experience, observed: str = "192.0.2.1") -> Surroundings:
    session = SimpleNamespace(
        broker_host="198.51.100.53", welcome=SimpleNamespace(observed=Endpoint(observed, 5)), relays=RELAYS
    )
    return Surroundings(cast(BrokerSession, session), SERVERS, experience)


async def test_where_a_node_is(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ["10.0.0.2"]
    monkeypatch.setattr("ntcpsock._traversal.surroundings.ipv4_addresses", lambda: tuple(addresses))
    monkeypatch.setattr("ntcpsock._traversal.surroundings.ipv6_addresses", lambda: ("2001:db8::2",))
    here = surroundings(Experience(None))
    assert here.standpoint.observed == "192.0.2.1"
    assert here.standpoint.services == {f"198.51.100.{last}" for last in (53, 54, 55, 56)}
    assert here.standpoint.interfaces == {"10.0.0.2", "2001:db8::2"}
    addresses[0] = "10.9.9.9"
    await trio.sleep(LOOK_AROUND_INTERVAL + 0.1)
    assert here.standpoint.interfaces == {"10.9.9.9", "2001:db8::2"}


async def test_failures_are_counted_until_a_dial_succeeds() -> None:
    here = surroundings(Experience(None))
    for _ in range(3):
        here.dial_ended(b"a", None, {"tcp-open"})
    assert (here.earlier_failures(b"a"), here.earlier_failures(b"b")) == (3, 0)
    here.dial_ended(b"a", "tcp-open", ())
    assert here.earlier_failures(b"a") == 0
    for number in range(2 * MAX_FAILING):
        here.dial_ended(b"%d" % number, None, ())
    assert len(here._failures) == MAX_FAILING


async def test_what_never_worked_is_known_to_the_next_process(tmp_path: Path) -> None:
    here = surroundings(Experience(tmp_path))
    here.dial_ended(b"somebody", "public", ())
    for number in range(FAILED_NODES):
        assert here.late_techniques == frozenset()
        here.dial_ended(b"%d" % number, None, {"tcp-open"})
    assert here.late_techniques == {"tcp-open"}
    assert surroundings(Experience(tmp_path)).late_techniques == {"tcp-open"}


async def test_a_dial_after_a_failed_one_changes_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its offers say so, and so does each further round of one dial."""

    async def fail(context: AttemptContext) -> Connection:
        raise ConnectionRefusedError(111, "scripted")

    monkeypatch.setattr(direct, "ROUND_INTERVAL", 0.05)
    monkeypatch.setattr(joint, "make_joint_plan", lambda *_, **__: ())
    turns: list[list[int]] = []
    async with open_world(tmp_path) as world, world.node("alice") as alice, world.node() as bob:
        introduce = bob.introductions.introduce

        async def recording(dial: Dial, payload: bytes) -> Introduction:
            offer = decode_sealed_payload_untrusted(payload)
            if isinstance(offer, Offer) and not offer.technique:
                turns[-1].append(offer.turn)
            return await introduce(dial, payload)

        monkeypatch.setattr(bob.introductions, "introduce", recording)
        async with await alice.open_listener(8000) as listener:
            with monkeypatch.context() as scripted:
                for technique in STRATEGIES:
                    scripted.setitem(STRATEGIES, technique, fail)
                for _ in range(2):
                    turns.append([])
                    with pytest.raises(TraversalFailed):
                        await bob.open_stream("alice", 8000)
            for _ in range(2):
                turns.append([])
                (await bob.open_stream("alice", 8000)).reset()
                (await listener.accept()).reset()
    assert [set(per_dial) for per_dial in turns[:2]] == [{0, 1, 2}, {1, 2, 3}]
    assert [per_dial[0] for per_dial in turns[2:]] == [2, 0]
