"""How commands tell that a connection has moved: each move once, in words and in fields, and in the report of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from session_support import memory_streams

from ntcpsock import NTCPSocket, _report
from ntcpsock._report import Move, PathInfo, Report
from ntcpsock._session.machine import WINDOW
from ntcpsock._session.stream import NTCPStream
from ntcpsock.cli.moves import telling_moves
from ntcpsock.cli.output import Output, moved_fields, moved_text
from ntcpsock.cli.run_report import install_report
from ntcpsock.cli.traffic import Traffic

PATH = PathInfo("tcp", "tcp-open", ("10.0.0.2", 1), ("192.0.2.7", 2), 0.1)


def make(number: int) -> Move:
    return Move(float(number), PATH, f"reason {number}", 0.25)


def move(stream: NTCPStream, *numbers: int) -> None:
    """As those who move streams do it."""
    for number in numbers:
        stream.report.moved(make(number))
        stream._tell_moved()


async def test_each_move_is_told_once() -> None:
    stream, other = memory_streams()
    stream.driver.machine.window = WINDOW  # it may move
    told: list[str] = []
    move(stream, 1)  # before: `connected` has told that path
    async with telling_moves(stream, lambda move: told.append(move.reason)):
        await trio.testing.wait_all_tasks_blocked()
        move(stream, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["reason 2"]
        move(stream, 3, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["reason 2", "reason 3", "reason 4"]
        move(stream, *range(5, 5 + 2 * Move.MOST))  # more than a report keeps
        await trio.testing.wait_all_tasks_blocked()
        assert told[-1] == stream.report.moves[-1].reason
        assert len(told) == len(set(told)) == 3 + Move.MOST
        stream.give_up(TimeoutError("gone"))
        await trio.testing.wait_all_tasks_blocked()
    move(stream, 1000)
    assert "reason 1000" not in told
    async with telling_moves(None, lambda move: told.clear()):
        assert told
    await other.aclose()


def test_words_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    text = moved_text(make(1))
    assert text == "moved to another path, tcp, tcp-open, after 0.2 s without a path: reason 1"
    assert "without" not in moved_text(Move(1.0, PATH, "a direct path"))
    fields = moved_fields(make(1))
    assert fields["local"] == ["10.0.0.2", 1]
    assert (fields["reason"], fields["pause"], fields["at"]) == ("reason 1", 0.25, 1.0)


async def test_a_service_says_whose_move_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for output in (Output(json=True), Output(verbose=True), Output()):
        traffic = Traffic(output)
        connection = traffic.begin("somebody")
        traffic.moved(connection, make(1))
        assert connection.kind == "tcp"
    as_json, as_text = capsys.readouterr().err.splitlines()
    event = json.loads(as_json)
    assert (event["event"], event["connection"], event["technique"]) == ("moved", 1, "tcp-open")
    assert as_text == f"ntcp: 1: {moved_text(make(1))}"


def test_the_report_of_a_run_has_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NTCPSocket, "report", NTCPSocket.report)
    monkeypatch.setattr(_report, "move_observers", [])
    monkeypatch.setattr("ntcpsock.cli.run_report.move_observers", _report.move_observers)
    install_report(str(tmp_path / "report.jsonl"))
    Report("alice:8000", "dialer").moved(make(1))
    (line,) = (tmp_path / "report.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert (event["event"], event["role"], event["target"]) == ("moved", "dialer", "alice:8000")
    assert event["remote"] == ["192.0.2.7", 2]
    assert event["pid"]
