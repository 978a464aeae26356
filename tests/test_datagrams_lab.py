"""Datagrams by name between two hosts behind real NATs, with 25 ms links: a path RTT of 100 ms."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import datagram_programs as programs
import pytest
from lab_stage import Stage, start_servers

from ntcpsock.testing.natlab import Link
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATH_RTT = 0.1
SIZES = (0, 1100, 4000, 20_000)


def echoing(nat_lab: NatLabFactory, tmp_path: Path, nat_a: str, nat_b: str, **settings: Any) -> Stage:
    made = start_servers(nat_lab(nat_a, nat_b, delay=PATH_RTT / 4), tmp_path)
    made.lab.host_b.start(programs.run_echo, made.config("bob", **settings))
    return made


def ask(made: Stage, name: str | None = None, **settings: Any) -> programs.Asked:
    running = made.lab.host_a.start(programs.ask, made.config(name, **settings), "bob", SIZES)
    asked: programs.Asked = running.result(programs.PATIENCE + 10)
    print(asked)
    return asked


@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [
        ("default", "default"),
        pytest.param("reject", "accept", marks=pytest.mark.slow),
        pytest.param("random", "eif", marks=pytest.mark.slow),
    ],
)
def test_through_two_nats(nat_lab: NatLabFactory, tmp_path: Path, nat_a: str, nat_b: str) -> None:
    asked = ask(echoing(nat_lab, tmp_path, nat_a, nat_b))
    assert (asked.kind, asked.technique) == ("udp", "udp-punch")
    # Over the path itself: one round trip, and no server on the way.
    assert asked.seconds < 2 * PATH_RTT
    assert asked.sizes == SIZES


@pytest.mark.parametrize(
    ("mtu", "smallest", "largest"),
    [
        # 1,452 bytes of UDP payload are probed for, and 1,200 go through everywhere.
        (1500, 1300, 1452),
        (1280, 1151, 1252),
    ],
)
def test_how_large_a_datagram_goes_uncut(
    nat_lab: NatLabFactory, tmp_path: Path, mtu: int, smallest: int, largest: int
) -> None:
    """A path of a smaller MTU takes smaller ones, and says so: IP_MTU, and EMSGSIZE."""
    made = start_servers(nat_lab("default", "default", link_a=Link(PATH_RTT / 4, mtu=mtu)), tmp_path)
    made.lab.host_b.start(programs.run_echo, made.config("bob"))
    sized = made.lab.host_a.start(programs.measure, made.config(), "bob", None).result(programs.PATIENCE + 10)
    (found,) = sized.largest
    print(sized)
    assert smallest <= found <= largest
    assert sized.whole == (True,)
    assert sized.refused[0][0] == errno.EMSGSIZE
    assert f"{found} go to bob.ntcp in one packet" in sized.refused[0][1]


def test_a_path_that_becomes_narrow(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """Nobody says a word, and what is larger is lost: the size falls, and what fits goes on arriving."""
    made = echoing(nat_lab, tmp_path, "default", "default")
    flag = tmp_path / "flag"
    running = made.lab.host_a.start(programs.measure, made.config(), "bob", flag)
    programs._wait_until(flag.exists)
    for router in (made.lab.nat_a, made.lab.nat_b):
        router.run(["ip", "link", "set", "dev", "wan0", "mtu", "1280"], check=True)
    flag.unlink()
    sized = running.result(2 * programs.PATIENCE)
    print(sized)
    assert sized.largest[0] > 1300
    assert sized.largest[1] <= 1252
    assert sized.whole == (True, True)


@pytest.mark.slow
def test_without_encryption(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    made = echoing(nat_lab, tmp_path, "default", "default", encryption="off")
    asked = ask(made, encryption="off")
    assert (asked.kind, asked.technique, asked.sizes) == ("udp", "udp-punch", SIZES)


@pytest.mark.slow
def test_both_ends_send_first(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    made = start_servers(nat_lab("default", "default", delay=PATH_RTT / 4), tmp_path)
    ends = [
        host.start(programs.ask_each_other, made.config(own), other)
        for host, own, other in ((made.lab.host_a, "alice", "bob"), (made.lab.host_b, "bob", "alice"))
    ]
    assert [end.result(programs.PATIENCE + 10) for end in ends] == [True, True]
