"""Where there is no way connect() says so, and why, within its time-out."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._errors import BrokerUnreachable, PeerRefused, TraversalFailed, TraversalTimeout
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@dataclass
class Stage:
    lab: Lab
    config: Callable[..., Config]

    def fail(self, timeout: float | None = None, port: int = programs.PORT, **settings: Any) -> OSError:
        """The error of a dial from A to B."""
        settings.setdefault("broker_timeout", programs.PATIENCE)
        config = self.config(**settings)
        running = self.lab.host_a.start(programs.dial_and_fail, config, "bob", timeout, port)
        return running.result(2 * programs.PATIENCE)


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> Callable[..., Stage]:
    """Two routers; from before the nodes start nothing to the STUN port gets out of neither of those named."""

    def make(nat_a: str, nat_b: str, without_stun: str = "") -> Stage:
        lab = nat_lab(nat_a, nat_b, delay=0.005)
        for router in (lab.nat_a, lab.nat_b):
            if router.name[-1] in without_stun:
                chain = "chain f { type filter hook forward priority -10; tcp dport 3478 drop; udp dport 3478 drop; }"
                router.run(["nft", f"table ip blocked {{ {chain}; }}"], check=True)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        uri = str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key))

        def config(name: str | None = None, **settings: Any) -> Config:
            return Config(broker=uri, name=name, state_dir=tmp_path / (name or "client"), **settings)

        lab.host_b.start(programs.run_listener, config("bob"))
        return Stage(lab, config)

    return make


def syn_sent(stage: Stage) -> str:
    """Sockets of the listener's host that wait for an answer."""
    running = stage.lab.host_b.run(
        ["ss", "-Htn", "state", "syn-sent"], capture_output=True, text=True, check=True
    )
    return str(running.stdout)


def test_both_nats_choose_among_all_ports(stage: Callable[..., Stage]) -> None:
    made = stage("random", "random")
    error = made.fail()
    assert isinstance(error, TraversalFailed)
    assert error.errno == errno.EHOSTUNREACH
    assert "Both NATs give every connection another port" in str(error)
    assert error.report is not None
    assert (error.report.advice or "?") in str(error)
    reasons = [entry.outcome for entry in error.report.attempts if entry.technique == "tcp-predict"]
    assert any("too many ports" in reason for reason in reasons)
    assert all(entry.ended is not None for entry in error.report.attempts)
    assert syn_sent(made) == ""

    hurried = made.fail(timeout=1.0)
    assert isinstance(hurried, TraversalTimeout)
    assert hurried.errno == errno.ETIMEDOUT
    assert "Both NATs give every connection another port" in str(hurried)

    refused = made.fail(port=programs.PORT + 1)  # this ends the race at once
    assert isinstance(refused, PeerRefused)
    assert refused.errno == errno.ECONNREFUSED
    assert "nothing listens on port" in str(refused)
    assert refused.report is not None
    assert all(entry.ended is not None for entry in refused.report.attempts)


@pytest.mark.parametrize(
    ("without_stun", "who"), [("a", "this side"), pytest.param("b", "the other side", marks=pytest.mark.slow)]
)
def test_stun_is_blocked_on_one_side(stage: Callable[..., Stage], without_stun: str, who: str) -> None:
    error = stage("random", "default", without_stun).fail(timeout=4.0)
    assert isinstance(error, (TraversalFailed, TraversalTimeout))
    assert f"No STUN server answered {who} over TCP" in str(error)


def test_udp_is_blocked(stage: Callable[..., Stage]) -> None:
    made = stage("udp-blocked", "default")
    error = made.fail(broker_timeout=1.0)
    assert isinstance(error, BrokerUnreachable)
    assert error.errno == errno.ENETUNREACH


@pytest.mark.slow
def test_only_lan_is_allowed(stage: Callable[..., Stage]) -> None:
    error = stage("default", "default").fail(techniques=("lan",))
    assert isinstance(error, TraversalFailed)
    assert "only lan is allowed" in str(error)
    assert error.report is not None
    assert {entry.technique for entry in error.report.attempts} == {"lan"}
