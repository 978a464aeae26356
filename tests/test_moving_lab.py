"""Streams whose path is taken away while they carry data both ways, in the lab: not a byte is lost or doubled."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moving_programs as programs
import pytest
from lab_stage import Stage, start_servers
from moving_programs import Transfer

from ntcpsock.testing.natlab import Host, Lab, Place, Router
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SIZE = 6_000_000


def ip(place: Place, *commands: str) -> None:
    for command in commands:
        place.run(["ip", *command.split()], check=True)


def change_address(host: Host, last: int = 77) -> None:
    """Another lease of the same router."""
    network = host.address.rpartition(".")[0]
    ip(
        host,
        f"address add {network}.{last}/24 dev eth0",
        f"address del {host.address}/24 dev eth0",
        f"address replace {network}.{last}/24 dev eth0",
        f"route replace default via {network}.1",
    )


class Moving:
    """A transfer under way between the lab's two hosts."""

    def __init__(self, lab: Lab, stage: Stage, tmp_path: Path, size: int = SIZE, **settings: Any) -> None:
        self.lab = lab
        self.stage = stage
        self._signals = tmp_path / "signals"
        self._signals.mkdir()
        self._outcome = tmp_path / "outcome"
        self.listener = lab.host_b.start(
            programs.listen, stage.config("bob", **settings), self._signals, size, self._outcome
        )
        programs.wait_for(self._signals / "listening")
        self._running = lab.host_a.start(
            programs.transfer, stage.config(**settings), "bob", self._signals, size
        )
        programs.wait_for(self._signals / "under-way")

    def restart_servers(self) -> None:
        """With the same key, and with no memory of anybody."""
        self.lab.server.terminate()
        self.lab.server.reap()
        start_servers(self.lab, self.stage.directory, tcp=True)

    def end(self) -> tuple[Transfer, Transfer]:
        """Both ends' outcome, which must be whole."""
        dialler = self._running.result(200)
        print(dialler)
        path = self._outcome.with_suffix(".1")
        programs.wait_for(path, 100)
        listener: Transfer = eval(path.read_text(), {"Transfer": Transfer, "inf": float("inf")})
        assert not dialler.error
        assert not listener.error
        assert dialler.sent == listener.received
        assert dialler.received == listener.sent
        print(listener)
        return dialler, listener


Open = Callable[..., Moving]


@pytest.fixture
def moving(nat_lab: NatLabFactory, tmp_path: Path) -> Open:
    def make(
        nat_a: str = "default",
        nat_b: str = "default",
        *,
        wishes: Any = None,
        size: int = SIZE,
        **settings: Any,
    ) -> Moving:
        lab = nat_lab(nat_a, nat_b, **(wishes or {}))
        return Moving(lab, start_servers(lab, tmp_path, tcp=True), tmp_path, size, **settings)

    return make


@pytest.mark.parametrize("who", ["dialler", "listener", "both"])
def test_an_address_changes(moving: Open, who: str) -> None:
    made = moving()
    if who != "listener":
        change_address(made.lab.host_a)
    if who != "dialler":
        change_address(made.lab.host_b)
    dialler, listener = made.end()
    assert dialler.moves
    assert listener.moves


@pytest.mark.parametrize("router", ["dialler's", "listener's"])
def test_a_router_forgets_its_mappings(moving: Open, router: str) -> None:
    made = moving()
    (made.lab.nat_a if router == "dialler's" else made.lab.nat_b).flush_mappings()
    made.end()


def test_the_relay_is_restarted(moving: Open) -> None:
    """Random ports at both sides: there is no other way than the relay, which comes back with the broker."""
    made = moving("random", "random")
    made.restart_servers()
    dialler, _ = made.end()
    assert dialler.first == "relay"
    assert "relay" in dialler.moves


def block(host: Host, router: Router, what: str = "") -> None:
    """Nothing leaves `host` for what lies behind `router`. what: "tcp" or "udp" only."""
    match = f"meta l4proto {what}" if what else ""
    rule = f"ip daddr {router.public_address} {match} drop"
    host.run(
        [
            "nft",
            "add table ip blocked; add chain ip blocked out { type filter hook output priority 0; };"
            f" add rule ip blocked out {rule}",
        ],
        check=True,
    )


def unblock(*hosts: Host) -> None:
    for host in hosts:
        host.run(["nft", "delete table ip blocked"], check=True)


def test_from_the_relay_to_a_direct_path(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    lab = nat_lab("default", "default")
    block(lab.host_a, lab.nat_b)
    block(lab.host_b, lab.nat_a)
    made = Moving(lab, start_servers(lab, tmp_path, tcp=True), tmp_path, 24 * SIZE)
    unblock(lab.host_a, lab.host_b)
    dialler, _ = made.end()
    assert dialler.first == "relay"
    assert dialler.reasons[0] == "a direct path"
    assert "relay" not in dialler.moves


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_one_transport_is_blocked_midway(moving: Open, transport: str) -> None:
    """The other one goes on."""
    made = moving(prefer=transport)
    block(made.lab.host_a, made.lab.nat_b, transport)
    block(made.lab.host_b, made.lab.nat_a, transport)
    dialler, _ = made.end()
    assert dialler.first.startswith(transport)
    assert dialler.moves
    assert not dialler.moves[-1].startswith(transport)


@pytest.mark.slow
def test_twenty_seconds_of_black_out(moving: Open) -> None:
    made = moving()
    hosts = made.lab.host_a, made.lab.host_b
    for host in hosts:
        host.run(
            [
                "nft",
                "add table ip blocked; add chain ip blocked out"
                " { type filter hook output priority 0; policy drop; };",
            ],
            check=True,
        )
    time.sleep(20)
    unblock(*hosts)
    dialler, _ = made.end()
    assert dialler.pause >= 19


@pytest.mark.slow
def test_the_broker_is_gone_before_the_path(moving: Open) -> None:
    """The candidates for the next path travel over the stream that shall move, while that has a carrier: from UDP to
    TCP no broker is asked."""
    made = moving(prefer="first", size=4 * SIZE)
    made.lab.server.terminate()
    made.lab.server.reap()
    dialler, _ = made.end()
    assert dialler.moves == ("tcp-open",)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["dialler", "listener", "both"])
def test_the_broker_is_gone_before_the_address(moving: Open, who: str) -> None:
    """Nobody can tell either end where the other one is: both go by what they agreed before."""
    made = moving(size=20 * SIZE)
    made.lab.server.terminate()
    made.lab.server.reap()
    if who != "listener":
        change_address(made.lab.host_a)
    if who != "dialler":
        change_address(made.lab.host_b)
    dialler, listener = made.end()
    assert dialler.moves == listener.moves == ("tcp-open",)


def test_first_over_udp_then_over_tcp(moving: Open) -> None:
    made = moving(prefer="first")
    dialler, listener = made.end()
    assert dialler.first == "udp-punch"
    assert dialler.moves == listener.moves == ("tcp-open",)
    assert dialler.reasons == ("a path over TCP",)
