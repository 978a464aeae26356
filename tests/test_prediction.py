"""Predictions: what observations say, and that two sides' parts of a round meet (simulated NATs)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.prediction import (
    MAX_SESSIONS,
    Observation,
    Prediction,
    decode_prediction_untrusted,
    encode_prediction,
    expected_hits,
    knows_band,
    plan_spray,
    predict,
    punching_port,
)

HOST = "192.0.2.1"
SPARE = 20099  # a local port that nobody has seen
FIRST, SECOND = Endpoint("198.51.100.1", 3478), Endpoint("198.51.100.2", 3478)


def seen_in_turn(*mapped: int) -> list[Observation]:
    return [seen(number, port) for number, port in enumerate(mapped, start=1)]


def seen(local: int, mapped: int, server: Endpoint = FIRST) -> Observation:
    return Observation(local, server, Endpoint(HOST, mapped))


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        # The same from two servers: endpoint-independent, whatever the numbers.
        (
            [seen(1, 5000), seen(2, 9000), seen(3, 7000), seen(3, 7000, SECOND)],
            Prediction("exact", HOST, 7000, 7000),
        ),
        # Port preserving, and a constant distance, need no second server: a fresh port will keep it too.
        ([seen(20001, 20001), seen(20007, 20007)], Prediction("exact", HOST, SPARE, SPARE)),
        ([seen(20001, 30001), seen(20007, 30007)], Prediction("exact", HOST, SPARE + 10000, SPARE + 10000)),
        # Kept for the first destination only.
        (
            [seen(20001, 20001), seen(20007, 20007), seen(20007, 20008, SECOND)],
            Prediction("single", HOST, SPARE, SPARE),
        ),
        # One that somebody else had already, of ours or of another host.
        (
            [seen(20001, 20001), seen(20003, 20004), seen(20007, 20007), seen(20009, 20009, SECOND)],
            Prediction("exact", HOST, SPARE, SPARE),
        ),
        (
            [*(seen(n, n) for n in (20001, 20007, 20011)), seen(20003, 20004), seen(20003, 20008, SECOND)],
            Prediction("single", HOST, SPARE, SPARE),
        ),
        # Sequential, with a step, downwards, and with connections of others between.
        (
            [seen(9, 5000), seen(4, 5001), seen(7, 5002), seen(7, 5003, SECOND)],
            Prediction("sequential", HOST, 5004, 5017, 1),
        ),
        (
            [seen(9, 5000), seen(4, 5002), seen(7, 5008), seen(7, 5010, SECOND)],
            Prediction("sequential", HOST, 5012, 5038, 2),
        ),
        (
            [seen(9, 5000), seen(4, 4999), seen(7, 4998), seen(7, 4997, SECOND)],
            Prediction("sequential", HOST, 4996, 4983, -1),
        ),
        # A block of ports aligned to its size.
        (
            [seen(1, 4100), seen(2, 4350), seen(3, 4200), seen(4, 4140), seen(4, 4290, SECOND)],
            Prediction("band", HOST, 4096, 4351, aim=4245),
        ),
    ],
)
def test_what_observations_say(observed: list[Observation], expected: Prediction) -> None:
    assert predict(observed, SPARE) == expected


def test_which_local_port_an_exact_prediction_is_of() -> None:
    assert punching_port([seen(1, 5000), seen(2, 7000), seen(2, 7000, SECOND)], SPARE) == 2
    assert punching_port([seen(20001, 20001), seen(20007, 20007)], SPARE) == SPARE
    assert punching_port([seen(1, 1), seen(2, 2), seen(2, 3, SECOND)], SPARE) == SPARE


def test_an_unaligned_band_is_widened_by_what_samples_miss() -> None:
    prediction = predict(
        [seen(1, 3000), seen(2, 3900), seen(3, 3500), seen(4, 3200), seen(4, 3333, SECOND)], SPARE
    )
    assert prediction is not None
    assert prediction.shape == "band"
    assert prediction.low < 3000
    assert prediction.high > 3900


def test_without_observations_nothing_is_said() -> None:
    assert predict([], SPARE) is None


@given(st.lists(st.tuples(st.integers(1024, 65535), st.integers(1, 65535)), min_size=1, max_size=16))
def test_any_observation_gives_a_prediction_that_can_be_sent(pairs: list[tuple[int, int]]) -> None:
    prediction = predict([seen(local, mapped) for local, mapped in pairs], SPARE)
    assert prediction is not None
    assert decode_prediction_untrusted(encode_prediction(prediction), HOST) == prediction


@pytest.mark.parametrize(
    "lie",
    [
        Prediction("exact", "203.0.113.9", 80, 80),  # somebody else's address
        Prediction("band", HOST, 9000, 80),
        Prediction("band", HOST, 4096, 4351, aim=80),
    ],
)
def test_a_lie_is_refused(lie: Prediction) -> None:
    with pytest.raises(BadMessage):
        decode_prediction_untrusted(encode_prediction(lie), HOST)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    try:
        decode_prediction_untrusted(data, HOST)
    except BadMessage:
        return


# A simulated NAT: allocates one mapped port for each new session.

Allocate = Callable[[], int]


def sequential(rng: random.Random, step: int) -> tuple[Prediction, Allocate]:
    last = rng.randrange(20000, 40000)
    local = rng.sample(range(20000, 32768), 4)
    observations = [seen(port, last + step * n) for n, port in enumerate(local)]
    observations.append(seen(local[-1], last + step * 4, SECOND))
    foreign = rng.randrange(0, 5)  # connections of other hosts between the observation and the punch
    following = iter(range(last + step * (5 + foreign), last + step * 100000, step))
    prediction = predict(observations, SPARE)
    assert prediction is not None
    return prediction, lambda: next(following)


def band(rng: random.Random, width: int) -> tuple[Prediction, Allocate]:
    """A block of ports, of which each is given once: 0 stands for none left."""
    low = rng.randrange(1024 // width + 1, 65536 // width) * width
    samples = rng.sample(range(low, low + width), 17)
    # In the order of being given; nobody takes more than these.
    drawn = rng.sample(range(low, low + width), min(width, MAX_SESSIONS + len(samples)))
    free = [port for port in drawn if port not in samples]
    prediction = predict([seen(n, port) for n, port in enumerate(samples)], SPARE)
    assert prediction is not None
    return prediction, lambda: free.pop() if free else 0


def exact(rng: random.Random) -> tuple[Prediction, Allocate]:
    port = rng.randrange(2000, 60000)
    return Prediction("exact", HOST, port, port), lambda: port


def single(rng: random.Random) -> tuple[Prediction, Allocate]:
    """A port that is kept for one destination; other ones get the ports after it."""
    port = rng.randrange(2000, 60000)
    following = iter(range(port, 65536))
    return Prediction("single", HOST, port, port), lambda: next(following)


def meets(ours: tuple[Prediction, Allocate], theirs: tuple[Prediction, Allocate]) -> bool:
    """Whether one round has a pair of sessions of which each aims at where the other comes from."""
    made = []
    for (mine, allocate), (other, _) in ((ours, theirs), (theirs, ours)):
        spray = plan_spray(mine, other)
        assert spray.local_ports * len(spray.targets) <= MAX_SESSIONS
        made.append({(allocate(), target) for _ in range(spray.local_ports) for target in spray.targets})
    return any((target, mapped) in made[1] for mapped, target in made[0])


MODELS: dict[str, Callable[[random.Random], tuple[Prediction, Allocate]]] = {
    "exact": exact,
    "single": single,
    "sequential": lambda rng: sequential(rng, rng.choice([1, 2, 8])),
    "band of 256": lambda rng: band(rng, 256),
    "band of 512": lambda rng: band(rng, 512),
    "any port": lambda rng: band(rng, 32768),
}


@pytest.mark.parametrize(
    ("ours", "theirs", "rounds"),
    [
        ("exact", "exact", 1),
        ("exact", "sequential", 1),
        ("exact", "single", 1),
        ("single", "single", 1),
        ("single", "sequential", 1),
        ("single", "band of 512", 1),
        ("exact", "band of 256", 1),
        ("exact", "band of 512", 1),
        ("exact", "any port", 2),
        ("sequential", "sequential", 1),
        ("sequential", "band of 256", 1),
        ("sequential", "band of 512", 1),
        ("band of 256", "band of 256", 1),
        ("band of 512", "band of 256", 1),
        ("band of 512", "band of 512", 1),
    ],
)
def test_both_sides_meet_within_some_rounds(ours: str, theirs: str, rounds: int) -> None:
    rng = random.Random(f"{ours} {theirs}")
    for one, other in ((ours, theirs), (theirs, ours)):
        met = sum(any(meets(MODELS[one](rng), MODELS[other](rng)) for _ in range(rounds)) for _ in range(200))
        assert met >= 0.97 * 200, f"{met} of 200"


def test_two_nats_that_use_any_port_have_no_prospect() -> None:
    anywhere = Prediction("band", HOST, 1024, 65535)
    assert expected_hits(anywhere, anywhere) < 0.001
    assert expected_hits(anywhere, Prediction("exact", HOST, 7000, 7000)) > 3
    assert expected_hits(Prediction("sequential", HOST, 1, 15, 1), Prediction("exact", HOST, 7, 7)) == 1


def test_who_draws_from_a_block_aims_beside_what_it_holds() -> None:
    """A port that one of our own connections has comes up no more."""
    observed = seen_in_turn(5120, 5375, 5200, 5300, 5250)
    free = predict(observed, SPARE)
    assert free is not None
    assert free.shape == "band"
    assert free.low < free.aim < free.high
    aims = {free.aim}
    for _ in range(100):
        found = predict(observed, SPARE, taken=aims)
        assert found is not None
        assert found.aim not in aims
        assert found.low <= found.aim <= found.high
        aims.add(found.aim)
    # What lies elsewhere is of another transport or NAT.
    assert predict(observed, SPARE, taken=[4000, 6000]) == free


@pytest.mark.parametrize("looks", [1, 4, 8])
def test_what_earlier_looks_took_is_not_aimed_at(looks: int) -> None:
    """A NAT gives none of these ports again for minutes: who has the other side aim at one of them misses."""
    rng = random.Random(looks)
    for _ in range(100):
        block = rng.sample(range(5120, 5376), 256)
        # The first look at a block takes 17 of its ports, and each further one 5.
        held = [block.pop() for _ in range(17 + 5 * (looks - 1))]
        observed = seen_in_turn(*(block.pop() for _ in range(5)))
        found = predict(observed, SPARE, taken=held)
        assert found is not None
        assert found.shape == "band"
        assert found.aim in block
        spray = plan_spray(found, Prediction("single", HOST, 7000, 7000))
        assert spray.local_ports >= len(block)  # so that the port is drawn


def test_a_few_ports_of_a_band_may_look_like_steps() -> None:
    """One look in some hundred; what the NAT gave before tells."""
    observed = seen_in_turn(5130, 5150, 5190, 5200, 5220)
    found = predict(observed, SPARE)
    assert found is not None
    assert found.shape == "sequential"
    other = predict(observed, SPARE, taken=[5125, 5373, 5160])
    assert other is not None
    assert other.shape == "band"
    # What a NAT that counts gave before lies behind.
    assert predict(observed, SPARE, taken=[5110, 5120]) == found


def test_a_band_is_known_from_what_lies_around() -> None:
    observed = seen_in_turn(5130, 5300, 5200, 5370, 5250)
    assert not knows_band([], range(5120, 5140))
    assert not knows_band(observed, range(5120, 5125))
    assert knows_band(observed, range(5120, 5140))
    # Another block, from before the NAT was restarted.
    assert not knows_band(observed, range(9000, 9100))
    assert predict(observed, SPARE, taken=range(9000, 9100)) == predict(observed, SPARE)
