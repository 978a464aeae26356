"""connect() between two hosts behind real NATs, with 25 ms links: a path RTT of 100 ms."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import TECHNIQUES, UDP_TECHNIQUES, Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATH_RTT = 0.1
# Where round trips are counted: computing on a slow machine must not look like one more of them.
LONG_RTT = 0.6
GIBIBYTE = 2**30
OVER_TCP = tuple(name for name in TECHNIQUES if name not in UDP_TECHNIQUES)


@dataclass
class Stage:
    """An open lab with servers and a listening node called bob behind NAT B; dials come from host A."""

    lab: Lab
    directory: Path
    uri: str

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(**{"broker": self.uri, "name": name, "state_dir": state, **settings})

    def dial(self, count: int, name: str | None = None, **settings: Any) -> list[programs.Dialled]:
        running = self.lab.host_a.start(programs.dial_many, self.config(name, **settings), "bob", count)
        return running.result(programs.PATIENCE + 5 * count)


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> MakeStage:
    def make(nat_a: str, nat_b: str, lab: Lab | None = None, **settings: Any) -> Stage:
        lab = lab or nat_lab(nat_a, nat_b, delay=PATH_RTT / 4)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        address = BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key)
        made = Stage(lab, tmp_path, str(address))
        lab.host_b.start(programs.run_listener, made.config("bob", **settings))
        return made

    return make


def median_rtts(dials: list[programs.Dialled]) -> float:
    return statistics.median(dialled.seconds for dialled in dials) / LONG_RTT


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "technique"),
    [
        ("default", "default", "tcp-open"),
        ("reject", "reject", "tcp-open"),
        ("default", "reject", "tcp-open"),
        ("default", "none", "public"),
        ("none", "default", "public"),
        ("none", "random", "public"),
        ("firewall", "firewall", "public"),
        # Another port for every connection, out of all: hundreds of sessions find each other.
        ("random", "default", "tcp-predict"),
        ("reject", "fully-random", "tcp-predict"),
    ],
)
def test_every_punchable_pair_connects(stage: MakeStage, nat_a: str, nat_b: str, technique: str) -> None:
    # Where ports have to be foreseen UDP is looked for at the same time, and now and then is first.
    techniques = OVER_TCP if technique == "tcp-predict" else TECHNIQUES
    dials = stage(nat_a, nat_b).dial(5, techniques=techniques)
    assert [(dialled.kind, dialled.technique) for dialled in dials] == [("tcp", technique)] * 5


def test_hosts_behind_one_nat_meet_on_their_lan(nat_lab: NatLabFactory, stage: MakeStage) -> None:
    made = stage("default", "default", nat_lab("default", "default", same_nat=True))
    assert [(dialled.kind, dialled.technique) for dialled in made.dial(3)] == [("lan", "lan")] * 3


def test_same_private_range_on_both_sides(nat_lab: NatLabFactory, stage: MakeStage) -> None:
    """The peer's private address is our own one: the wrong host, which is ourselves, never wins."""
    lab = nat_lab("default", "default", same_private_range=True)
    assert lab.host_a.address == lab.host_b.address
    assert {dialled.technique for dialled in stage("default", "default", lab).dial(3)} == {"tcp-open"}


def test_round_trips_to_connect(nat_lab: NatLabFactory, stage: MakeStage) -> None:
    """The whole exchange is 2.5 path RTT. The tight figure is the benchmark's to take; here it must be nearer to
    2.5 than to one more round trip."""
    lab = nat_lab("default", "default", delay=LONG_RTT / 4)
    assert median_rtts(stage("default", "default", lab).dial(3)) < 3.0


def test_round_trips_to_connect_with_a_private_card(nat_lab: NatLabFactory, stage: MakeStage) -> None:
    lab = nat_lab("default", "default", delay=LONG_RTT / 4)
    dials = stage("default", "default", lab, allow=("carol",)).dial(3, "carol")
    assert all("answer" in dialled.stages for dialled in dials)
    assert median_rtts(dials) < 3.5


@pytest.mark.parametrize("nat", ["default", "reject"])
def test_half_close_and_reset_arrive_as_such(stage: MakeStage, nat: str) -> None:
    made = stage(nat, nat)
    first, cause = made.lab.host_a.call(programs.see_reset, made.config(), "bob")
    assert first == b"first"
    assert isinstance(cause, ConnectionResetError)
    assert made.dial(1)  # it half-closes, and reads the other side's last word


def check_download(made: Stage, size: int) -> None:
    blocks = size // len(programs.BLOCK)
    running = made.lab.host_a.start(programs.download, made.config(), "bob", blocks)
    digest, our_memory, their_memory = running.result(500)
    assert digest == programs.expected_digest(blocks)
    assert our_memory < 150e6
    assert their_memory < 150e6


def test_a_transfer_is_identical(stage: MakeStage) -> None:
    check_download(stage("default", "default"), 64 * 2**20)


@pytest.mark.slow
def test_a_gibibyte_is_identical_in_little_memory(stage: MakeStage) -> None:
    check_download(stage("default", "default"), GIBIBYTE)


@pytest.mark.slow
@pytest.mark.parametrize("nat", ["default", "reject"])
def test_a_hundred_tries_without_a_failure(stage: MakeStage, nat: str) -> None:
    dials = stage(nat, nat).dial(100)
    assert {dialled.technique for dialled in dials} == {"tcp-open"}
