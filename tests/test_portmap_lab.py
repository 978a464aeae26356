"""Port mapping by a real miniupnpd, in pairs that nothing else connects: each NAT gives every connection another port.

The links have 25 ms; what belongs to a router is read from its own rules.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import portmap_programs as mapped
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._report import Report
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab, RunningCall, port_mapper
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("miniupnpd", path="/usr/sbin:/usr/bin") is None, reason="no miniupnpd here"
    ),
]

PROTOCOLS = ("pcp", "nat-pmp", "upnp")
PATIENCE = programs.PATIENCE
SYMMETRIC = "fully-random"


@dataclass
class World:
    """An open lab with a broker and STUN servers. Listeners run on host B, dials on host A."""

    lab: Lab
    directory: Path
    uri: str

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(**{"broker": self.uri, "name": name, "state_dir": state, **settings})

    def listen(
        self, stop: str = "never", hurry: mapped.Hurry = mapped.NO_HURRY, **settings: Any
    ) -> RunningCall[list[str]]:
        """A node called bob, until the file `stop` is made."""
        config = self.config("bob", **settings)
        return self.lab.host_b.start(mapped.listen_until, config, self.directory / stop, hurry)

    def dial(self, **settings: Any) -> programs.Dialled:
        (dialled,) = self.lab.host_a.call(programs.dial_many, self.config(**settings), "bob", 1)
        return dialled

    def report_of_dial(self) -> Report:
        """Of one with so much time that it ends by itself, and nothing to try but this."""
        config = self.config(connect_timeout=PATIENCE, techniques=("port-mapped",))
        return self.lab.host_a.call(mapped.report_of_dial, config, "bob")


MakeWorld = Callable[..., World]


@pytest.fixture
def world(nat_lab: NatLabFactory, tmp_path: Path) -> MakeWorld:
    def make(nat_a: str = SYMMETRIC, nat_b: str = SYMMETRIC, **arguments: Any) -> World:
        lab = nat_lab(nat_a, nat_b, **arguments)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        address = BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key)
        return World(lab, tmp_path, str(address))

    return make


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_the_listeners_router_is_enough(world: MakeWorld) -> None:
    made = world()
    for protocol in PROTOCOLS:
        with port_mapper(made.lab.nat_b, [protocol]) as router:
            running = made.listen(protocol)
            wait_until(router.mappings)
            dialled = made.dial()
            assert (dialled.kind, dialled.technique) == ("port-mapped", "port-mapped"), protocol
            (made.directory / protocol).touch()
            assert "mapped" in running.result(PATIENCE)
            # The listener has closed.
            assert router.mappings() == [], protocol


def test_the_dialers_router_is_enough(world: MakeWorld) -> None:
    made = world()
    made.listen()
    for protocol in PROTOCOLS:
        with port_mapper(made.lab.nat_a, [protocol]) as router:
            dialled = made.dial()
            assert (dialled.kind, dialled.technique) == ("port-mapped", "port-mapped"), protocol
            assert router.asked()
            # The dialing node has closed, and the connection with it.
            assert router.mappings() == [], protocol


def test_without_encryption(world: MakeWorld) -> None:
    made = world()
    made.listen(encryption="off")
    with port_mapper(made.lab.nat_a):
        assert made.dial(encryption="off").technique == "port-mapped"


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "side"),
    [
        # The listener's own SYNs, to a port of the dialer's that is known, must not get in the way.
        ("default", SYMMETRIC, "b"),
        ("random-reject", "reject", "a"),
    ],
)
def test_beside_nats_that_can_be_punched(world: MakeWorld, nat_a: str, nat_b: str, side: str) -> None:
    made = world(nat_a, nat_b)
    with port_mapper(made.lab.nat_a if side == "a" else made.lab.nat_b) as router:
        made.listen()
        if side == "b":
            wait_until(router.mappings)
        assert made.dial(techniques=("tcp-open", "port-mapped")).technique == "port-mapped"


@pytest.mark.parametrize(("nat_a", "nat_b", "side"), [("mobile", "cgn", "b"), ("mobile", "mobile", "a")])
def test_a_user_space_router_maps(world: MakeWorld, nat_a: str, nat_b: str, side: str) -> None:
    made = world(nat_a, nat_b)
    with port_mapper(made.lab.nat_a if side == "a" else made.lab.nat_b) as router:
        running = made.listen("stop")
        if side == "b":
            wait_until(router.mappings)
        assert made.dial(techniques=("port-mapped",)).technique == "port-mapped"
        (made.directory / "stop").touch()
        running.result(PATIENCE)
        assert router.mappings() == []
        assert router.asked()


def test_two_customers_of_one_carrier(world: MakeWorld) -> None:
    """What such a router maps leads nowhere for the world, and to the neighbour directly."""
    made = world("mobile", "mobile", cgn_a="mobile", same_cgn=True)
    with port_mapper(made.lab.nat_b) as router:
        made.listen()
        wait_until(router.mappings)
        dialled = made.dial(techniques=("port-mapped",))
        assert (dialled.kind, dialled.technique) == ("port-mapped", "port-mapped")


def test_a_lease_is_renewed(world: MakeWorld) -> None:
    made = world()
    with port_mapper(made.lab.nat_b, ["nat-pmp"]) as router:
        running = made.listen("stop", mapped.Hurry(lifetime=4))
        wait_until(lambda: router.log.count("port mapping request") >= 4)
        assert router.mappings()
        (made.directory / "stop").touch()
        running.result(PATIENCE)
        assert router.mappings() == []


LISTEN_AND_LEAVE = """
import sys, ntcpsock
listener = ntcpsock.create_server(("bob.ntcp", 7000))
sys.stdin.readline()
"""


def test_a_program_that_ends_leaves_no_mapping(world: MakeWorld) -> None:
    made = world()
    environment = {"NTCP_BROKER": made.uri, "NTCP_NAME": "bob", "NTCP_STATE": str(made.directory / "bob")}
    with port_mapper(made.lab.nat_b) as router:
        program = made.lab.host_b.popen(
            [sys.executable, "-c", LISTEN_AND_LEAVE], stdin=subprocess.PIPE, env=os.environ | environment
        )
        with program:
            wait_until(router.mappings)
        assert program.returncode == 0
        assert router.mappings() == []


def test_a_restarted_router_maps_again(world: MakeWorld) -> None:
    made = world()
    with port_mapper(made.lab.nat_b, ["upnp"]) as router:
        running = made.listen("stop", mapped.Hurry(check_interval=0.2))
        wait_until(router.mappings)
        before = router.mappings()
        router.restart()
        wait_until(router.mappings)
        assert router.mappings() == before
        (made.directory / "stop").touch()
        running.result(PATIENCE)
        assert router.mappings() == []


def test_switched_off_the_router_hears_nothing(world: MakeWorld) -> None:
    made = world("default", "default")
    techniques = ("public", "lan", "tcp-open")
    with port_mapper(made.lab.nat_a) as one, port_mapper(made.lab.nat_b) as other:
        made.listen(port_mapping="off")
        assert made.dial(techniques=techniques).technique == "tcp-open"
        assert (one.asked(), other.asked()) == (0, 0)


def test_a_router_behind_a_carriers_nat_refuses_and_is_quoted(world: MakeWorld) -> None:
    made = world(cgn_a="default")
    with port_mapper(made.lab.nat_a) as router:
        running = made.listen("stop")
        found = made.lab.host_a.call(mapped.probe, [made.lab.public_address_a])
        assert found.gateway == "10.1.0.1"
        assert found.external.keys() | found.failures.keys() == set(PROTOCOLS)
        report = made.report_of_dial()
        assert report.port_mapping is not None
        for protocol in PROTOCOLS:
            assert f"{protocol}: " in report.port_mapping
        assert "no resources" in report.port_mapping  # PCP's word
        assert report.advice is not None
        assert report.port_mapping in report.advice
        assert router.mappings() == []
        (made.directory / "stop").touch()
        # The listener's router speaks nothing of it.
        assert "mapped" not in running.result(PATIENCE)


def test_a_router_that_lies_about_its_address_is_not_passed_on(world: MakeWorld) -> None:
    """Else whoever dials would be sent to somebody else's address."""
    made = world()
    lie = "11.22.99.9"
    with port_mapper(made.lab.nat_a, external=lie) as one, port_mapper(made.lab.nat_b, external=lie) as other:
        running = made.listen("stop")
        wait_until(other.mappings)
        report = made.report_of_dial()
        assert report.port_mapping is not None
        assert lie in report.port_mapping
        assert "not where the Internet sees this side" in report.port_mapping
        assert all(entry.remote is None or entry.remote[0] != lie for entry in report.attempts)
        assert one.mappings() == []
        (made.directory / "stop").touch()
        assert "mapped" not in running.result(PATIENCE)


def test_what_a_router_speaks_is_probed(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("default", "mobile")
    with pytest.raises(ValueError, match="NAT-PMP alone"), port_mapper(lab.nat_b, ["pcp"]):
        pass
    with pytest.raises(ValueError, match="upnpx"), port_mapper(lab.nat_a, ["upnpx"]):
        pass
    with port_mapper(lab.nat_a, ["nat-pmp"]) as router:
        found = lab.host_a.call(mapped.probe, [lab.public_address_a])
        assert found.external == {"nat-pmp": lab.public_address_a}
        assert found.failures.keys() == {"pcp", "upnp"}
        assert found.verdict == "public"
        assert router.mappings() == []
