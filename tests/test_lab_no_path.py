"""Pairs without a direct path: the error says why, in time, and nothing goes on afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._errors import TraversalFailed, TraversalTimeout
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab, Router
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

DEADLINE = 60.0

# A router forgets a connection that was never answered after this many seconds (by default 4 minutes).
FORGETFUL = "mobile+transitory=3"


@pytest.fixture
def made(nat_lab: NatLabFactory, tmp_path: Path) -> tuple[Lab, Config]:
    """A lab of two NATs that draw from all ports, with bob listening behind B; the settings of a dialer."""
    lab = nat_lab(FORGETFUL, FORGETFUL, delay=0.005)
    key = load_identity(tmp_path / "servers" / "broker.key").public_key
    lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
    lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
    broker = str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key))
    lab.host_b.start(programs.run_listener, Config(broker=broker, name="bob", state_dir=tmp_path / "bob"))
    return lab, Config(broker=broker, state_dir=tmp_path / "client")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def mappings_to(router: Router, peer: str) -> int:
    return sum(1 for mapping in router.mappings() for host, _ in mapping["remotes"] if host == peer)


def test_nothing_goes_on_after_a_failure(made: tuple[Lab, Config]) -> None:
    lab, config = made
    running = lab.host_a.start(programs.dial_and_fail_on_a_living_node, config, "bob", lab.public_address_b)
    # It is tried: both routers have mappings towards the other one meanwhile.
    wait_until(lambda: mappings_to(lab.nat_a, lab.public_address_b) > 0)
    wait_until(lambda: mappings_to(lab.nat_b, lab.public_address_a) > 0)
    error, left = running.result(DEADLINE)
    assert isinstance(error, TraversalFailed)
    assert not isinstance(error, TraversalTimeout)
    assert error.report is not None
    assert error.report.cause is not None
    assert "Both NATs" in error.report.cause
    assert error.report.cause in str(error)
    assert error.report.advice is not None
    assert error.report.advice in str(error)
    mappings = [error.report.profiles[side]["mapping"] for side in ("local", "remote")]
    assert mappings == ["endpoint-dependent"] * 2
    assert left == []
    # The listener has not heard that the dialer gave up: its attempts have a budget of their own.
    wait_until(lambda: not lab.host_b.call(programs.connections_to, lab.public_address_a))
    # No SYN is repeated, so the routers forget.
    wait_until(lambda: mappings_to(lab.nat_a, lab.public_address_b) == 0)
    wait_until(lambda: mappings_to(lab.nat_b, lab.public_address_a) == 0)


def test_a_short_time_out_says_why_too(made: tuple[Lab, Config]) -> None:
    lab, config = made
    error = lab.host_a.call(programs.dial_and_fail, config, "bob", 2.0)
    assert isinstance(error, TraversalTimeout)
    assert "it was at the stage 'punch'" in str(error)
    assert "Both NATs" in str(error)
