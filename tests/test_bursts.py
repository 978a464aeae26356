"""What bursts of prediction cost a NAT's block: how many ports are left, and what is made again, not anew."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import trio
from msgspec.structs import replace

from ntcpsock._address import Endpoint
from ntcpsock._traversal.bursts import (
    BAND_KNOWN_FOR,
    MOST_PEERS,
    MOST_STEPS,
    NARROW,
    REPEATED_FOR,
    Burst,
    Bursts,
    PeerBursts,
    plain,
    reserved,
    steps_to_aim,
)
from ntcpsock._traversal.checks.pairs import Outgoing
from ntcpsock._traversal.checks.port import UdpPort, open_udp_port
from ntcpsock._traversal.observe import FIRST_SAMPLES
from ntcpsock._traversal.observe_udp import hold_datagram_ports
from ntcpsock._traversal.prediction import (
    Observation,
    Prediction,
    decode_prediction_untrusted,
    encode_prediction,
    expected_hits,
    is_costly,
    is_scarce,
    left_between,
    plan_spray,
    predict,
)
from ntcpsock._traversal.recent import KEPT_FOR
from ntcpsock._traversal.strategies.base import AttemptContext
from ntcpsock._traversal.strategies.predictions import exchange_predictions

OURS, THEIRS = "203.0.113.1", "198.51.100.7"
BLOCK = Prediction("band", OURS, 4096, 4351, aim=4200)
COUNTS = Prediction("sequential", THEIRS, 7001, 7014, 1)
KNOWN = Prediction("exact", THEIRS, 7000, 7000)
ALICE, BOB = b"alice", b"bob"


def burst(ours: Prediction, theirs: Prediction, *, count: int = 200, made: float = 0.0) -> Burst:
    return Burst(ours, theirs, tuple((20000 + number, theirs.high) for number in range(count)), made)


# -- the account


def test_a_block_keeps_a_reserve() -> None:
    assert Bursts().left("tcp", BLOCK, (), 0.0) == 256 - reserved(256)
    assert 8 <= reserved(64) <= reserved(256) < reserved(512) < 64


def test_what_is_known_of_the_block_and_what_was_taken_are_counted() -> None:
    bursts = Bursts()
    free = bursts.left("tcp", BLOCK, (), 0.0)
    assert bursts.left("tcp", BLOCK, (4096, 4351, 4352, 80), 0.0) == free - 2
    PeerBursts(bursts, BOB).begin("tcp", burst(BLOCK, COUNTS), 0.0)
    assert bursts.left("tcp", BLOCK, (), KEPT_FOR - 1) == free - 200
    assert bursts.left("udp", BLOCK, (), 0.0) == free
    assert bursts.left("tcp", BLOCK, (), KEPT_FOR) == free


def test_one_that_is_made_again_takes_nothing_and_is_kept_for_longer() -> None:
    bursts = Bursts()
    peer, made = PeerBursts(bursts, BOB), burst(BLOCK, COUNTS)
    free = bursts.left("udp", BLOCK, (), 0.0)
    peer.begin("udp", made, 0.0)
    peer.begin("udp", made, 100.0)
    assert bursts.left("udp", BLOCK, (), 100.0) == free - 200
    assert bursts.left("udp", BLOCK, (), 99.0 + KEPT_FOR) == free - 200
    assert bursts.left("udp", BLOCK, (), 100.0 + KEPT_FOR) == free


def test_a_nat_that_counts_has_ports_without_end() -> None:
    bursts = Bursts()
    PeerBursts(bursts, BOB).begin("tcp", burst(COUNTS, BLOCK), 0.0)
    assert bursts.left("tcp", BLOCK, (), 0.0) == 256 - reserved(256)


@pytest.mark.parametrize(
    ("most", "other", "scarce"),
    [(None, COUNTS, False), (200, COUNTS, False), (100, COUNTS, True), (100, KNOWN, False), (0, KNOWN, True)],
)
def test_too_few_ports_are_no_burst(most: int | None, other: Prediction, scarce: bool) -> None:
    """A known port of the other side takes few."""
    ours = replace(BLOCK, most=most)
    assert is_scarce(ours, other) == is_scarce(other, ours) == scarce


def test_both_sides_plan_with_what_is_left() -> None:
    ours = replace(BLOCK, most=180)
    assert plan_spray(ours, COUNTS).local_ports == 180
    assert expected_hits(ours, COUNTS) == expected_hits(COUNTS, ours) == pytest.approx(180 / 256)
    assert is_costly(ours, COUNTS)
    assert not is_costly(ours, KNOWN)


# -- the block


def test_a_block_that_was_seen_is_not_looked_at_for_a_while() -> None:
    bursts = Bursts()
    bursts.looked("tcp", replace(BLOCK, most=3, again=7), 0.0)
    assert bursts.known_band("tcp", (), 1.0) == BLOCK
    assert bursts.known_band("udp", (), 1.0) is None
    assert bursts.known_band("tcp", (), BAND_KNOWN_FOR) is None
    bursts.looked("tcp", COUNTS, 2.0)
    assert bursts.known_band("tcp", (), 2.0) is None


def test_none_of_the_ports_that_are_held_is_aimed_at() -> None:
    bursts = Bursts()
    bursts.looked("tcp", BLOCK, 0.0)
    band = bursts.known_band("tcp", (4100, 4190, 4200, 4210, 4300), 1.0)
    assert band is not None
    assert band.aim not in (4100, 4190, 4200, 4210, 4300)
    assert band.low <= band.aim <= band.high


def test_wide_ones_are_not_spared() -> None:
    bursts = Bursts()
    bursts.looked("tcp", Prediction("band", OURS, 1024, 1024 + NARROW), 0.0)
    assert bursts.known_band("tcp", (), 1.0) is None
    assert not bursts.is_short("tcp", range(1024, 1024 + NARROW), 1.0)


def test_a_block_is_short_when_we_have_all_that_we_may() -> None:
    bursts = Bursts()
    bursts.looked("tcp", BLOCK, 0.0)
    assert not bursts.is_short("tcp", (), 1.0)
    PeerBursts(bursts, BOB).begin("tcp", burst(BLOCK, COUNTS, count=240), 0.0)
    assert bursts.is_short("tcp", (), 1.0)
    assert not bursts.is_short("udp", (), 1.0)
    bursts.forget()
    assert not bursts.is_short("tcp", (), 1.0)


# -- made again


def test_both_sides_give_it_the_same_name() -> None:
    name = burst(BLOCK, COUNTS).name
    assert name == burst(COUNTS, BLOCK, made=9.0).name != 0
    assert name == burst(replace(BLOCK, most=5, again=9), replace(COUNTS, leaves=True)).name
    assert name != burst(replace(BLOCK, aim=4201), COUNTS).name


def test_it_is_made_again_towards_the_same_node_for_a_while() -> None:
    bursts = Bursts()
    made = burst(BLOCK, COUNTS)
    PeerBursts(bursts, BOB).begin("udp", made, 0.0)
    assert PeerBursts(bursts, BOB).made("udp", REPEATED_FOR - 1) == made
    assert PeerBursts(bursts, BOB).made("udp", REPEATED_FOR) is None
    assert PeerBursts(bursts, BOB).made("tcp", 0.0) is None
    assert PeerBursts(bursts, ALICE).made("udp", 0.0) is None
    PeerBursts(bursts, BOB).met("udp")
    assert PeerBursts(bursts, BOB).made("udp", 0.0) is None


def test_while_it_is_held_dials_come_from_the_same_ports() -> None:
    bursts = Bursts()
    bursts.dials(BOB, 5000, 6000)
    PeerBursts(bursts, BOB).begin("tcp", burst(COUNTS, KNOWN, count=16), 0.0)
    assert bursts.ports_again(BOB, 0.0) is None
    PeerBursts(bursts, BOB).begin("tcp", burst(COUNTS, BLOCK, count=16), 0.0)
    assert bursts.ports_again(BOB, 1.0) == (5000, 6000)
    assert bursts.ports_again(ALICE, 1.0) is None
    assert bursts.ports_again(BOB, KEPT_FOR) is None


def test_not_all_nodes_are_remembered() -> None:
    bursts = Bursts()
    for number in range(2 * MOST_PEERS):
        PeerBursts(bursts, bytes([number])).begin("tcp", burst(BLOCK, COUNTS), 0.0)
        bursts.dials(bytes([number]), 1, 2)
    assert bursts.made(bytes([0]), "tcp", 0.0) is None
    assert bursts.made(bytes([2 * MOST_PEERS - 1]), "tcp", 0.0) is not None


@pytest.mark.parametrize(
    ("present", "needed"),
    [
        # Nothing has come to the NAT: it is where it was, or where further looks have brought it.
        (COUNTS, 16),
        (replace(COUNTS, low=7010, high=7023), 7),
        (replace(COUNTS, low=7014, high=7027), 3),
        # It has been there.
        (replace(COUNTS, low=7020, high=7033), 0),
        (replace(COUNTS, low=7014 - MOST_STEPS, high=7014), 0),
        (BLOCK, 0),
    ],
)
def test_a_side_that_counts_goes_on_to_the_port_that_is_aimed_at(present: Prediction, needed: int) -> None:
    assert steps_to_aim(COUNTS, present) == needed
    assert steps_to_aim(BLOCK, present) == 0


# -- whether packets leave


@pytest.mark.parametrize(
    ("ports", "leaves"), [((7000, 7001, 7002, 7003), False), ((7000, 7001, 7003, 7004), True)]
)
def test_a_nat_that_counts_shows_whether_packets_to_the_other_side_get_there(
    ports: tuple[int, ...], leaves: bool
) -> None:
    server = Endpoint("192.0.2.1", 3478)
    seen = [
        Observation(20000 + 37 * number, server, Endpoint(OURS, port)) for number, port in enumerate(ports)
    ]
    prediction = predict(seen, 30000)
    assert prediction is not None
    assert left_between(seen, (20037, 20074), prediction) is leaves
    assert left_between(seen, None, prediction) is None
    assert left_between(seen[:2], (20037, 20074), prediction) is None
    assert left_between(seen, (20037, 20074), BLOCK) is None


def test_the_word_says_it_and_older_nodes_need_not_understand() -> None:
    word = replace(BLOCK, most=17, again=2**32 - 1, leaves=False)
    assert decode_prediction_untrusted(encode_prediction(word), OURS) == word
    old = msgspec.msgpack.encode(["band", OURS, 4096, 4351, 0, 4200])
    assert decode_prediction_untrusted(old, OURS) == BLOCK == plain(word)


# -- what both sides agree to


def context_of(peer: PeerBursts, theirs: Prediction) -> AttemptContext:
    """An attempt whose other side says `theirs`."""

    async def hear(word: str) -> bytes:
        return encode_prediction(theirs)

    return cast(
        "AttemptContext",
        SimpleNamespace(
            bursts=peer,
            talk=SimpleNamespace(say=lambda word, body: None, hear=hear),
            remote=Endpoint(THEIRS, 0),
            taken=lambda transport: (),
            entry=SimpleNamespace(notes={}),
        ),
    )


async def test_a_new_burst_comes_first_and_is_made_again_when_ports_are_few(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bursts = Bursts()
    peer = PeerBursts(bursts, BOB)
    new = await exchange_predictions(context_of(peer, COUNTS), BLOCK, "udp", 256)
    assert new.burst is None
    assert new.ours.most == 256 - reserved(256)
    made = burst(plain(new.ours), plain(new.theirs), made=trio.current_time())
    peer.begin("udp", made, trio.current_time())
    again = await exchange_predictions(
        context_of(peer, replace(COUNTS, low=7020, high=7033, again=made.name)), BLOCK, "udp", 256
    )
    assert again.burst == made
    assert again.ours.again == made.name
    # The other side has forgotten it, or has made another one.
    for name in (0, made.name ^ 1):
        with pytest.raises(OSError, match="too few ports") as caught:
            await exchange_predictions(context_of(peer, replace(COUNTS, again=name)), BLOCK, "udp", 256)
        assert caught.value.errno == errno.ENOBUFS


async def test_no_block_is_used_up_for_what_never_leaves(autojump_clock: trio.testing.MockClock) -> None:
    stuck = replace(COUNTS, leaves=False)
    peer = PeerBursts(Bursts(), BOB)
    with pytest.raises(OSError, match="the other side do not leave") as caught:
        await exchange_predictions(context_of(peer, stuck), BLOCK, "tcp", 512)
    assert caught.value.errno == errno.ENETUNREACH
    # Where few ports are enough it is tried all the same.
    await exchange_predictions(context_of(peer, stuck), replace(KNOWN, host=OURS), "tcp", 512)


async def test_ports_of_ours_that_another_dial_has_are_left_out() -> None:
    async with trio.open_nursery() as nursery, hold_datagram_ports((), nursery) as held:
        number = held.port.number_of(held.fresh(1)[0])
        free = open_udp_port(ipv6=False)
        free.close()
        again = held.again((number, free.number))
        assert list(again) == [free.number]
        assert held.port.number_of(again[free.number]) == free.number
        nursery.cancel_scope.cancel()


async def test_the_packet_of_a_look_leaves_in_its_midst(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a socket of its own: the last one is the spare, which no NAT has seen."""
    sent: list[int] = []

    def send(port: UdpPort, out: Outgoing) -> bool:
        sent.append(port.number_of(out.base))
        return True

    async def ask(port: UdpPort, server: Endpoint, *, rto: float, base: int) -> Endpoint:
        sent.append(0)
        return Endpoint(OURS, 7000 + base)

    monkeypatch.setattr(UdpPort, "send", send)
    monkeypatch.setattr(UdpPort, "ask", ask)
    servers = (Endpoint("192.0.2.1", 3478),)
    for _ in range(20):  # tasks run in any order
        sent.clear()
        async with trio.open_nursery() as nursery:
            async with hold_datagram_ports(servers, nursery, towards=THEIRS) as held:
                knocks = [(number, port) for number, port in enumerate(sent) if port]
                assert [number for number, _ in knocks] == [FIRST_SAMPLES // 2]
                assert held.spare != knocks[0][1]
                assert held.between is not None
                assert {item.local_port for item in held.observations} >= {*held.between}
            nursery.cancel_scope.cancel()
