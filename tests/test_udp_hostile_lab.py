"""A third host against a punched UDP path: forged, replayed and unknown datagrams, floods, and what comes back.

The listener's router lets everybody in, so that all of it arrives. The attacker knows both public endpoints, sends
under any address, and in part has read the path's datagrams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest
import udp_hostile_programs as hostile
from test_hostile_lab import VICTIM, _wait_for_file
from udp_hostile_programs import Counted, Seen, Throw
from udp_programs import wait_for

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Host, Lab
from ntcpsock.testing.natlab.place import RunningCall
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ATTACKER = "11.22.55.66"  # as the victim a further address of the server host, where no server is
PER_SECOND = 2000.0


class Sniffing:
    """Reads a host's datagrams until `stop`."""

    def __init__(self, host: Host, directory: Path, name: str) -> None:
        self._stop = directory / f"stop-{name}"
        ready = directory / f"ready-{name}"
        self._running: RunningCall[list[Seen]] = host.start(hostile.sniff, str(ready), str(self._stop))
        host.call(_wait_for_file, str(ready))

    def stop(self) -> list[Seen]:
        self._stop.touch()
        return self._running.result(programs.PATIENCE)


@dataclass
class Scene:
    """Alice has a stream to bob over a punched path."""

    lab: Lab
    directory: Path
    config: Callable[..., Config]
    listener: RunningCall[Counted]
    dialer: RunningCall[list[str]]
    checks: list[Seen]
    """What was seen of the path until it was up."""
    turns: int = 0

    @property
    def alice(self) -> tuple[str, int]:
        """As bob, and everybody, sees her: her router keeps her ports. She may have tried others before."""
        _, port = hostile.ends_of(self.flag, 0)["local"]
        return self.lab.public_address_a, int(str(port))

    @property
    def bob(self) -> tuple[str, int]:
        host, port = hostile.ends_of(self.flag, 0)["seen"]
        return str(host), int(str(port))

    @property
    def flag(self) -> Path:
        return self.directory / "flag"

    @property
    def hers(self) -> list[bytes]:
        """Her checks, as the attacker has read them."""
        return [check.payload for check in self.checks if (check.source, check.source_port) == self.alice]

    def attack(self, throws: list[Throw], per_second: float = PER_SECOND) -> int:
        (self.directory / "before").touch()
        return self.lab.server.call(hostile.throw, throws, per_second)

    def still_talks(self) -> None:
        """The stream goes on, and over the path that it had."""
        self.turns += 1
        self.flag.with_suffix(f".{self.turns}").touch()
        assert hostile.ends_of(self.flag, self.turns)["seen"] == hostile.ends_of(self.flag, 0)["seen"]

    def end(self, turns: int) -> Counted:
        while self.turns < turns:
            self.still_talks()
        assert self.dialer.result(programs.PATIENCE) == ["udp-punch"]
        return self.count()

    def count(self) -> Counted:
        (self.directory / "before").touch()
        (self.directory / "stop").touch()
        return self.listener.result(programs.PATIENCE)


TURNS = 2


@pytest.fixture
def world(nat_lab: NatLabFactory, tmp_path: Path) -> tuple[Lab, Callable[..., Config], RunningCall[Counted]]:
    """A lab with servers, a listener that counts, and addresses for an attacker and a victim."""
    lab = nat_lab("default", "full-cone", delay=0.005)
    for address in (ATTACKER, VICTIM):
        lab.server.run(["ip", "address", "add", f"{address}/24", "dev", "eth0"], check=True)
    silence = f"chain i {{ type filter hook input priority 0; ip daddr {{ {VICTIM}, {ATTACKER} }} drop; }}"
    lab.server.run(["nft", f"table ip silent {{ {silence}; }}"], check=True)
    key = load_identity(tmp_path / "servers" / "broker.key").public_key
    lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
    lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
    uri = str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key))

    def config(name: str | None = None, **settings: Any) -> Config:
        state = tmp_path / (name or "client")
        # The stream stays on the path that is attacked, or fails with it.
        only: dict[str, Any] = {"techniques": ("udp-punch",), "linger": 0.0}
        return Config(broker=uri, name=name, state_dir=state, **only, **settings)

    paths = str(tmp_path / "before"), str(tmp_path / "stop")
    listener = lab.host_b.start(hostile.listen_and_count, config("bob"), *paths)
    return lab, config, listener


@pytest.fixture
def scene(world: tuple[Lab, Callable[..., Config], RunningCall[Counted]], tmp_path: Path) -> Scene:
    lab, config, listener = world
    sniffing = Sniffing(lab.host_b, tmp_path, "path")
    flag = tmp_path / "flag"
    dialer = lab.host_a.start(hostile.hold, config(), "bob", flag, TURNS)
    hostile.ends_of(flag, 0)
    checks = [seen for seen in sniffing.stop() if seen.is_check]
    made = Scene(lab, tmp_path, config, listener, dialer, checks)
    assert made.hers
    return made


def at(sniffed: list[Seen], address: str, source: str) -> list[Seen]:
    return [seen for seen in sniffed if seen.target == address and seen.source == source]


def test_forged_checks(scene: Scene, tmp_path: Path) -> None:
    """From elsewhere and under the peer's own address, with the right names and without the password."""
    username = hostile.username_of(scene.hers[0])
    watching = Sniffing(scene.lab.server, tmp_path, "server")
    throws = [
        Throw(source, scene.bob, hostile.fake_check(username))
        for source in [(ATTACKER, 4000), (VICTIM, 4001), scene.alice] * 50
    ]
    scene.attack(throws)
    counted = scene.end(TURNS)
    seen = watching.stop()
    # None of them is answered, nor moves the path, nor makes a candidate of where it came from.
    assert [len(at(seen, address, scene.bob[0])) for address in (ATTACKER, VICTIM)] == [0, 0]
    assert counted.refused["wrong integrity"] >= 140
    assert counted.remotes == (scene.alice,)
    assert counted.ways <= 4


def test_replayed_checks(scene: Scene, tmp_path: Path) -> None:
    """Genuine ones, read on the way, from another address."""
    watching = Sniffing(scene.lab.server, tmp_path, "server")
    throws = [
        Throw(source, scene.bob, check)
        for check in scene.hers
        for source in [(ATTACKER, 4000), (VICTIM, 4001)]
    ]
    scene.attack(throws)
    counted = scene.end(TURNS)
    seen = watching.stop()
    assert [len(at(seen, address, scene.bob[0])) for address in (ATTACKER, VICTIM)] == [0, 0]
    assert counted.refused["a replayed check"] >= len(throws) - 2
    assert counted.remotes == (scene.alice,)


def test_answers_to_nothing(scene: Scene) -> None:
    """Responses that are replayed, or whose ids are guessed, count as what they are."""
    throws = []
    for check in scene.hers[:20]:
        response = b"\x01\x01" + check[2:]
        throws += [Throw(source, scene.bob, response) for source in ((ATTACKER, 4000), scene.alice)]
    scene.attack(throws)
    counted = scene.end(TURNS)
    assert sum(counted.refused.values()) + counted.dropped.get("response to nothing", 0) >= len(throws) - 2
    assert counted.remotes == (scene.alice,)


@pytest.mark.parametrize("count", [1500, 20_000])
def test_a_flood_at_the_punched_port(scene: Scene, tmp_path: Path, count: int) -> None:
    """Nothing of it is kept or answered; the stream goes on meanwhile."""
    watching = Sniffing(scene.lab.server, tmp_path, "server")
    sources = [(ATTACKER, 4000), (VICTIM, 4001), scene.alice]
    throws = [Throw(sources[number // 3 % 3], scene.bob, hostile.rubbish(number)) for number in range(count)]
    (scene.directory / "before").touch()
    flooding = scene.lab.server.start(hostile.throw, throws, PER_SECOND)
    scene.still_talks()
    flooding.result(programs.PATIENCE)
    counted = scene.end(TURNS)
    seen = watching.stop()
    assert [len(at(seen, address, scene.bob[0])) for address in (ATTACKER, VICTIM)] == [0, 0]
    # Early is what might be a dial's that is just under way.
    dropped = counted.dropped.get("unknown datagram", 0) + counted.dropped.get("early datagram", 0)
    assert dropped > count // 3, counted.dropped
    assert counted.kept <= 32
    assert counted.grown < 4_000_000  # the flood of 20,000 has 11 MB
    assert counted.remotes == (scene.alice,)


def test_a_dial_in_the_middle_of_a_flood(
    world: tuple[Lab, Callable[..., Config], RunningCall[Counted]], tmp_path: Path
) -> None:
    """Whoever floods the port that is in everybody's card keeps no dialer out."""
    lab, config, listener = world
    flag = tmp_path / "flag"
    first = lab.host_a.start(hostile.hold, config(), "bob", flag, 0)
    first.result(programs.PATIENCE)
    (tmp_path / "before").touch()
    told = tmp_path / "before.port"
    wait_for(told)
    bob = (lab.public_address_b, int(told.read_text()))  # its router keeps its ports
    throws = [Throw((ATTACKER, 4000), bob, hostile.rubbish(number)) for number in range(10_000)]
    flood = lab.server.start(hostile.throw, throws, PER_SECOND)
    dials = lab.host_a.start(programs.dial_many, config(), "bob", 4).result(programs.PATIENCE)
    assert [dialled.technique for dialled in dials] == ["udp-punch"] * 4
    flood.result(programs.PATIENCE)
    (tmp_path / "stop").touch()
    counted = listener.result(programs.PATIENCE)
    assert sum(counted.dropped.values()) > 0
    assert counted.kept <= 32


def test_nobody_is_hit_through_us(scene: Scene, tmp_path: Path) -> None:
    """What looks as if a victim had sent it brings the victim fewer octets than the attacker has spent: here none, and
    at the STUN servers' port not more than was asked with."""
    watching = Sniffing(scene.lab.server, tmp_path, "server")
    username = hostile.username_of(scene.hers[0])
    kinds = [hostile.fake_check(username), scene.hers[0], hostile.rubbish(0), hostile.rubbish(1)]
    throws = [Throw((VICTIM, 4001), scene.bob, payload) for payload in kinds * 50]
    spent = scene.attack(throws)
    counted = scene.end(TURNS)
    received = at(watching.stop(), VICTIM, scene.bob[0])
    assert spent > 50_000
    assert received == []
    assert sum(counted.refused.values()) >= 90
