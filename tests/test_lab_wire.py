"""The lab's wire: its delay and its speed."""

from __future__ import annotations

import os

import lab_programs as programs
import pytest

from ntcpsock.testing.natlab import Lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = pytest.mark.lab

TELL = 7000
FILE = 7001
MIB = 1 << 20
SCHEDULING = 0.2  # seconds that a busy machine may add


def open_or_skip(nat_lab: NatLabFactory, delay: float, device: str) -> Lab:
    if device == "tun" and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun is not ours to open")
    return nat_lab("default", "none", delay=delay, device=device)


@pytest.mark.parametrize("device", ["tun", "packet"])
@pytest.mark.parametrize("delay", [0.0, 0.025])
def test_round_trip_time(nat_lab: NatLabFactory, delay: float, device: str) -> None:
    lab = open_or_skip(nat_lab, delay, device)
    for target, links in ((lab.server, 2), (lab.host_b, 4)):
        target.start(programs.tell_addresses, [target.address], TELL)
        target.call(programs.seen_by_tcp, (target.address, TELL), 0)
        median = lab.host_a.call(programs.median_round_trip, (target.address, TELL), 9)
        assert links * delay <= median < links * delay + SCHEDULING
    assert lab.path_rtt == 4 * delay


@pytest.mark.parametrize("device", ["tun", "packet"])
def test_bytes_arrive_whole(nat_lab: NatLabFactory, device: str) -> None:
    lab = open_or_skip(nat_lab, 0.025, device)
    sent = lab.host_b.start(programs.send_file, FILE, 64 * MIB)
    digest, size, _ = lab.host_a.call(programs.receive_file, (lab.host_b.address, FILE), timeout=120)
    assert size == 64 * MIB
    assert digest == sent.result(programs.PATIENCE)
    counters = lab.wire_counters()
    assert len(counters) == 4
    # Into side A, out of side B: whole; unsegmented packets, or there would be 46,000.
    for direction in (counters[1], counters[2]):
        assert direction["carried_bytes"] > 64 * MIB
        assert direction["carried_packets"] < 20_000
    assert all(direction["dropped_packets"] == 0 for direction in counters)
