"""Absolute lifetimes of mappings: learnt from paths that die at like ages, and doubted as soon as one lives longer."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._experience import Experience
from ntcpsock._path_ages import (
    DEATHS_NEEDED,
    EXPIRY,
    LONGEST_AGE,
    MAX_DEATHS,
    MAX_NETWORKS,
    MAX_PEERS,
    SHORTEST_AGE,
    SPREAD,
    TOGETHER,
    PathAges,
)
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.surroundings import Surroundings

HOME, OFFICE = "home", "office"
ALICE, BOB = b"a" * 32, b"b" * 32


class Clock:
    now = 1.8e9

    def __call__(self) -> float:
        return self.now


class Story:
    """Paths, one after the other."""

    def __init__(self, directory: Path | None = None) -> None:
        self.clock = Clock()
        self.ages = PathAges(directory, self.clock)

    def die(self, *ages: float, peer: bytes = ALICE, network: str = HOME, pause: float = 60.0) -> Story:
        for age in ages:
            self.clock.now += pause
            self.ages.note_death(network, "udp", peer, age)
        return self

    def live(self, age: float, peer: bytes = ALICE, network: str = HOME) -> Story:
        self.clock.now += 60.0
        self.ages.note_survival(network, "udp", peer, age)
        return self

    def expected(self, peer: bytes = ALICE, network: str = HOME) -> float | None:
        return self.ages.expected_lifetime(network, "udp", peer)


def test_a_carrier_that_drops_what_is_used() -> None:
    """The ages that were watched at one: 48 to 75 s."""
    story = Story().die(48.0, 75.0)
    assert story.expected() is None
    story.die(60.0)
    assert story.expected() == 48.0
    # Whoever the peer is; but only there, and only over UDP.
    assert story.expected(BOB) == 48.0
    assert story.expected(network=OFFICE) is None
    assert story.ages.expected_lifetime(HOME, "tcp", ALICE) is None


def test_deaths_of_other_reasons_make_no_lifetime() -> None:
    assert Story().die(20.0, 300.0, 5000.0, 45.0, 900.0).expected() is None
    # Three of eight may be alike by chance.
    assert Story().die(60.0, 61.0, 62.0, 200.0, 500.0, 1000.0, 3000.0, 9000.0).expected() is None
    assert Story().die(60.0, 61.0, 62.0, 63.0, 64.0, 1000.0).expected() == 60.0
    # Too young to be of age, or too old to care.
    assert Story().die(*[SHORTEST_AGE - 1] * 5).expected() is None
    assert Story().die(*[LONGEST_AGE + 1] * 5).expected() is None


def test_one_that_lives_longer_is_enough_to_doubt() -> None:
    assert Story().die(60.0, 61.0, 62.0).live(59.0).expected() == 60.0
    assert Story().die(60.0, 61.0, 62.0).live(200.0).expected() is None
    assert Story().die(60.0).live(200.0).die(61.0, 62.0).expected() is None
    # Before the first of them: the router may have another rule since.
    assert Story().live(200.0).die(60.0, 61.0, 62.0).expected() == 60.0


def test_it_may_be_the_peers_router() -> None:
    story = Story().die(60.0, 61.0, 62.0, peer=ALICE)
    story.live(500.0, peer=BOB)
    assert story.expected(ALICE) == 60.0
    assert story.expected(BOB) is None
    story.live(500.0, peer=ALICE)
    assert story.expected(ALICE) is None


def test_an_outage_is_one_death() -> None:
    story = Story().die(60.0, 60.0, 60.0, 60.0, pause=1.0)
    assert story.expected() is None
    story.die(60.0, pause=TOGETHER + 1)
    assert story.expected() is None
    story.die(60.0, pause=TOGETHER + 1)
    assert story.expected() == 60.0


@pytest.mark.parametrize("before", [True, False])
def test_a_change_of_the_network_explains_deaths_around_it(before: bool) -> None:
    story = Story()
    for _ in range(DEATHS_NEEDED):
        story.clock.now += 600.0
        if before:
            story.ages.network_changed()
            story.die(60.0, pause=TOGETHER / 2)
        else:
            story.die(60.0)
            story.clock.now += TOGETHER / 2
            story.ages.network_changed()
    assert story.expected() is None
    story.die(60.0, 60.0, 60.0)
    assert story.expected() == 60.0
    # What was learnt before stays.
    story.clock.now += 600.0
    story.ages.network_changed()
    assert story.expected() == 60.0


def test_it_is_forgotten() -> None:
    story = Story().die(60.0, 61.0, 62.0)
    story.clock.now += EXPIRY - 3600
    assert story.expected() == 60.0
    story.clock.now += 3600
    assert story.expected() is None


def test_the_rule_changes() -> None:
    story = Story().die(*[60.0] * MAX_DEATHS)
    assert story.expected() == 60.0
    assert story.die(*[600.0] * MAX_DEATHS).expected() == 600.0


def test_the_next_process_knows(tmp_path: Path) -> None:
    story = Story(tmp_path).die(60.0, 61.0)
    other = Story(tmp_path)
    other.clock.now = story.clock.now
    other.die(70.0, network=OFFICE)
    story.ages.save()
    other.die(62.0)
    other.ages.save()
    third = Story(tmp_path)
    third.clock.now = other.clock.now
    assert third.expected() == 60.0
    third.live(500.0)
    third.ages.save()
    fourth = Story(tmp_path)
    fourth.clock.now = third.clock.now
    assert fourth.expected() is None
    # Dropped before it was written, so it never is.
    story = Story(tmp_path / "other").die(60.0, 60.0, 60.0, pause=2.0)
    story.ages.network_changed()
    story.ages.save()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"home": 1}', b"[" * 100_000, b'{"home":{"udp":{"deaths":[3]}}}']
)
def test_a_broken_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "paths.json").write_bytes(content)
    story = Story(tmp_path).die(60.0, 61.0, 62.0)
    assert story.expected() == 60.0
    story.ages.save()
    assert PathAges(tmp_path, story.clock).expected_lifetime(HOME, "udp", ALICE) == 60.0


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    story = Story(tmp_path / "file").die(60.0, 61.0, 62.0)
    story.ages.save()
    assert story.expected() == 60.0


def test_it_is_bounded(tmp_path: Path) -> None:
    story = Story(tmp_path)
    chance = random.Random(1)
    for number in range(20 * MAX_NETWORKS):
        network = str(number % (5 * MAX_NETWORKS))
        story.die(chance.uniform(20, 500), peer=b"%d" % number, network=network, pause=11.0)
        for peer in range(3):
            story.live(chance.uniform(20, 500), peer=b"%d" % (number * 3 + peer), network=network)
    assert len(story.ages._networks) <= 2 * MAX_NETWORKS + 1
    assert len(story.ages._noted) <= MAX_NETWORKS * MAX_PEERS
    for number in range(5 * MAX_PEERS):
        story.live(100.0, peer=b"%d" % number)
    assert len(story.ages._networks[HOME]["udp"].survived) == MAX_PEERS
    story.ages.save()
    assert len(story.ages._networks) <= MAX_NETWORKS
    assert (tmp_path / "paths.json").stat().st_size < 256 * 1024


@given(
    st.floats(20.0, 3600.0),
    st.lists(st.floats(1.0, SPREAD), min_size=DEATHS_NEEDED, max_size=MAX_DEATHS),
    st.lists(st.floats(0.1, 1.0), max_size=5),
)
def test_what_is_learnt_is_never_later_than_a_death(
    shortest: float, factors: list[float], lives: list[float]
) -> None:
    ages = [shortest * factor for factor in factors]
    story = Story().die(*ages)
    for share in lives:
        story.live(share * min(ages))
    expected = story.expected()
    assert expected is not None
    assert expected == min(ages)


def test_a_node_learns_and_saves(tmp_path: Path) -> None:
    session = SimpleNamespace(
        broker_host="198.51.100.53", welcome=SimpleNamespace(observed=Endpoint("192.0.2.1", 5)), relays=()
    )
    clock = Clock()

    def surroundings() -> Surroundings:
        return Surroundings(cast(BrokerSession, session), (), Experience(tmp_path), PathAges(tmp_path, clock))

    async def main() -> None:
        here = surroundings()
        for age in (60.0, 61.0, 62.0):
            clock.now += 100.0
            here.path_died("udp", ALICE, age)
        here.path_survived("udp", ALICE, 40.0)
        assert here.expected_lifetime("udp", ALICE) == here.mapping_lifetime == 60.0
        here.save()
        assert surroundings().expected_lifetime("udp", BOB) == 60.0
        clock.now += 1.0
        here.look_again()
        assert here.expected_lifetime("udp", ALICE) == 60.0
        here.moved()
        assert here.expected_lifetime("udp", ALICE) is None

    import trio

    trio.run(main)
