"""Paths over UDP between two hosts behind real NATs, with 25 ms links: a path RTT of 100 ms."""

from __future__ import annotations

import statistics
from pathlib import Path

import peer_programs as programs
import pytest
from lab_stage import start_servers

from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATH_RTT = 0.1
# Where round trips are counted: computing on a slow machine must not look like one more of them.
LONG_RTT = 0.6


def udp_ways(dials: list[programs.Dialled]) -> set[tuple[str, str, str]]:
    return {(dialled.kind, dialled.technique, dialled.technique_there) for dialled in dials}


@pytest.mark.parametrize(("nat_a", "nat_b"), [("default", "default")])
def test_try(nat_lab: NatLabFactory, tmp_path: Path, nat_a: str, nat_b: str) -> None:
    made = start_servers(nat_lab(nat_a, nat_b, delay=LONG_RTT / 4), tmp_path)
    made.listen()
    dials = made.dial(5, techniques=("udp-punch",))
    for d in dials:
        print(d)
    assert udp_ways(dials) == {("udp", "udp-punch", "udp-punch")}
    print(statistics.median(d.seconds for d in dials) / LONG_RTT)
