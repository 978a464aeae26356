"""QUIC on a path of the lab that loses packets, beside the kernel's TCP and a WebRTC data channel."""

from __future__ import annotations

import statistics

import pytest

from benchmarks import quic
from ntcpsock.testing.natlab import namespaces_available

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]


@pytest.mark.slow
def test_where_one_percent_gets_lost_quic_keeps_up_with_tcp() -> None:
    """The bars of the benchmark, half as strict: few and short rounds."""
    speeds = {series.name: statistics.median(series.values) for series in quic.lossy(seconds=6, rounds=3)}
    assert speeds["QUIC"] >= 0.25 * speeds["TCP (bbr)"]
    assert speeds["QUIC"] >= 2 * speeds["TCP (cubic)"]
    assert speeds["QUIC"] >= 1.5 * speeds["aiortc data channel"]
