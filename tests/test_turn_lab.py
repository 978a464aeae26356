"""Pairs of networks for which nothing but a TURN server is left; UDP blocked on one side, or on both.

25 ms links: a path RTT of 100 ms, and a server that lies on that path.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest
from test_stun_interop import needs

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600), needs("turnserver")]

TURN_PORT = 4478
PATH_RTT = 0.1


@dataclass
class Stage:
    """A lab with a broker without a relay, and coturn; bob listens behind NAT B, dials come from host A."""

    lab: Lab
    directory: Path
    uri: str

    def turn(self, *transports: str) -> dict[str, Any]:
        host = self.lab.server_addresses[0]
        uris = tuple(f"turn:{host}:{TURN_PORT}?transport={transport}" for transport in transports)
        return {"turn": uris, "turn_secret": "hush"} if uris else {}

    def config(self, name: str | None = None, **settings: Any) -> Config:
        state = self.directory / (name or "client")
        return Config(
            **{"broker": self.uri, "name": name, "state_dir": state, "connect_timeout": 30.0, **settings}
        )

    def dial(self, count: int, **settings: Any) -> list[programs.Dialled]:
        running = self.lab.host_a.start(programs.dial_many, self.config(**settings), "bob", count)
        return running.result(programs.PATIENCE + 10 * count)


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> Iterator[MakeStage]:
    running = []

    def make(nat_a: str, nat_b: str, *, bob: tuple[str, ...] = (), **settings: Any) -> Stage:
        lab = nat_lab(nat_a, nat_b, delay=0.025)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        # With the broker's TCP port, which networks without UDP need, and with its relay, which is not asked.
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers", (), False, True)
        address = lab.server_addresses[0]
        with (tmp_path / "turnserver.log").open("wb") as log:
            argv = [
                "turnserver",
                *("-n", "-L", address, "-E", address, f"--listening-port={TURN_PORT}"),
                *("--use-auth-secret", "--static-auth-secret=hush", "--realm=lab"),
                *("--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout", "--simple-log"),
                f"--pidfile={tmp_path / 'turnserver.pid'}",
            ]
            running.append(lab.server.popen(argv, cwd=tmp_path, stdout=log, stderr=log))
        lab.server.call(programs.wait_for_servers, address)
        lab.server.call(wait_for_listener, address, TURN_PORT)
        made = Stage(lab, tmp_path, str(BrokerAddress(address, programs.BROKER_PORT, key)))
        lab.host_b.start(programs.run_listener, made.config("bob", **made.turn(*bob), **settings))
        return made

    yield make
    for process in running:
        process.kill()
        process.wait()


def wait_for_listener(address: str, port: int) -> None:
    """Until somebody accepts connections there."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, port), 5).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {address}:{port}"
            time.sleep(0.05)
        else:
            return


def ways(dials: list[programs.Dialled]) -> set[tuple[str, str, str]]:
    return {(dialled.kind, dialled.technique, dialled.technique_there) for dialled in dials}


OVER_TURN = {("relay", "turn", "turn")}


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "ours", "bobs"),
    [
        pytest.param("fully-random", "fully-random", ("udp",), (), marks=pytest.mark.slow),
        ("udp-blocked", "fully-random", ("udp", "tcp"), ()),
        pytest.param("fully-random", "fully-random", (), ("udp",), marks=pytest.mark.slow),
        pytest.param("fully-random", "udp-blocked", (), ("udp", "tcp"), marks=pytest.mark.slow),
        pytest.param("udp-blocked", "udp-blocked", ("tcp",), ("tcp",), marks=pytest.mark.slow),
        pytest.param("fully-random", "fully-random", ("udp",), ("tcp",), marks=pytest.mark.slow),
    ],
)
def test_only_turn_is_left(
    stage: MakeStage, nat_a: str, nat_b: str, ours: tuple[str, ...], bobs: tuple[str, ...]
) -> None:
    made = stage(nat_a, nat_b, bob=bobs)
    dials = made.dial(2, techniques=("turn",), **made.turn(*ours))
    assert ways(dials) == OVER_TURN
    print([round(dialled.seconds / PATH_RTT, 1) for dialled in dials], "path RTT")


@pytest.mark.slow
def test_a_server_of_either_side_ends_the_wait_for_a_direct_path(stage: MakeStage) -> None:
    """Everything is allowed but the broker's relay: TURN is used when the grace of six round trips is over."""
    made = stage("fully-random", "fully-random")
    techniques = tuple(name for name in Config().techniques if name != "relay")
    dials = made.dial(5, techniques=techniques, **made.turn("udp"))
    assert ways(dials) == OVER_TURN
    assert statistics.median(dialled.seconds for dialled in dials) < 3
    print([round(dialled.seconds, 2) for dialled in dials])


@pytest.mark.slow
def test_relay_only_over_turn(stage: MakeStage) -> None:
    made = stage("default", "default", bob=("tcp",), relay="only", techniques=("turn",))
    assert ways(made.dial(2, relay="only", **made.turn("udp"))) <= {*OVER_TURN, ("relay", "relay", "relay")}
