"""Nodes whose network changes, in the lab: dialled by name again, and dialling, without anybody's help.

Nobody measures time here: everything has to come about, within generous limits. The nodes have no privileges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import network_programs as programs
import pytest
from lab_stage import Stage, start_servers

from ntcpsock.testing.natlab import Host, Lab, Place, Router
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

NEW_HOST = 77


def ip(place: Place, *commands: str) -> None:
    for command in commands:
        place.run(["ip", *command.split()], check=True)


def change_address(host: Host) -> None:
    """Another lease of the same router."""
    network = host.address.rpartition(".")[0]
    ip(
        host,
        f"address add {network}.{NEW_HOST}/24 dev eth0",
        f"address del {host.address}/24 dev eth0",
        f"address replace {network}.{NEW_HOST}/24 dev eth0",
        f"route replace default via {network}.1",
    )


def change_network(host: Host) -> None:
    """From one uplink of a multi-homed host to the other: the first one's cable is pulled."""
    ip(host, "link set eth0 down")


def change_public_address(router: Router) -> None:
    """A new lease of the provider's: inside nothing has changed."""
    network = router.public_address.rpartition(".")[0]
    ip(
        router,
        f"address add {network}.3/32 dev wan0",
        f"address del {router.public_address}/32 dev wan0",
    )


class Pair:
    """A listener on host B and a dialler on host A, ready for a change."""

    def __init__(self, lab: Lab, stage: Stage, signals: Path, **settings: Any) -> None:
        self.lab = lab
        self.signals = signals
        lab.host_b.start(programs.run_listener, stage.config("bob", **settings), signals, True)
        programs.wait_for(signals / "listening")
        config = stage.config(**settings)
        self._dialler = lab.host_a.start(programs.dial_after, config, "bob", signals, True)
        programs.wait_for(signals / "ready")

    def go(self) -> programs.Moved:
        """All has changed; how the dialler got through, and when the listener had been seen again."""
        (self.signals / "go").touch()
        moved = self._dialler.result(120.0)
        programs.wait_for(self.signals / "registered")
        return moved


def open_pair(
    nat_lab: NatLabFactory, tmp_path: Path, kind: str = "default", *, settings: Any = None, **wishes: Any
) -> Pair:
    lab = nat_lab(kind, kind, **wishes)
    signals = tmp_path / "signals"
    signals.mkdir()
    return Pair(lab, start_servers(lab, tmp_path, tcp=True), signals, **(settings or {}))


# Without the system's news nothing would be noticed before all patience is over.
NEWS_ONLY = {"keep_alive_interval": 300.0}

TRANSPORTS = {"udp": "default", "tcp": "udp-blocked"}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "who",
    [
        "both",
        pytest.param("listener", marks=pytest.mark.slow),
        pytest.param("dialler", marks=pytest.mark.slow),
    ],
)
def test_the_own_address_changes(nat_lab: NatLabFactory, tmp_path: Path, who: str, transport: str) -> None:
    pair = open_pair(nat_lab, tmp_path, TRANSPORTS[transport], settings=NEWS_ONLY)
    if who in ("listener", "both"):
        change_address(pair.lab.host_b)
    if who in ("dialler", "both"):
        change_address(pair.lab.host_a)
    moved = pair.go()
    assert moved.transport == transport
    if who == "listener":
        assert moved.changes == ()
    else:
        network = pair.lab.host_a.address.rpartition(".")[0]
        assert moved.changes[0].gone == {pair.lab.host_a.address}
        assert moved.changes[0].new == {f"{network}.{NEW_HOST}"}


def test_from_one_network_to_another(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """The dialler's first uplink goes away: the broker, and the listener, see it behind another router."""
    pair = open_pair(nat_lab, tmp_path, second_a="default", settings=NEWS_ONLY)
    change_network(pair.lab.host_a)
    moved = pair.go()
    assert moved.transport == "udp"
    assert pair.lab.host_a.addresses[0] in moved.changes[0].gone
    assert moved.changes[0].route_changed


@pytest.mark.slow
def test_a_default_route_by_another_router(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """Both uplinks stay up, and another one is the default."""
    pair = open_pair(nat_lab, tmp_path, second_a="default", settings=NEWS_ONLY)
    host = pair.lab.host_a
    network = host.addresses[1].rpartition(".")[0]
    ip(host, f"route replace default via {network}.1 dev eth1 metric 0")
    moved = pair.go()
    assert moved.changes[0].route_changed
    assert not moved.changes[0].gone


def test_the_router_has_another_public_address(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """Nothing changes in the hosts: their keep-alives notice."""
    pair = open_pair(nat_lab, tmp_path, settings={"keep_alive_interval": 2.0})
    change_public_address(pair.lab.nat_b)
    change_public_address(pair.lab.nat_a)
    moved = pair.go()
    assert moved.transport == "udp"


@pytest.mark.parametrize("kind", ["eim+random", pytest.param("default", marks=pytest.mark.slow)])
def test_the_routers_forget_everything(nat_lab: NatLabFactory, tmp_path: Path, kind: str) -> None:
    pair = open_pair(nat_lab, tmp_path, kind, settings={"keep_alive_interval": 2.0})
    pair.lab.nat_a.flush_mappings()
    pair.lab.nat_b.flush_mappings()
    pair.go()
