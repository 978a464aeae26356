"""Hosts with two ways to the Internet, in the lab: the default one, and another that their routing rules know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab_stage import start_servers, ways

from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

DELAY = 0.025
ONLY_PUNCHING: dict[str, Any] = {"techniques": ("tcp-open", "ipv6")}


@pytest.mark.parametrize("dials", ["host A", pytest.param("host B", marks=pytest.mark.slow)])
def test_the_second_uplink_is_used_where_the_default_one_cannot_be_punched(
    nat_lab: NatLabFactory, tmp_path: Path, dials: str
) -> None:
    lab = nat_lab("fully-random", "default", second_a="default", delay=DELAY)
    made = start_servers(lab, tmp_path)
    listener, dialler = (lab.host_b, lab.host_a) if dials == "host A" else (lab.host_a, lab.host_b)
    made.listen(listener, **ONLY_PUNCHING)
    dialled = made.dial(3, host=dialler, **ONLY_PUNCHING)
    assert ways(dialled) == {("tcp", "tcp-open", "tcp-open")}
    assert {dial.local for dial in dialled} == {dialler.addresses[-1]}


@pytest.mark.slow
def test_the_machines_own_choice_comes_first(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    lab = nat_lab("default", "default", second_a="default", delay=DELAY)
    made = start_servers(lab, tmp_path)
    made.listen(**ONLY_PUNCHING)
    assert {dial.local for dial in made.dial(2, **ONLY_PUNCHING)} == {lab.host_a.address}


@pytest.mark.slow
def test_a_second_uplink_with_ipv6(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """Of IPv6 the default uplink carries nothing, and no IPv4 NAT can be punched."""
    lab = nat_lab("fully-random", "fully-random", second_a="fully-random", ipv6="firewall", delay=DELAY)
    made = start_servers(lab, tmp_path)
    lab.public.run(["ip", "-6", "route", "replace", "blackhole", "2001:db8:33::/64"], check=True)
    made.listen(**ONLY_PUNCHING)
    dialled = made.dial(2, **ONLY_PUNCHING)
    assert ways(dialled) == {("ipv6", "ipv6", "ipv6")}
    assert {dial.local for dial in dialled} == {lab.host_a.addresses6[1]}
