"""`ntcp doctor` as a command: what it says, its exit codes, and its errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from ntcpsock._diagnose import _PATIENCE_BEFORE_GUESSING, BROKER_PATIENCE
from ntcpsock._diagnosis import (
    Allocation,
    BrokerState,
    Diagnosis,
    Discovery,
    Finding,
    Prospect,
    Survival,
    TransportFindings,
)
from ntcpsock._traversal.discovery.driver import DISCOVERY_DEADLINE
from ntcpsock.cli.doctor_view import _broker, show_diagnosis
from ntcpsock.cli.stage import NTCP, open_loopback_stage


def doctor(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("NTCP_")}
    return subprocess.run(
        [*NTCP, "doctor", *options],
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_is_over_within_five_seconds() -> None:
    """What it waits for at most: the broker while it asks the NAT, or the NAT after it has guessed."""
    assert _PATIENCE_BEFORE_GUESSING + DISCOVERY_DEADLINE < 4.5
    assert BROKER_PATIENCE < 4.5


def test_over_loopback() -> None:
    with open_loopback_stage() as stage:
        settings = {name: stage.environment("a")[name] for name in ("NTCP_BROKER", "NTCP_STATE")}
        done = doctor("--json", **settings)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["works"]
        assert found["broker"]["reached"]
        assert "key" not in found["broker"]["address"]
        assert found["broker"]["relays"] == 1
        survivals = {one["event"]: one["verdict"] for one in found["survivals"]}
        assert survivals["another address, another network"] == "yes"
        assert survivals["the program at the other end restarts"] == "no"
        assert found["tcp"]["filtering"]["value"] == "unknown"  # the server has one address
        assert found["tcp"]["translated"]["value"] == "no"
        page = doctor(**settings)
        assert page.returncode == 0
        assert page.stdout.startswith("A public address, no NAT")
        assert "open connections survive" in page.stdout
        assert page.stderr == ""


def test_nobody_to_ask(tmp_path: Path) -> None:
    done = doctor(NTCP_STATE=str(tmp_path))
    assert done.returncode == 1
    assert "--broker" in done.stderr
    assert "--stun" in done.stderr
    assert done.stdout == ""


def test_nobody_answers(tmp_path: Path) -> None:
    """A diagnosis, not an error: that is what the command is for."""
    done = doctor("--json", "--broker", "ntcp://127.0.0.1:9", NTCP_STATE=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert not found["works"]
    assert "no answer" in found["broker"]["why"]
    assert found["summary"].startswith("No STUN server is there")
    assert "refused by 127.0.0.1:3478" in found["tcp"]["reachable"]["why"]
    assert found["advice"]


@pytest.mark.parametrize("options", [("--broker", "http://x"), ("--stun", "::")])
def test_mistakes(options: tuple[str, ...], tmp_path: Path) -> None:
    done = doctor(*options, NTCP_STATE=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("ntcp: ")
    assert len(done.stderr.splitlines()) <= 2


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    done = doctor("--stun", "stun.invalid", NTCP_STATE=str(tmp_path))
    assert done.returncode == 1
    assert "stun.invalid" in done.stderr


def test_the_page_shows_unknowns_as_such() -> None:
    """Every word of every finding, on a narrow terminal: nothing may break it, and nothing is left out."""
    console = Console(record=True, width=60, file=io.StringIO())
    for value in ("unknown", "yes", "no", "none", "some-word-of-a-later-version"):
        finding = Finding(value, ("a", "b"), "a reason [with brackets]")
        transport = TransportFindings(
            finding, finding, finding, finding, finding, Allocation(value, why="why"), finding, finding
        )
        discovery = Discovery(transport, transport, finding, finding, finding, finding, finding)
        prospects = (Prospect("somebody", "perhaps", "tcp-predict", "as it is", 512),)
        unknown = (("that thing", "a reason [with brackets]"),)
        survivals = (Survival("an event", "perhaps", "a condition [with brackets]"),)
        show_diagnosis(
            Diagnosis(
                "A headline.",
                discovery,
                BrokerState(),
                True,
                prospects,
                ("Do this [now].",),
                unknown,
                survivals,
            ),
            console,
        )
    text = console.export_text()
    assert text.count("A headline.") == 5
    assert text.count("Do this [now].") == 5
    assert text.count("512") == 5
    assert text.count("an event") == 5
    assert "[with brackets]" in text
    assert "?" in text


@pytest.mark.parametrize(
    ("address", "transport", "text"),
    [
        ("192.0.2.1:6060", "udp", "192.0.2.1:6060 answers, 50 ms"),
        ("192.0.2.1:6060", "tcp", "192.0.2.1:6060 answers over TCP, where UDP does not get through, 50 ms"),
        ("wss://broker.example:443", "tcp", "wss://broker.example:443 answers, 50 ms"),
    ],
)
def test_how_the_broker_was_reached(address: str, transport: str, text: str) -> None:
    """A `wss://` one is met over TCP in any case, so that says nothing about UDP."""
    assert _broker(BrokerState(address, True, "", 0.05, transport)).plain == text
