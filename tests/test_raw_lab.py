"""tcp-stunt2, tcp-natblaster and tcp-stunt1: for each a pair of NATs through which it alone connects."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import TECHNIQUES, Config
from ntcpsock._errors import TraversalFailed
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._state import load_identity
from ntcpsock.cli.lab import technique_settings
from ntcpsock.cli.stage import open_stage
from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing_for_raw() is not None, reason=f"needs {missing_for_raw()}"),
]

# Both sides draw ports at random for each destination: checks over UDP are tried in vain.
NO_UDP_PATH = "udp:apdm+udp:random"

# No simultaneous open; no SYN from outside at all; that, and sequences checked as Linux does.
ONE_SIDED, NO_SYN_IN, CLIENT_ONLY = "one-sided", "no-syn-in", "no-syn-in+conntrack"


@dataclass
class Stage:
    """An open lab with servers; a listening node called bob behind NAT B, dials from host A."""

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
    count = itertools.count()

    def make(nat_a: str, nat_b: str | None = None, *, allow_spoofing: bool = False, **more: Any) -> Stage:
        lab = nat_lab(nat_a, nat_b or nat_a, delay=0.025, **more)
        directory = tmp_path / str(next(count))
        key = load_identity(directory / "servers" / "broker.key").public_key
        lab.server.start(
            programs.run_servers, lab.server_addresses, directory / "servers", (), allow_spoofing
        )
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        address = BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key)
        return Stage(lab, directory, str(address))

    return make


def others(*techniques: str) -> tuple[str, ...]:
    return tuple(technique for technique in TECHNIQUES if technique not in techniques)


ALONE = [
    (ONE_SIDED, "tcp-stunt2"),
    (NO_SYN_IN, "tcp-natblaster"),
    (CLIENT_ONLY, "tcp-stunt1"),
]


def check_all_connect(stage: Stage, technique: str, count: int, **settings: Any) -> None:
    stage.listen(**settings)
    dials = stage.dial(count, techniques=(technique,), **settings)
    assert [(dialled.kind, dialled.technique) for dialled in dials] == [("tcp", technique)] * count


@pytest.mark.parametrize(("kind", "technique"), ALONE)
def test_it_connects(stage: MakeStage, kind: str, technique: str) -> None:
    check_all_connect(stage(kind, allow_spoofing=technique == "tcp-stunt1"), technique, 2)


def test_without_it_nothing_connects(stage: MakeStage) -> None:
    """All three pairs at once, for the time of one: every other technique has its turn."""
    failing = []
    for kind, technique in ALONE:
        # As brokers are delivered: one that spoofs would let tcp-stunt1 through the other two pairs as well.
        made = stage(f"{kind}+{NO_UDP_PATH}", allow_spoofing=technique == "tcp-stunt1")
        made.listen()
        config = made.config(techniques=others(technique), connect_timeout=30.0)
        failing.append((technique, made.lab.host_a.start(programs.dial_and_fail, config, "bob")))
    for technique, call in failing:
        error = call.result(2 * programs.PATIENCE)
        assert isinstance(error, TraversalFailed)
        assert error.report is not None
        tried = {entry.technique for entry in error.report.attempts}
        # "public" needs a public address, "ipv6" one of that family, "port-mapped" a router that maps, "udp-birthday" a
        # port that has to be guessed; there is no relay, and no TURN server.
        useless = {"public", "ipv6", "port-mapped", "udp-birthday", "relay", "turn"}
        assert tried == {*others(technique)} - useless
        if technique != "tcp-stunt1":
            (refused,) = [e for e in error.report.attempts if e.technique == "tcp-stunt1"]
            assert "its operator has not switched --allow-spoofing on" in refused.outcome


def test_without_privileges(nat_lab: NatLabFactory) -> None:
    """tcp-stunt2 needs none; whoever asks for the others hears what they lack, and whoever does not, nothing."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    unprivileged = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    peer = (sys.executable, "-m", "ntcpsock.cli.lab_peer")
    lab = nat_lab(f"{ONE_SIDED}+{NO_UDP_PATH}", f"{ONE_SIDED}+{NO_UDP_PATH}", delay=0.025)
    first, second = lab.server_addresses
    with open_stage(lab.server, "--listen", first, "--other-address", second) as stage:
        settings = stage.environment("b")
        stage.start(lab.host_b, "b", [*unprivileged, *peer, "echo", "b:7000"], settings).wait_for(
            "listening", programs.PATIENCE
        )

        def dial(*prefix: str, techniques: str | None = None) -> dict[str, Any]:
            more = technique_settings(techniques)
            process = stage.start(
                lab.host_a, "a", [*prefix, *peer, "dial", "b:7000"], stage.environment("a", **more)
            )
            event = process.next(programs.PATIENCE)
            assert event is not None
            return event

        connected = dial(*unprivileged)
        assert connected["technique"] == "tcp-stunt2"
        tried = {entry["technique"] for entry in connected["report"]["attempts"]}
        assert not tried & {"tcp-natblaster", "tcp-stunt1"}

        refused = dial(*unprivileged, techniques="tcp-natblaster")
        (entry,) = refused["report"]["attempts"]
        assert entry["technique"] == "tcp-natblaster"
        assert entry["outcome"].startswith(
            "tcp-natblaster lacks the right to send raw packets: run it as root"
        )
        assert "tcp-natblaster lacks the right to send raw packets" in refused["message"]
        assert refused["errno_name"] == "EHOSTUNREACH"
        assert refused["report"]["attempts"][0]["ended"] < 5

        (entry,) = dial(techniques="tcp-natblaster")["report"]["attempts"]
        assert "the other side cannot, or does not want to, send raw packets" in entry["outcome"]


@pytest.mark.slow
@pytest.mark.parametrize("encryption", ["tls", "off"])
@pytest.mark.parametrize(("kind", "technique"), ALONE)
def test_ten_of_ten(stage: MakeStage, kind: str, technique: str, encryption: str) -> None:
    made = stage(kind, allow_spoofing=technique == "tcp-stunt1")
    check_all_connect(made, technique, 10, encryption=encryption)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nat_a", "nat_b", "technique", "more"),
    [
        # One NAT that does not check sequence numbers is enough, on either side.
        (ONE_SIDED, "linux", "tcp-stunt2", {}),
        ("linux", ONE_SIDED, "tcp-stunt2", {}),
        # The next port of a NAT that counts is known, too.
        (f"apdm+sequential+{ONE_SIDED}", ONE_SIDED, "tcp-stunt2", {}),
        # A SYN that arrived would be answered by a reset, and end both connections.
        (f"{NO_SYN_IN}+rst", f"{NO_SYN_IN}+rst", "tcp-natblaster", {}),
        # The outermost NAT is further away.
        (NO_SYN_IN, NO_SYN_IN, "tcp-natblaster", {"cgn_a": "cgn"}),
        # nftables, as real routers have it.
        ("reject", "reject", "tcp-stunt1", {}),
    ],
)
def test_other_pairs(stage: MakeStage, nat_a: str, nat_b: str, technique: str, more: dict[str, Any]) -> None:
    made = stage(nat_a, nat_b, allow_spoofing=technique == "tcp-stunt1", **more)
    check_all_connect(made, technique, 3)


@pytest.mark.slow
def test_linux_routers_refuse_the_numbers_of_another_syn(stage: MakeStage) -> None:
    """tcp-open is for them."""
    made = stage("linux")
    made.listen()
    error = made.dial_and_fail(techniques=("tcp-stunt2",))
    assert isinstance(error, TraversalFailed)
    assert error.report is not None
    assert {entry.technique for entry in error.report.attempts} == {"tcp-stunt2"}
