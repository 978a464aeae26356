"""Peers that lie about where they are: what a victim, the servers and we ourselves get, counted packet by packet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_programs as hostile
import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Host, Lab
from ntcpsock.testing.natlab.place import RunningCall
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

VICTIM = "11.22.55.77"  # a third address of the server host, where no server is
INNOCENT_PORT = 30000  # liars name ports above


class Watch:
    """Counts what arrives at a host for some addresses, from its making until `stop`."""

    def __init__(self, host: Host, targets: tuple[str, ...], directory: Path) -> None:
        self._stop = directory / f"stop-{host.name}"
        ready = directory / f"ready-{host.name}"
        self._running: RunningCall[list[hostile.Packet]] = host.start(
            hostile.watch, targets, str(ready), str(self._stop)
        )
        host.call(_wait_for_file, str(ready))

    def stop(self) -> list[hostile.Packet]:
        self._stop.touch()
        return self._running.result(programs.PATIENCE)


def _wait_for_file(path: str) -> None:
    deadline = time.monotonic() + programs.PATIENCE
    while not Path(path).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def world(nat_lab: NatLabFactory, tmp_path: Path) -> tuple[Lab, Callable[..., Config]]:
    """A lab with servers, a silent victim beside them, and what makes configurations of nodes."""
    lab = nat_lab("default", "default", delay=0.005)
    lab.server.run(["ip", "address", "add", f"{VICTIM}/24", "dev", "eth0"], check=True)
    silence = "chain i { type filter hook input priority 0; ip daddr " + VICTIM + " drop; }"
    lab.server.run(["nft", f"table ip victim {{ {silence}; }}"], check=True)
    key = load_identity(tmp_path / "servers" / "broker.key").public_key
    lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
    lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
    uri = str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key))

    def config(name: str | None = None, **settings: Any) -> Config:
        return Config(broker=uri, name=name, state_dir=tmp_path / (name or "client"), **settings)

    return lab, config


def lies(lab: Lab, believer: Host) -> list[str]:
    """Everything that a liar may name: of these the victim alone may be checked."""
    return [
        VICTIM,
        *lab.server_addresses,
        "127.0.0.1",
        believer.address,
        "224.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
    ]


def assert_harmless(
    lab: Lab, at_servers: list[hostile.Packet], at_home: list[hostile.Packet], checks: int
) -> None:
    at_victim = [packet for packet in at_servers if packet.target == VICTIM]
    assert all(packet.is_syn for packet in at_victim), at_victim
    assert len(at_victim) <= checks, Counter(packet.port for packet in at_victim)
    aimed = [packet for packet in at_servers if packet.target != VICTIM and packet.port >= INNOCENT_PORT]
    assert [packet for packet in aimed if packet.is_syn] == []
    assert [packet for packet in at_home if packet.is_syn] == []


@pytest.mark.parametrize(("dials", "rounds"), [pytest.param(1, 16, marks=pytest.mark.slow), (40, 4)])
def test_a_lying_dialer(
    world: tuple[Lab, Callable[..., Config]], tmp_path: Path, dials: int, rounds: int
) -> None:
    """However many dials and rounds there are, a check a second reaches the victim, and one in a single dial."""
    lab, config = world
    lab.host_b.start(programs.run_listener, config("bob"))
    hosts = lies(lab, lab.host_b)
    begin = time.monotonic()
    servers = Watch(lab.server, (VICTIM, *lab.server_addresses), tmp_path)
    home = Watch(lab.host_b, ("127.0.0.1", "169.254.169.254", "224.0.0.1"), tmp_path)
    offers = lab.host_a.call(hostile.dial_with_lies, config(), "bob", hosts, dials, rounds, timeout=300)
    assert offers == dials * rounds
    # The listener goes on to serve others; when they have come through all its checks have left.
    assert len(lab.host_a.start(programs.dial_many, config(), "bob", 2).result(300)) == 2
    at_servers, at_home = servers.stop(), home.stop()
    seconds = time.monotonic() - begin
    assert_harmless(lab, at_servers, at_home, 1 if dials == 1 else int(seconds) + 1)
    assert any(packet.target == VICTIM for packet in at_servers)  # the watch does see


def test_a_lying_listener(world: tuple[Lab, Callable[..., Config]], tmp_path: Path) -> None:
    """One check a dial."""
    lab, config = world
    hosts = lies(lab, lab.host_b)
    lab.host_a.start(hostile.listen_with_lies, config("mallory"), hosts)
    servers = Watch(lab.server, (VICTIM, *lab.server_addresses), tmp_path)
    home = Watch(lab.host_b, ("127.0.0.1", "169.254.169.254", "224.0.0.1"), tmp_path)
    outcomes = lab.host_b.start(
        hostile.dial_liar, config(techniques=("public", "tcp-open")), "mallory", 2
    ).result(300)
    at_servers, at_home = servers.stop(), home.stop()
    assert len(outcomes) == 2
    # The first dial of all, which waits until the liar is registered, is one as well.
    assert_harmless(lab, at_servers, at_home, 3)
    assert any(packet.target == VICTIM for packet in at_servers)
