"""Every pair of networks connects: NATs that no punch passes, networks without UDP, with a proxy only.

25 ms links: a path RTT of 100 ms, and a relay that lies on that path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peer_programs as programs
import pytest
from certificates import Authority
from test_nginx import NGINX, configuration, run_nginx, wait_for

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._errors import TraversalFailed
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@dataclass
class Stage:
    """A lab with servers, a relay among them; bob listens behind NAT B, dials come from host A."""

    lab: Lab
    directory: Path
    uri: str
    ca_file: Path | None = None

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(
            **{
                "broker": self.uri,
                "name": name,
                "state_dir": state,
                "ca_file": self.ca_file,
                "connect_timeout": 30.0,
                **settings,
            }
        )

    def dial(self, count: int, **settings: Any) -> list[programs.Dialled]:
        arguments = (self.config(**settings), "bob", count, self.lab.nat_a.proxy)
        running = self.lab.host_a.start(programs.dial_many, *arguments)
        return running.result(programs.PATIENCE + 10 * count)


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> MakeStage:
    def make(
        nat_a: str,
        nat_b: str,
        port: int = programs.BROKER_PORT,
        front: Literal["none", "tls", "nginx"] = "none",
        **settings: Any,
    ) -> Stage:
        lab = nat_lab(nat_a, nat_b, delay=0.025)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        authority = Authority(tmp_path)
        address = lab.server_addresses[0]
        files = authority.issue(tmp_path, address)
        own_port = programs.BROKER_PORT if front == "nginx" else port
        certificate = files if front == "tls" else None
        lab.server.start(
            programs.run_servers,
            lab.server_addresses,
            tmp_path / "servers",
            (),
            False,
            True,
            own_port,
            certificate,
        )
        lab.server.call(programs.wait_for_servers, address)
        if front == "nginx":
            config = configuration(tmp_path, f"{address}:{own_port}", f"{address}:{port}", files)
            lab.server.start(run_nginx, tmp_path, config)
            lab.server.call(wait_for, address, port)
        uri = str(BrokerAddress(address, port, key, tls=front != "none"))
        made = Stage(lab, tmp_path, uri, authority.file)
        lab.host_b.start(programs.run_listener, made.config("bob", **settings), lab.nat_b.proxy)
        return made

    return make


def test_what_cannot_be_punched_is_relayed(stage: MakeStage) -> None:
    made = stage("fully-random", "fully-random")
    dials = made.dial(3)
    assert [(dialled.kind, dialled.technique) for dialled in dials] == [("relay", "relay")] * 3


@pytest.mark.slow
def test_what_cannot_be_punched_fails_where_no_relay_may_be_used(stage: MakeStage) -> None:
    made = stage("fully-random", "fully-random")
    error = made.lab.host_a.call(programs.dial_and_fail, made.config(relay="never"), "bob")
    assert isinstance(error, TraversalFailed)
    # Each look at its mappings costs a NAT entries for minutes, and the next one would see the same.
    assert error.report is not None
    assert [attempt.technique for attempt in error.report.attempts].count("tcp-predict") == 1


def test_what_only_udp_can_foresee_does_not_wait_for_tcp(stage: MakeStage) -> None:
    """Over TCP such routers draw from thousands of ports, over UDP they keep the local one: that is tried before the
    relay's grace is over."""
    dials = stage("cisco", "cisco").dial(2)
    assert [(dialled.kind, dialled.technique) for dialled in dials] == [("udp", "udp-predict")] * 2


def test_relay_only_uses_no_path_that_there_is(stage: MakeStage) -> None:
    dials = stage("default", "default").dial(2, relay="only")
    assert [(dialled.kind, dialled.technique) for dialled in dials] == [("relay", "relay")] * 2


def test_a_direct_path_wins_where_there_is_one(stage: MakeStage) -> None:
    assert [dialled.kind for dialled in stage("default", "reject").dial(3)] == ["tcp"] * 3


@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [
        ("udp-blocked", "udp-blocked"),
        pytest.param("udp-blocked", "default", marks=pytest.mark.slow),
        pytest.param("default", "udp-blocked", marks=pytest.mark.slow),
    ],
)
def test_a_network_without_udp_connects_directly(stage: MakeStage, nat_a: str, nat_b: str) -> None:
    assert [dialled.kind for dialled in stage(nat_a, nat_b).dial(2)] == ["tcp"] * 2


def test_a_network_with_port_443_only_connects(stage: MakeStage) -> None:
    assert [dialled.kind for dialled in stage("only-443", "fully-random", port=443).dial(2)] == ["relay"] * 2


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "front"),
    [
        ("only-443", "only-443", "tls"),
        pytest.param("only-443", "fully-random", "tls", marks=pytest.mark.slow),
        pytest.param("only-443", "proxy-only", "tls", marks=pytest.mark.slow),
        pytest.param("proxy-only", "proxy-only", "tls", marks=pytest.mark.slow),
        pytest.param("proxy-only", "default", "tls", marks=pytest.mark.slow),
        pytest.param("only-443", "only-443", "nginx", marks=[pytest.mark.slow, needs_nginx]),
        pytest.param("proxy-only", "only-443", "nginx", marks=[pytest.mark.slow, needs_nginx]),
    ],
)
def test_networks_that_let_only_tls_out_connect(stage: MakeStage, nat_a: str, nat_b: str, front: str) -> None:
    """Signalling and relay in TLS on port 443, straight or through an HTTP proxy, and by way of a front."""
    assert [dialled.kind for dialled in stage(nat_a, nat_b, 443, front).dial(2)] == ["relay"] * 2


@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [
        ("proxy-only", "proxy-only"),
        pytest.param("proxy-only", "default", marks=pytest.mark.slow),
        pytest.param("default", "proxy-only", marks=pytest.mark.slow),
    ],
)
def test_a_network_with_a_proxy_only_connects(stage: MakeStage, nat_a: str, nat_b: str) -> None:
    assert [dialled.kind for dialled in stage(nat_a, nat_b).dial(2)] == ["relay"] * 2
