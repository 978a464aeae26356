"""tcp-stunt2, tcp-natblaster and tcp-stunt1: for each a pair of NATs through which it alone connects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import TECHNIQUES, Config
from ntcpsock._errors import TraversalFailed
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

# No simultaneous open; no SYN from outside at all; that, and sequences checked as Linux does.
ONE_SIDED, NO_SYN_IN, CLIENT_ONLY = "one-sided", "no-syn-in", "no-syn-in+conntrack"


@dataclass
class Stage:
    lab: Lab
    directory: Path
    uri: str

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(**{"broker": self.uri, "name": name, "state_dir": state, **settings})

    def listen(self, **settings: Any) -> None:
        self.lab.host_b.start(programs.run_listener, self.config("bob", **settings))

    def dial(self, count: int, **settings: Any) -> list[programs.Dialled]:
        running = self.lab.host_a.start(programs.dial_many, self.config(**settings), "bob", count)
        return running.result(programs.PATIENCE + 10 * count)

    def dial_and_fail(self, **settings: Any) -> OSError:
        return self.lab.host_a.call(programs.dial_and_fail, self.config(**settings), "bob")


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> MakeStage:
    def make(kind: str, *, allow_spoofing: bool = False) -> Stage:
        lab = nat_lab(kind, kind, delay=0.025)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers", allow_spoofing)
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        address = BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key)
        return Stage(lab, tmp_path, str(address))

    return make


def others(*techniques: str) -> tuple[str, ...]:
    return tuple(technique for technique in TECHNIQUES if technique not in techniques)


ALONE = [
    (ONE_SIDED, "tcp-stunt2"),
    (NO_SYN_IN, "tcp-natblaster"),
    (CLIENT_ONLY, "tcp-stunt1"),
]


@pytest.mark.parametrize(("kind", "technique"), ALONE)
def test_it_alone_connects(stage: MakeStage, kind: str, technique: str) -> None:
    made = stage(kind, allow_spoofing=technique == "tcp-stunt1")
    made.listen()
    dials = made.dial(10, techniques=(technique,))
    print([round(d.seconds, 2) for d in dials])
    assert [(dialled.kind, dialled.technique) for dialled in dials] == [("tcp", technique)] * 10


@pytest.mark.parametrize(("kind", "technique"), ALONE)
def test_without_it_nothing_does(stage: MakeStage, kind: str, technique: str) -> None:
    made = stage(kind, allow_spoofing=technique == "tcp-stunt1")
    made.listen()
    error = made.dial_and_fail(techniques=others(technique))
    assert isinstance(error, TraversalFailed)
    assert error.report
    print(error.report)
