"""The data and the picture of `ntcp lab matrix`."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock.cli.matrix import (
    Cell,
    Matrix,
    MatrixFileError,
    PairResult,
    Settings,
    Try,
    from_json,
    percentile,
    resume,
    save,
    to_json,
    try_from_event,
)
from ntcpsock.cli.matrix_run import PairBroken, PairRunner
from ntcpsock.cli.matrix_svg import heat_maps
from ntcpsock.cli.matrix_topologies import TOPOLOGIES, topology_cells
from ntcpsock.testing.natlab import Way

SVG = "{http://www.w3.org/2000/svg}"
OPEN = Try(True, 0.26, 2.6, "tcp-open", True)
FOUND = Try(True, 0.7, 7.0, "tcp-predict", True)
FAILED = Try(False, 8.1, 81.0, message="no direct path to b.ntcp")


def matrix() -> Matrix:
    """Pairs of all sorts; one is below expectation, one is not done yet."""
    made = Matrix(Settings(tries=2), ("default", "symmetric", "mobile"))
    made.add(PairResult("default", "default", (OPEN, OPEN)))
    made.add(PairResult("default", "symmetric", (FOUND, FAILED)))
    made.add(PairResult("default", "mobile", (FOUND, FAILED)))
    made.add(PairResult("symmetric", "symmetric", (FOUND, FOUND)))
    made.add(PairResult("mobile", "mobile", (FAILED, FAILED)))
    return made


def test_a_pair_that_misses_is_found() -> None:
    made = matrix()
    assert [(pair.nat_a, pair.nat_b) for pair in made.below_expectation] == [("default", "symmetric")]


def test_figures() -> None:
    assert matrix().summary() == {
        "pairs": 5,
        "pairs_connected": 4,
        "pairs_expected": 3,
        "pairs_below_expectation": 1,
        "tries_expected": 6,
        "share_expected": 0.8333,
        "share_unpredicted": 1.0,
        "share_direct": 1.0,
        "share_direct_expected": None,
        "first_attempt": 1.0,
        "median_rtts": 2.6,
        "p95_rtts": 2.6,
    }


def test_figures_of_nothing() -> None:
    figures = Matrix(Settings(), ("default",)).summary()
    assert figures["share_expected"] is None
    assert figures["median_rtts"] is None


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=300))
def test_percentile(values: list[float]) -> None:
    ordered = sorted(values)
    found = percentile(ordered, 0.95)
    assert sum(1 for value in ordered if value <= found) >= 0.95 * len(ordered)
    assert sum(1 for value in ordered if value < found) < 0.95 * len(ordered)


def test_json_keeps_everything() -> None:
    text = to_json(matrix())
    assert from_json(text) == matrix()
    assert to_json(from_json(text)) == text
    data = json.loads(text)
    assert set(data) == {"format", "settings", "kinds", "summary", "pairs", "topologies"}
    pair = next(pair for pair in data["pairs"] if (pair["nat_a"], pair["nat_b"]) == ("default", "symmetric"))
    assert pair["connected"] == 1
    assert pair["expected"] == "each side that changes its ports does so foreseeably"
    assert pair["tries"][1] == {
        "connected": False,
        "seconds": 8.1,
        "rtts": 81.0,
        "technique": None,
        "first_attempt": False,
        "message": "no direct path to b.ntcp",
    }
    # A line for each pair: two runs can be compared.
    assert sum(line.startswith('{"nat_a"') for line in text.splitlines()) == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "settings": {"speed": 1}}'])
def test_what_is_no_matrix(text: str) -> None:
    with pytest.raises(MatrixFileError):
        from_json(text)


def test_a_router_that_maps_is_to_be_reached() -> None:
    made = Matrix(Settings(tries=1, port_mapping=True), ("mobile",))
    pair = PairResult("mobile", "mobile", (replace(FOUND, maps="a"), replace(FAILED, maps="b")))
    made.add(pair)
    assert made.below_expectation == [pair]
    text = to_json(made)
    assert from_json(text) == made
    assert [entry["maps"] for entry in json.loads(text)["pairs"][0]["tries"]] == ["a", "b"]
    assert "half with the dialer's router mapping ports" in heat_maps(made)


def test_with_a_relay_every_try_has_to_connect() -> None:
    relayed = Try(True, 1.2, 12.0, "relay", True)
    missed = Matrix(Settings(tries=50, everything=True), ("mobile", "only-443"))
    missed.add(PairResult("mobile", "only-443", (relayed,) * 49 + (FAILED,), everything=True))
    missed.add(PairResult("mobile", "mobile", (relayed, FOUND), everything=True))
    assert [pair.nat_b for pair in missed.below_expectation] == ["only-443"]
    assert missed.summary()["share_direct"] == round(1 / 51, 4)
    assert from_json(to_json(missed)) == missed
    assert "relay" in heat_maps(missed)


def test_a_direct_path_that_is_possible_is_not_to_be_missed() -> None:
    """A relay connects every pair, so this is what an engine can be bad at."""
    relayed = Try(True, 1.5, 15.0, "relay", True)
    made = Matrix(Settings(everything=True), ("default", "cisco", "mobile"))
    for nat_a, nat_b, tries in (
        ("default", "default", (OPEN,) * 4 + (relayed,)),
        ("default", "cisco", (FOUND,) * 4 + (FAILED,)),
        ("cisco", "cisco", (relayed,) * 4 + (FOUND,)),  # its ports are foreseeable over UDP
        ("mobile", "mobile", (relayed,) * 5),
    ):
        made.add(PairResult(nat_a, nat_b, tries, everything=True))
    assert [str(cell.cell) for cell in made.below_expectation] == ["default → cisco", "cisco → cisco"]
    assert made.summary()["share_direct_expected"] == round(9 / 14, 4)
    assert (
        "cisco → cisco: 5 of 5 by relay, median 15.00 path RTT. A direct path is to be expected"
        in heat_maps(made)
    )


class TestOtherNetworks:
    """What is more than a router for each host: a strip below the square."""

    def test_they_are_cells_of_their_own(self, tmp_path: Path) -> None:
        made = Matrix(Settings(tries=1, everything=True), ("default", "mobile"))
        lan = Try(True, 0.07, 0.7, "lan", True)
        relayed = Try(True, 1.5, 15.0, "relay", True)
        made.add(PairResult("mobile", "mobile", (relayed,), everything=True))
        made.add(PairResult("mobile", "mobile", (lan,), everything=True, topology="same-nat"))
        made.add(PairResult("default", "default", (relayed,), everything=True, topology="ipv6-firewall"))
        assert len(made.pairs) == 1
        assert [str(cell.cell) for cell in made.topologies] == ["same-nat, mobile", "ipv6-firewall, default"]
        assert [str(cell.cell) for cell in made.below_expectation] == ["ipv6-firewall, default"]
        assert from_json(to_json(made)) == made
        save(made, tmp_path / "matrix.json")
        assert resume(tmp_path / "matrix.json", made.settings, made.kinds) == made
        with pytest.raises(MatrixFileError, match="same-moon"):
            from_json(to_json(made).replace("same-nat", "same-moon"))

    def test_they_stand_below_the_square(self) -> None:
        made = Matrix(Settings(tries=1, everything=True), ("default", "mobile"))
        lan = Try(True, 0.07, 0.7, "lan", True)
        for kind in made.kinds:
            made.add(PairResult(kind, kind, (lan,), everything=True))
        made.add(PairResult("mobile", "mobile", (lan,), everything=True, topology="same-nat"))
        root = ElementTree.fromstring(heat_maps(made))
        cells = {
            rect.findtext(f"{SVG}title", "").partition(":")[0]: rect
            for rect in root.iter(f"{SVG}rect")
            if rect.find(f"{SVG}title") is not None
        }
        below, above = cells["same-nat, mobile"], cells["mobile → mobile"]
        assert below.get("x") == above.get("x")
        assert float(below.get("y", 0)) > float(above.get("y", 0))
        assert [text.text for text in root.iter(f"{SVG}text")].count("same-nat") == 3
        assert "both hosts behind it" in below.findtext(f"{SVG}title", "")

    def test_they_may_stand_alone(self) -> None:
        made = Matrix(Settings(tries=1, everything=True), ("mobile",))
        made.add(PairResult("mobile", "mobile", (FAILED,), everything=True, topology="same-nat"))
        assert "less than can be expected" in heat_maps(made)

    @pytest.mark.parametrize(
        ("topology", "kind", "way"),
        [
            ("same-nat", "mobile", Way.NEIGHBOURS),
            ("same-nat", "proxy-only", Way.NEIGHBOURS),
            ("same-carrier", "cgn", Way.NEIGHBOURS),
            ("same-carrier", "default", None),  # no hairpin
            ("same-carrier", "mobile", None),
            ("two-carriers", "cgn", Way.STABLE),  # the home routers let nobody in
            ("two-carriers", "symmetric", Way.PREDICTABLE),
            ("two-carriers", "cisco", Way.PREDICTABLE),  # over UDP
            ("two-carriers", "mobile", None),
            ("one-carrier", "full-cone", Way.STABLE),
            ("one-carrier", "only-443", None),
            ("equal-lans", "default", Way.STABLE),
            ("second-uplink", "mobile", Way.STABLE),
            ("second-uplink", "only-443", None),
            ("ipv6-reject", "fully-random", Way.IPV6),
            ("ipv6-one-side", "fully-random", None),
        ],
    )
    def test_what_can_be_expected_of_them(self, topology: str, kind: str, way: Way | None) -> None:
        assert TOPOLOGIES[topology].direct(kind) is way

    def test_a_carrier_translates(self) -> None:
        cells = topology_cells(tuple(TOPOLOGIES), ("firewall", "default"))
        assert {name for name, kind in cells if kind == "default"} == set(TOPOLOGIES)
        assert {name for name, kind in cells if kind == "firewall"} == {
            name for name in TOPOLOGIES if "carrier" not in name
        }

    def test_they_are_run_as_what_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []
        real = subprocess.Popen

        def popen(argv: list[str], **more: Any) -> subprocess.Popen[str]:
            asked.append(argv)
            return real(["echo", json.dumps(event())], **more)

        monkeypatch.setattr("ntcpsock.cli.matrix_run.subprocess.Popen", popen)
        found: list[PairResult] = []
        runner = PairRunner(Settings(tries=1, everything=True), 1)
        runner.run([Cell("cgn", "cgn", "same-carrier")], found.append)
        words = " ".join(asked[0])
        assert "--nat-a default --nat-b default --cgn-a cgn --same-cgn" in words
        assert found[0].topology == "same-carrier"


def test_resume(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    fresh = resume(file, Settings(), ("default",))
    assert (fresh.cells, fresh.kinds) == ({}, ("default",))
    save(matrix(), file)
    assert list(tmp_path.iterdir()) == [file]
    found = resume(file, Settings(tries=2), ("cgn", "default"))
    assert found.cells == matrix().cells
    # Kinds of the usual matrix stay in its order, others come after what the file has.
    assert found.kinds == ("cgn", "default", "symmetric", "mobile")
    assert resume(file, Settings(tries=2), ("apdm+rst", "cgn")).kinds == (
        "default", "symmetric", "mobile", "apdm+rst", "cgn"
    )  # fmt: skip
    with pytest.raises(MatrixFileError, match="tries=2"):
        resume(file, Settings(tries=5), ("default",))


def event(**attempts: Any) -> dict[str, Any]:
    entry = {"technique": "tcp-open", "started": 0.05, "ended": 0.26, "outcome": "ok", "tries": 1}
    return {
        "event": "connected",
        "seconds": 0.26,
        "technique": "tcp-open",
        "report": {"attempts": [{**entry, **attempts}]},
    }


def test_tries_of_events() -> None:
    assert try_from_event(event(), 0.1) == Try(True, 0.26, 2.6, "tcp-open", True)
    assert try_from_event(event(), 0.0).rtts is None
    assert not try_from_event(event(tries=3), 0.1).first_attempt
    late = event()
    failed = {"technique": "tcp-open", "started": 0.0, "ended": 0.04, "outcome": "no answer", "tries": 1}
    late["report"]["attempts"].insert(0, failed)
    assert not try_from_event(late, 0.1).first_attempt
    error = {"event": "error", "seconds": 8.0, "message": "no direct path", "report": None}
    assert try_from_event(error, 0.1) == Try(False, 8.0, 80.0, message="no direct path")


def test_heat_maps_have_every_pair_and_label() -> None:
    root = ElementTree.fromstring(heat_maps(matrix()))
    cells = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    titles = [rect.findtext(f"{SVG}title") for rect in cells]
    assert len(titles) == 3 * 5  # three maps
    assert titles.count("default → default: 2 of 2 by tcp-open, median 2.60 path RTT. To be expected: "
                        "both mappings are endpoint-independent.") == 3  # fmt: skip
    assert titles.count("mobile → mobile: 0 of 2. No direct path can be expected.") == 3
    texts = [text.text for text in root.iter(f"{SVG}text")]
    for kind in matrix().kinds:
        assert texts.count(kind) == 3 * 2  # a row and a column in each
    assert {"2/2", "1/2", "0/2", "2.6", "7.0", "open", "predict"} <= set(texts)
    assert texts.count("less than can be expected") == 3
    outlined = [rect for rect in cells if rect.get("stroke") is not None]
    assert {rect.findtext(f"{SVG}title", "").partition(":")[0] for rect in outlined} == {
        "default → symmetric"
    }


def test_heat_maps_without_a_missed_pair() -> None:
    made = Matrix(Settings(), ("<&>",))
    assert "less than" not in heat_maps(made)
    assert "&lt;&amp;&gt;" in heat_maps(made)


class TestRunner:
    """The pairs' processes are stood in for; tests/test_cli_matrix.py has real ones."""

    def made(
        self,
        monkeypatch: pytest.MonkeyPatch,
        outcome: Any,
        tries: int = 2,
        jobs: int = 2,
        port_mapping: bool = False,
    ) -> PairRunner:
        self.asked: list[tuple[str, str, int, str | None]] = []
        lock = threading.Lock()

        def events(
            _: PairRunner, cell: Cell, count: int, maps: str | None
        ) -> tuple[list[dict[str, Any]], str]:
            with lock:
                self.asked.append((cell.nat_a, cell.nat_b, count, maps))
                return outcome(len(self.asked), count), "it broke"

        monkeypatch.setattr(PairRunner, "_pair_events", events)
        return PairRunner(Settings(tries=tries, port_mapping=port_mapping), jobs)

    def run(self, runner: PairRunner, pairs: Iterable[tuple[str, str]]) -> list[PairResult]:
        found: list[PairResult] = []
        runner.run([Cell(*pair) for pair in pairs], found.append)
        return found

    def test_every_pair_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = self.made(monkeypatch, lambda _, count: [event()] * count)
        pairs = [("default", "default"), ("default", "mobile"), ("mobile", "default")]
        found = self.run(runner, pairs)
        assert sorted((pair.nat_a, pair.nat_b) for pair in found) == sorted(pairs)
        assert all(len(pair.connected) == 2 for pair in found)

    def test_small_blocks_get_a_lab_for_each_try(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = self.made(monkeypatch, lambda _, count: [event()] * count, tries=3)
        (pair,) = self.run(runner, [("cgn-session", "default")])
        assert self.asked == [("cgn-session", "default", 1, None)] * 3
        assert len(pair.tries) == 3

    def test_each_router_maps_in_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = self.made(monkeypatch, lambda _, count: [event()] * count, jobs=1, port_mapping=True)
        both, one = self.run(runner, [("mobile", "default"), ("firewall", "mobile")])
        assert self.asked == [
            ("mobile", "default", 2, "a"),
            ("mobile", "default", 2, "b"),
            ("firewall", "mobile", 2, "b"),  # a firewall maps nothing
        ]
        assert [entry.maps for entry in both.tries] == ["a", "a", "b", "b"]
        assert [entry.maps for entry in one.tries] == ["b", "b"]

    def test_a_broken_lab_gets_another_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = self.made(monkeypatch, lambda number, count: [] if number == 1 else [event()] * count)
        (pair,) = self.run(runner, [("default", "default")])
        assert len(pair.connected) == 2

    def test_a_pair_that_breaks_half_way_has_failed_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = self.made(monkeypatch, lambda *_: [event()])
        (pair,) = self.run(runner, [("default", "default")])
        assert [entry.connected for entry in pair.tries] == [True, False]
        assert pair.tries[1].message == "the pair broke: it broke"

    def test_a_pair_that_never_works_ends_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = self.made(monkeypatch, lambda *_: [])
        with pytest.raises(PairBroken, match="default → mobile: it broke"):
            self.run(runner, [("default", "mobile")])

    def test_what_ends_the_run_ends_its_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[subprocess.Popen[str]] = []
        both = threading.Event()
        lock = threading.Lock()
        real = subprocess.Popen

        def popen(argv: list[str], **more: Any) -> subprocess.Popen[str]:
            with lock:
                process = real(["sleep", "600"] if started else ["echo", json.dumps(event())], **more)
                started.append(process)
                if len(started) == 2:
                    both.set()
            return process

        def done(_: PairResult) -> None:
            assert both.wait(60)
            raise KeyboardInterrupt

        monkeypatch.setattr("ntcpsock.cli.matrix_run.subprocess.Popen", popen)
        with pytest.raises(KeyboardInterrupt):
            PairRunner(Settings(tries=1), 2).run(
                [Cell("default", "default"), Cell("default", "mobile")], done
            )
        assert all(process.poll() is not None for process in started)
