"""The benchmarks of the servers, each once and small."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import broker, harness, stun, websocket_nodes
from benchmarks.fleet import Fleet, open_sockets
from ntcpsock._servers import mmsg

pytestmark = pytest.mark.skipif(not mmsg.AVAILABLE, reason="no recvmmsg here")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)


def test_nodes_register_and_are_introduced() -> None:
    sockets = open_sockets(8)
    try:
        with broker.measured_broker() as server:
            fleet = Fleet(server.address, server.key, sockets)
            broker.grow_alive(fleet, 50, names=True)
            assert server.ask()["nodes"] == len(fleet) == 50
            load = broker.run_load(server, fleet, 100, 100, 1.0)
            # Few enough that none is lost, however slow the machine is.
            assert load.answered == 1
            # Late ones, of nodes that said twice that they are there, may be among them.
            assert fleet.heard.acks >= fleet.sent_keep_alives > 0
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.slow
def test_the_whole_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(broker, "_SPAN", 0.2)
    monkeypatch.setattr(broker, "_SOCKETS", 8)
    monkeypatch.setattr(broker, "KEEP_ALIVE_INTERVAL", 0.5)
    monkeypatch.setattr(broker, "INTRODUCTIONS", 100)
    monkeypatch.setattr(sys, "argv", ["broker", "--nodes", "100"])
    broker.main()
    printed = capsys.readouterr().out
    assert "100 nodes:" in printed
    assert "yardstick:" in printed


def test_the_yardstick_answers_as_often_as_a_broker() -> None:
    with (
        broker.measured_broker(module="benchmarks.bare_broker") as bare,
        closing(Fleet(bare.address, bare.key, open_sockets(8))) as fleet,
    ):
        fleet.invent(50)
        load = broker.run_load(bare, fleet, 100, 100, 1.0)
        assert load.answered == 1
        assert fleet.heard.acks == fleet.sent_keep_alives > 0


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    broker.draw([(1000, 500.0, 5.0, 15.0), (10_000, 510.0, 5.5, 15.5)], tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("processes", [1, 2])
def test_stun_answers_are_counted(processes: int) -> None:
    per_core, per_second = stun.measure(lambda: stun.our_server(processes), 2.0)
    assert per_core > 0
    assert per_second > 0


def test_idle_nodes_over_tcp() -> None:
    assert websocket_nodes.measure(20).values[0] > 0
