"""What real Linux routers still know of us after a connection and after a failure: conntrack's table, and mapped ports.

A router forgets a connection that was closed within two minutes, and an open one after five days.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import portmap_programs as mapped
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._report import Budget, Report
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab, Router, RunningCall, port_mapper
from ntcpsock.testing.pytest_plugin import NatLabFactory

_SBIN = "/usr/sbin:/usr/bin"

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("conntrack", path=_SBIN) is None, reason="no conntrack program here"),
]

# Of nf_conntrack: those end by themselves within two minutes. SYN_SENT is a SYN that nobody answered: no packet of
# ours ends it earlier.
CLOSED = {"TIME_WAIT", "CLOSE", "LAST_ACK", "FIN_WAIT", "CLOSE_WAIT"}
UNANSWERED = {"SYN_SENT", "SYN_SENT2"}

#: More than a node's warm ports, with a connection to each of two STUN servers, and its questions to the router make.
WARM_ENTRIES = 24
#: The dial that waits until bob is registered is refused, and has sent its first SYNs by then: to two mapped
#: endpoints and the private one.
WAITING_ENTRIES = 3


@dataclass(frozen=True)
class Entry:
    """A line of `conntrack -L` about TCP."""

    state: str
    source: str
    source_port: int
    destination: str
    port: int


def entries(router: Router) -> list[Entry]:
    listed = router.run(["conntrack", "-L", "-p", "tcp"], capture_output=True, text=True, check=True).stdout
    found = []
    for line in listed.splitlines():
        words = line.split()
        values = dict(
            word.split("=") for word in reversed(words) if "=" in word
        )  # the original direction comes first
        found.append(
            Entry(words[3], values["src"], int(values["sport"]), values["dst"], int(values["dport"]))
        )
    return found


def settled(router: Router) -> list[Entry]:
    """The entries when no open connection is left among them."""
    deadline = time.monotonic() + programs.PATIENCE
    while True:
        found = entries(router)
        if all(entry.state in CLOSED | UNANSWERED for entry in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@dataclass
class World:
    lab: Lab
    directory: Path
    uri: str

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(**{"broker": self.uri, "name": name, "state_dir": state, **settings})

    def listen(self, **settings: Any) -> RunningCall[list[str]]:
        """A node called bob, until `end`."""
        config = self.config("bob", **settings)
        return self.lab.host_b.start(mapped.listen_until, config, self.directory / "stop", mapped.NO_HURRY)

    def dial(self, **settings: Any) -> Report:
        config = self.config(connect_timeout=programs.PATIENCE, **settings)
        return self.lab.host_a.call(mapped.report_of_dial, config, "bob")

    def end(self, listening: RunningCall[list[str]]) -> None:
        (self.directory / "stop").touch()
        listening.result(programs.PATIENCE)

    def check(self, budget: Budget) -> None:
        """Both routers, once both nodes have closed."""
        lab = self.lab
        check(lab.nat_a, (lab.nat_b.public_address, lab.host_b.address), budget)
        check(lab.nat_b, (lab.nat_a.public_address, lab.host_a.address), budget)


MakeWorld = Callable[..., World]


@pytest.fixture
def world(nat_lab: NatLabFactory, tmp_path: Path) -> MakeWorld:
    def make(nat_a: str, nat_b: str) -> World:
        lab = nat_lab(nat_a, nat_b)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        return World(lab, tmp_path, str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key)))

    return make


def check(router: Router, peer: Sequence[str], budget: Budget) -> None:
    """What is left at a router is closed or was never answered, goes where it should, and is no more than the report
    says. peer: the other side's addresses."""
    left = settled(router)
    to_peer = [entry for entry in left if entry.destination in peer]
    assert {entry.destination for entry in left if entry.state in UNANSWERED} <= set(peer), left
    assert len(to_peer) <= budget.nat_entries + WAITING_ENTRIES, (to_peer, budget)
    # The rest is of ports that were kept ready, or looked at: to the STUN servers, and to the router itself.
    assert len(left) - len(to_peer) <= budget.nat_entries + WARM_ENTRIES, left


@pytest.mark.parametrize("nat", ["default", pytest.param("reject", marks=pytest.mark.slow)])
def test_after_a_connection(world: MakeWorld, nat: str) -> None:
    made = world(nat, nat)
    with port_mapper(made.lab.nat_a) as here, port_mapper(made.lab.nat_b) as there:
        listening = made.listen()
        report = made.dial()
        assert report.failed_stage is None, str(report)
        made.end(listening)
        assert (here.mappings(), there.mappings()) == ([], [])
    made.check(report.budget)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nat_a", "nat_b", "techniques", "succeeds"),
    [
        # All that is tried at all.
        ("fully-random", "fully-random", None, False),
        # Hundreds of sessions, of which one meets the other side.
        ("default", "fully-random", ("tcp-predict",), True),
    ],
)
def test_after_a_failure_and_after_many_attempts(
    world: MakeWorld, nat_a: str, nat_b: str, techniques: tuple[str, ...] | None, succeeds: bool
) -> None:
    settings: dict[str, Any] = {"relay": "never"}
    if techniques is not None:
        settings["techniques"] = techniques
    made = world(nat_a, nat_b)
    listening = made.listen(**settings)
    report = made.dial(**settings)
    assert (report.failed_stage is None) is succeeds, str(report)
    made.end(listening)
    made.check(report.budget)
