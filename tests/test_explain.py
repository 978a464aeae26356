"""Why a dial found no path, in words and as a picture."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from ntcpsock._report import Report
from ntcpsock._traversal.explain import explain, note_sides
from ntcpsock._traversal.punch.message import Candidate, NATProfile
from ntcpsock.cli.explanation import explanation
from ntcpsock.cli.report_svg import report_diagram

SVG = "{http://www.w3.org/2000/svg}"
STABLE = NATProfile(True, "endpoint-independent", "address-dependent", "reset")
CHANGING = NATProfile(True, "endpoint-dependent")
PUBLIC = NATProfile(False, "endpoint-independent")
UNKNOWN = NATProfile()
HERE = (Candidate("host", "tcp", "10.1.0.10", 20001), Candidate("srflx", "tcp", "192.0.2.1", 20001))
THERE = (Candidate("host", "tcp", "10.2.0.10", 20002), Candidate("srflx", "tcp", "198.51.100.1", 4000))


def report(
    local: NATProfile, remote: NATProfile, *, seen: bool = True, predicted: str = "", **more: Any
) -> Report:
    made = Report("bob:7000", "dialer", **more)
    note_sides(made, (local, HERE if seen else HERE[:1]), (remote, THERE))
    made.end(made.begin("broker", 0.0), 0.1, "ok")
    made.end(made.begin("punch", 0.1), 8.1, "no direct path to bob.ntcp: 2 attempts failed")
    entry = made.attempt("tcp-open", ("0.0.0.0", 20001), ("198.51.100.1", 4000), 0.1)
    made.end(entry, 8.1, "tcp-open 198.51.100.1:4000: no answer")
    entry.tries = 1
    if predicted:
        entry = made.attempt("tcp-predict", ("0.0.0.0", 20001), ("198.51.100.1", 0), 0.1)
        entry.notes = {"ours": "port 20001", "theirs": "anywhere from 1024 to 65535"}
        made.end(entry, 0.5, predicted)
    return made


TOO_MANY = "[Errno 113] both NATs choose among too many ports for any to be foreseen"
MISSED = "[Errno 110] none of 16 sessions met one of the other side's"


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (
            report(CHANGING, CHANGING, predicted=TOO_MANY),
            "Both NATs give every connection another port (symmetric), out of too many for any to be foreseen.",
        ),
        (
            report(CHANGING, STABLE, predicted=MISSED),
            "The NAT of this side gives every connection another port (symmetric), "
            "and none of the foreseen ones was met.",
        ),
        (
            report(STABLE, CHANGING),
            "The NAT of the other side gives every connection another port (symmetric).",
        ),
        (report(STABLE, PUBLIC), "Neither NAT let a connection through."),
        (
            report(UNKNOWN, STABLE, seen=False),
            "No STUN server answered this side over TCP, so nobody knows where it can be reached.",
        ),
        (Report("bob:7000", "dialer"), "Neither NAT let a connection through."),
    ],
)
def test_cause(made: Report, cause: str) -> None:
    assert explain(made).cause == cause


def test_a_side_of_which_nobody_is_told_an_address() -> None:
    made = report(STABLE, STABLE)
    note_sides(made, (STABLE, HERE), (UNKNOWN, ()))
    assert explain(made).cause == "Nobody is told an address of the other side, so only a relay can reach it."


def test_what_was_refused() -> None:
    made = report(STABLE, STABLE)
    made.end(
        made.attempt("tcp-open", None, ("198.51.100.1", 4000), 0.0), 1.0, "Connection refused (4 attempts)"
    )
    assert explain(made).cause.startswith("What came from outside was refused")


def test_advice_is_the_one_change_that_would_help() -> None:
    assert explain(report(STABLE, CHANGING)).advice.startswith("Give either side a public address")
    assert "STUN port" in explain(report(UNKNOWN, STABLE, seen=False)).advice


def failed() -> dict[str, Any]:
    made = report(CHANGING, STABLE, predicted=TOO_MANY)
    why = explain(made)
    made.cause, made.advice = why.cause, why.advice
    return made.to_dict()


def test_words() -> None:
    assert explanation(failed()).splitlines() == [
        "connect to bob:7000",
        "  this side   NAT with endpoint-dependent mapping",
        "              own 10.1.0.10:20001; seen from outside as 192.0.2.1:20001",
        "  other side  NAT with endpoint-independent mapping, address-dependent filtering, reset to a stray SYN",
        "              own 10.2.0.10:20002; seen from outside as 198.51.100.1:4000",
        "stages",
        "       0.0    100.0  broker: ok",
        "     100.0   8100.0  punch: failed",
        "attempts",
        "     100.0   8100.0  tcp-open: no answer",
        "                      1 SYN sent from port 20001 to 198.51.100.1:4000",
        "     100.0    500.0  tcp-predict: both NATs choose among too many ports for any to be foreseen",
        "                      no SYNs sent from port 20001 to 198.51.100.1, ports as foreseen",
        "                      ours: port 20001",
        "                      theirs: anywhere from 1024 to 65535",
        "probable cause: The NAT of this side gives every connection another port (symmetric), "
        "out of too many for any to be foreseen.",
        "what would help: Give either side a public address or a forwarded port, "
        "or switch PCP, NAT-PMP or UPnP on in its router.",
    ]


def test_words_of_a_success() -> None:
    made = Report("bob:7000", "dialer", seconds=0.26)
    note_sides(made, (PUBLIC, HERE), (UNKNOWN, ()))
    came_in = made.attempt("public", ("10.1.0.10", 20001), ("198.51.100.1", 4000), 0.1)
    made.end(came_in, 0.26, "ok")
    made.attempt("tcp-open", None, None, 0.1)
    text = explanation(made.to_dict())
    assert "this side   no NAT: its own address is seen from outside" in text
    assert "other side  no STUN server told anything of its NAT" in text
    assert "own nothing; seen from outside as nothing" in text
    assert "public: connected, and proved its key" in text
    assert "came in from 198.51.100.1:4000 to 10.1.0.10:20001" in text
    assert "100.0      ...  tcp-open: running" in text
    assert "cause" not in text


def drawn(made: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The texts, and the colours of the bars."""
    root = ElementTree.fromstring(report_diagram(made))
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    return [text.text or "" for text in root.iter(f"{SVG}text")], [bar.get("fill", "") for bar in bars]


def test_picture() -> None:
    texts, bars = drawn(failed())
    assert len(bars) == 4
    assert {"broker", "punch", "tcp-open → 198.51.100.1:4000", "no answer", "failed"} <= set(texts)
    assert "theirs: anywhere from 1024 to 65535" in texts
    assert any(text.startswith("Give either side a public address or a forwarded port") for text in texts)
    assert len(set(bars)) == 2  # what went well, and what did not


def test_picture_of_many_attempts_is_bounded() -> None:
    made = Report("bob:7000", "dialer")
    for number in range(200):
        made.attempt("tcp-open", None, ("198.51.100.1", 4000 + number), number / 100)
    texts, bars = drawn(made.to_dict())
    assert len(bars) == 60
    assert "and 140 more attempts" in texts


def test_picture_of_next_to_nothing() -> None:
    texts, bars = drawn(Report("bob:7000", "dialer").to_dict())
    assert bars == []
    assert "connect to bob:7000" in texts
