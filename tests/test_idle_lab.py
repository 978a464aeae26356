"""What an idle stream sends, in the lab: what keeps its path, and nothing else."""

from __future__ import annotations

import struct
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest
import udp_programs
from lab_stage import start_servers

from ntcpsock._session.quic.carrier import KEEP_ALIVE as QUIC_KEEP_ALIVE
from ntcpsock._traversal.checks.machine import CONSENT_INTERVAL
from ntcpsock._traversal.punch.driver import KEEP_ALIVE as TCP_KEEP_ALIVE
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]

#: Seconds until the last questions after the last byte are over, and for which is counted then.
SETTLING = 5.0
SILENCE = 40.0

# A consent check of either end and its answer come from here, the first 0.8 intervals after the one before; a PING of
# either end and its acknowledgement.
OVER_UDP = 2 * (SILENCE / (0.8 * CONSENT_INTERVAL) + 1) + 2 * (SILENCE / QUIC_KEEP_ALIVE + 1)


@pytest.mark.parametrize(
    ("techniques", "most"),
    [(("tcp-open",), 0), (("udp-punch",), OVER_UDP)],
)
def test_an_idle_stream_sends_its_keep_alive_and_nothing_else(
    nat_lab: NatLabFactory, tmp_path: Path, techniques: tuple[str, ...], most: float
) -> None:
    assert TCP_KEEP_ALIVE["TCP_KEEPIDLE"] > SETTLING + SILENCE  # the kernel's own is not due yet
    lab = nat_lab("default", "default", delay=0.025, record=True)
    made = start_servers(lab, tmp_path, tcp=True)
    settings: dict[str, Any] = {"techniques": techniques, "relay": "never"}
    made.listen(**settings)
    flag = tmp_path / "flag"
    running = lab.host_a.start(udp_programs.stay, made.config(**settings), "bob", flag, 1)
    udp_programs.wait_for(flag.with_suffix(".0.done"))
    lab.host_a.call(udp_programs.be_silent, SETTLING)
    begin = time.monotonic()
    lab.host_a.call(udp_programs.be_silent, SILENCE)
    seen = [item for item in lab.sightings() if item.event == "sent" and begin <= item.time < begin + SILENCE]
    flag.with_suffix(".1").touch()
    technique, _ = running.result(programs.PATIENCE * 2)
    assert technique == techniques[0]
    assert seen  # such as what the broker hears
    for host, router in ((lab.host_a, lab.nat_b), (lab.host_b, lab.nat_a)):
        far = IPv4Address(router.public_address).packed
        lengths = [
            struct.unpack_from("!H", item.packet, 2)[0]
            for item in seen
            if item.place == host.name and item.packet[16:20] == far
        ]
        print(f"{technique}: {len(lengths)} packets of {sum(lengths)} bytes leave {host.name}")
        assert len(lengths) <= most
