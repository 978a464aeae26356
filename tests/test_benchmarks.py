"""The harness of the benchmarks, and each benchmark once, small."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import encryption_off, harness, memory, patched, pingpong, quic, quic_ends, soak, throughput
from benchmarks.pairs import KINDS, open_pairs, open_three_hops
from ntcpsock import _portal
from ntcpsock.cli.stage import open_loopback_stage
from ntcpsock.testing.natlab import namespaces_available


def test_cases_alternate_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    numbers = iter(range(100))

    def case(name: str) -> float:
        order.append(name)
        return float(next(numbers))

    first, second = harness.alternate({"a": lambda: case("a"), "b": lambda: case("b")}, 3, "s")
    assert order == ["a", "b"] * 4
    assert first.values == (2.0, 4.0, 6.0)
    assert (second.name, second.unit, second.median) == ("b", "s", 5.0)


def test_table_and_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    series = [harness.Series("one", "ms", (1.0, 2.0, 4.0)), harness.Series("none", "ms", (), failures=2)]
    harness.show("title", series, relative_to="one")
    shown = capsys.readouterr().out
    assert "title" in shown
    assert "2 failed" in shown
    document = json.loads(harness.save("name", series).read_text())
    assert document["benchmark"] == "name"
    assert document["series"][0]["median"] == 2.0
    assert document["series"][1]["median"] is None


def test_pairs_carry_both_benchmarks(tmp_path: Path) -> None:
    with open_pairs() as pairs:
        assert tuple(pairs) == KINDS
        for connection in pairs.values():
            assert throughput.measure(connection, 3_000_000) > 0
            assert pingpong.measure(connection, 10) > 0


def test_three_hops_are_a_way_to_the_peer() -> None:
    with ExitStack() as stack:
        connection = open_three_hops(stack)
        assert pingpong.measure(connection, 10) > 0


def test_the_core_of_quic_is_measured_alone() -> None:
    assert quic.in_memory(2_000_000) > 0


@pytest.mark.slow
def test_streams_over_quic_are_measured_beside_tcp() -> None:
    receive = partial(quic_ends.quic_receive, seconds=0.2, size=quic.DATAGRAM)
    assert quic.over_loopback(receive, quic_ends.quic_send, quic.DATAGRAM) > 0
    receive = partial(quic_ends.tcp_receive, seconds=0.1)
    assert quic.over_loopback(receive, quic_ends.tcp_send, "reno") > 0


def test_patched_sockets_are_measured_beside_plain_ones() -> None:
    plain, patched_kind = patched.kinds().values()
    assert plain is not patched_kind
    for kind in (plain, patched_kind):
        assert patched.connect_and_accept(kind, 3) > 0
        assert patched.send_and_receive(kind, 3) > 0


def test_a_connection_takes_little_memory() -> None:
    """The bar is 40 KiB with a thousand of them over TCP; with fewer, what is shared counts for more."""
    series = memory.measure(100)
    assert [entry.name for entry in series] == [
        f"{side} process, {way}" for way in ("TCP", "UDP") for side in ("dialling", "listening")
    ]
    for entry, most in zip(series, (80, 80, 110, 110), strict=True):
        assert 0 < entry.median < most


def test_connections_without_encryption_are_measured_beside_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _portal.stop()
    for variable in ("NTCP_BROKER", "NTCP_STATE", "NTCP_ENCRYPTION"):
        monkeypatch.setenv(variable, "")
    with open_loopback_stage() as stage:
        encryption_off.enter(stage)
        with encryption_off.open_pairs(stage) as pairs:
            assert tuple(pairs) == encryption_off.KINDS
            for connection in pairs.values():
                assert throughput.measure(connection, 3_000_000) > 0
                assert pingpong.measure(connection, 10) > 0
        series = encryption_off.measure_memory(stage, 20)
        assert len(series) == 4
        _portal.stop()


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available()))
def test_connect_time_keeps_its_promise() -> None:
    from benchmarks.connect_time import PRIVATE, measure

    series = measure("open", "default")
    assert series.failures == 0
    assert series.median <= 2.8
    series = measure("private", "default", PRIVATE)
    assert series.failures == 0
    assert series.median <= 3.3


def told(memory: list[float], descriptors: int = 40) -> list[dict[str, object]]:
    """Lines of an end of the soak."""
    return [
        {"ended": [], "wrong": 0, "descriptors": descriptors, "tasks": 100, "memory": value}
        for value in memory
    ]


HOUR = 720  # lines
MB = 1e6


def breathing(seed: int) -> list[float]:
    """The memory of an hour in which nothing leaks."""
    chance = random.Random(seed)
    return [70 * MB + chance.choice([0, 0, 0, 1, 5]) * chance.random() * MB for _ in range(HOUR)]


@pytest.mark.parametrize("at", range(0, HOUR, 48))
def test_a_soak_lets_a_step_pass(at: int) -> None:
    """What a library takes once, or an allocator keeps of a crowded moment, is no leak, whenever it comes."""
    for seed in range(5):
        memory = [value + 20 * MB * (number >= at) for number, value in enumerate(breathing(seed))]
        assert soak.judge("end", told(memory)) == []
        memory = [value + 8 * MB * (number >= HOUR - at) for number, value in enumerate(memory)]
        assert soak.leaks("end", memory) == []


@pytest.mark.parametrize("step_at", [HOUR, 100, 300, 600])
def test_a_soak_complains_of_a_leak(step_at: int) -> None:
    """Of 6 MB an hour, a step beside it or not: no end of the run is half as large again as its beginning."""
    for seed in range(5):
        memory = [
            value + 6 * MB * number / HOUR + 20 * MB * (number >= step_at)
            for number, value in enumerate(breathing(seed))
        ]
        (complaint,) = [each for each in soak.judge("end", told(memory)) if "all the time" in each]
        assert complaint.startswith("end: memory")


def test_a_soak_complains_of_what_is_wrong() -> None:
    lines = told([70 * MB] * 100)
    assert soak.judge("end", lines + told([100 * MB] * 100)) == [
        "end: memory grew from 70000000.0 to 100000000.0"
    ]
    few = told([70 * MB], descriptors=20)  # all connections between two carriers
    assert soak.judge("end", lines[:30] + few + lines) == []
    (complaint,) = soak.judge("end", lines + told([70 * MB] * 100, descriptors=80))
    assert "descriptors" in complaint
    lines[-1] |= {"wrong": 2, "ended": ["a reset"]}
    assert soak.judge("end", lines) == ["end: a reset", "end: 2 blocks came back changed"]


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available()))
def test_a_short_soak_has_no_complaint() -> None:
    assert soak.run(0.5, seed=3, connections=4) == []


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available()))
def test_a_fault_in_a_transfer_is_measured() -> None:
    from benchmarks.moves_lab import complaints, run_once, show

    run = run_once("dialler's address changed", 80)
    assert run.intact
    assert not run.complaint
    assert run.moves
    show([run])
    assert complaints([replace(run, intact=False), replace(run, pause=99.0)])
