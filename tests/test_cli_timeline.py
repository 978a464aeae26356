"""The picture of a report, and the words of errors."""

from __future__ import annotations

import errno
import io
import json
import pickle
from typing import Any

import pytest
from rich.console import Console

from ntcpsock._errors import NameNotFound, TraversalFailed
from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock.cli.output import Output, connected_fields, connected_text, describe, error_event, only_cause
from ntcpsock.cli.timeline import axis, bar, timeline


def report() -> Report:
    made = Report("alice:8000", "dialer", started=100.0)
    made.end(made.begin("resolve", 100.0), 100.05, "ok")
    made.end(made.begin("punch", 100.05), 100.25, "no direct path to alice.ntcp: 2 attempts failed")
    lan = made.attempt("lan", None, ("10.0.0.5", 7000), 100.05)
    made.end(lan, 100.15, "lan 10.0.0.5:7000: no answer")
    lan.tries = 3
    made.attempt("tcp-open", ("10.1.0.1", 4000), ("2001:db8::1", 7000), 100.05)
    made.advice = "open a port"
    return made


def draw(width: int) -> str:
    return drawn(report().to_dict(), width)


def drawn(made: dict[str, Any], width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(timeline(made, title="what happened"))
    return file.getvalue()


def test_bars() -> None:
    assert bar(0, 10, 10, 4) == "████"
    assert bar(0, 5, 10, 4) == "██"
    assert bar(5, 10, 10, 4) == "  ██"
    assert bar(2.5, 7.5, 10, 4) == " ██"
    assert bar(0, 1.25, 10, 4) == "▌"
    assert bar(0, 0, 10, 4) == "▏"
    assert bar(10, 10, 10, 4) != ""
    assert bar(0, 0, 0, 4) != ""


@pytest.mark.parametrize("total", [0.0001, 0.003, 0.26, 1.0, 8.0, 500.0])
@pytest.mark.parametrize("width", [16, 44, 64])
def test_axis_marks_fit_and_are_apart(total: float, width: int) -> None:
    text = axis(total, width)
    assert len(text) <= width
    marks = [float(word) for word in text.split()]
    assert marks[0] == 0
    assert marks == sorted(set(marks))
    assert len(marks) >= (3 if width > 40 else 1)


@pytest.mark.parametrize("width", [70, 80, 100, 200])
def test_picture(width: int) -> None:
    lines = draw(width).splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "resolve" in text
    assert "lan 10.0.0.5:7000 x3" in text
    assert "tcp-open [2001:db8::1]:7000" in text
    assert "failed" in text
    assert "no direct path" not in text  # it stands above the picture
    assert "running" in text
    assert "█" in text


def test_picture_of_json_is_the_same() -> None:
    made = report().to_dict()
    assert drawn(json.loads(json.dumps(made)), 90) == draw(90)


def test_error_with_report(capsys: pytest.CaptureFixture[str]) -> None:
    error = TraversalFailed("no direct path to alice.ntcp: 2 attempts failed", report=report())
    Output().error(error)
    text = capsys.readouterr().err
    assert text == (
        "ntcp: no direct path to alice.ntcp: 2 attempts failed (TraversalFailed)\n"
        "  failed at: punch\n"
        "  advice: open a port\n"
    )
    Output(verbose=True).error(error)
    assert "lan ? -> 10.0.0.5:7000: lan 10.0.0.5:7000: no answer" in capsys.readouterr().err
    Output(json=True).error(error)
    event = json.loads(capsys.readouterr().err)
    assert event["type"] == "TraversalFailed"
    assert event["errno"] == errno.EHOSTUNREACH
    assert event["errno_name"] == "EHOSTUNREACH"
    assert event["stage"] == "punch"
    assert event["advice"] == "open a port"
    assert event["report"]["attempts"][0]["tries"] == 3


def test_events(capsys: pytest.CaptureFixture[str]) -> None:
    peer = PeerInfo("alice", "a" * 52, 8000)
    path = PathInfo("tcp", "tcp-open", ("10.0.0.1", 1), ("192.0.2.1", 2), 0.1)
    fields = connected_fields(0.25, peer, path, report())
    assert fields["peer"]["name"] == "alice"
    text = connected_text(0.25, peer, path)
    assert text == "connected with alice:8000 in 250 ms, tcp path, tcp-open"
    Output().event("connected", text, **fields)
    assert capsys.readouterr().err == ""
    Output(verbose=True).event("connected", text, **fields)
    assert capsys.readouterr().err == f"ntcp: {text}\n"
    Output(json=True).event("connected", text, **fields)
    assert json.loads(capsys.readouterr().err) == json.loads(json.dumps({"event": "connected"} | fields))


def test_words_for_errors() -> None:
    assert describe(NameNotFound("nobody is called bob.ntcp")) == "nobody is called bob.ntcp (NameNotFound)"
    assert (
        describe(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        == "Connection reset by peer"
    )
    assert describe(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) == (
        "x: No such file or directory"
    )
    assert describe(OSError()) == "OSError"
    assert error_event(OSError(errno.EPIPE, "Broken pipe"))["report"] is None
    assert pickle.loads(pickle.dumps(NameNotFound("gone"))).errno == NameNotFound("gone").errno


def test_only_cause() -> None:
    wanted = NameNotFound("x")
    assert only_cause(ExceptionGroup("", [ExceptionGroup("", [OSError(), wanted])])) is wanted
    assert isinstance(only_cause(BaseExceptionGroup("", [KeyboardInterrupt()])), KeyboardInterrupt)
    plain = ValueError()
    assert only_cause(plain) is plain
