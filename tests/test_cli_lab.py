"""`ntcp lab pair`: through two real NATs, as people and as programs see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ntcpsock.testing.natlab import lab_namespaces, namespaces_available, parse_kind

LAB = [sys.executable, "-m", "ntcpsock", "lab"]
DEADLINE = 120

needs_lab = [
    pytest.mark.lab,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    return subprocess.run(
        [*LAB, *arguments], env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


class TestInTheLab:
    pytestmark = needs_lab

    def test_picture(self) -> None:
        done = run("pair", "--nat-a", "default", "--nat-b", "reject", "--delay-ms", "5")
        assert done.returncode == 0, done.stderr
        assert "NAT default ══ 5 ms ══ ntcp serve ══ 5 ms ══ NAT reject" in done.stdout
        assert "path RTT" in done.stdout
        assert "tcp path by tcp-open" in done.stdout.replace("\n", " ")
        assert "resolve" in done.stdout
        assert "█" in done.stdout

    def test_exact_kinds(self) -> None:
        done = run("pair", "--nat-a", "linux", "--cgn-a", "cgn", "--nat-b", "eim+eif", "--delay-ms", "5")
        assert done.returncode == 0, done.stderr
        assert "NAT linux behind cgn ══ 5 ms ══ ntcp serve ══ 5 ms ══ NAT eim+eif" in done.stdout
        assert "connected in" in done.stdout

    def test_tries_as_json(self) -> None:
        done = run("pair", "--delay-ms", "5", "--tries", "3", "--json")
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [event["event"] for event in events] == ["connected"] * 3
        assert {event["technique"] for event in events} == {"tcp-open"}
        assert all(0.02 <= event["round_trip"] < 10 for event in events)
        assert len({tuple(event["local"]) for event in events}) == 3  # a fresh port for each

    def test_table_of_tries(self) -> None:
        done = run("pair", "--delay-ms", "2", "--tries", "2")
        assert done.returncode == 0, done.stderr
        assert "median" in done.stdout
        assert "slowest: connected" in done.stdout

    def test_program_of_the_user(self) -> None:
        program = (
            "import ntcpsock; s = ntcpsock.create_connection(('b.ntcp', 7000)); s.sendall(b'ping');"
            "print(s.recv(4), s.path.technique)"
        )
        done = run("pair", "--delay-ms", "2", "--", sys.executable, "-c", program)
        assert (done.returncode, done.stdout) == (0, "b'ping' tcp-open\n"), done.stderr

    def test_status_of_the_program(self) -> None:
        done = run("pair", "--delay-ms", "0", "--", sys.executable, "-c", "raise SystemExit(7)")
        assert done.returncode == 7
        assert not [name for name in lab_namespaces() if f"-{os.getpid()}-" in name]


def test_list_of_kinds() -> None:
    done = run("list")
    assert done.returncode == 0, done.stderr
    assert "mikrotik" in done.stdout
    rows = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert {"default", "none", "cgn", "mobile"} <= {row["kind"] for row in rows}
    for row in rows:
        assert str(parse_kind(row["kind"])) == row["kind"]
        assert (row["engine"] == "userspace") is (row["words"] is not None)


@pytest.mark.parametrize("option", ["--cgn-a", "--cgn-b", "--ipv6"])
def test_unknown_words(option: str) -> None:
    done = run("pair", option, "nonsense")
    assert done.returncode == 2
    assert option in done.stderr


def test_unknown_kind() -> None:
    done = run("pair", "--nat-a", "nonsense")
    assert done.returncode == 2
    assert "--nat-a" in done.stderr


def test_namespaces_forbidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ntcpsock.cli import lab
    from ntcpsock.testing import natlab

    monkeypatch.setattr(natlab, "namespaces_available", lambda: "the kernel says no")
    monkeypatch.setattr(natlab, "reexec_in_user_namespace", lambda: None)
    with pytest.raises(SystemExit) as caught:
        lab.enter_namespaces()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "ntcp lab: the kernel says no\n"

    def forbidden() -> None:
        raise natlab.LabUnavailable("unshare: Operation not permitted")

    monkeypatch.setattr(natlab, "reexec_in_user_namespace", forbidden)
    with pytest.raises(SystemExit):
        lab.enter_namespaces()
    assert "Operation not permitted" in capsys.readouterr().err
