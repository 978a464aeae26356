"""Our checks against another ICE agent's, through NATs: aioice."""

from __future__ import annotations

from pathlib import Path

import aioice_programs
import peer_programs
import pytest

from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.mark.parametrize("we_lead", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_aioice(nat_lab: NatLabFactory, tmp_path: Path, we_lead: bool) -> None:
    exchange(nat_lab, tmp_path, we_lead, not we_lead, silence=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("both_lead", [True, False])
def test_aioice_and_we_settle_a_role_conflict(
    nat_lab: NatLabFactory, tmp_path: Path, both_lead: bool
) -> None:
    exchange(nat_lab, tmp_path, both_lead, both_lead, silence=0.0)


@pytest.mark.slow
def test_aioice_and_we_keep_a_silent_path(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """Each asks the other for consent (RFC 7675) for longer than it would go on without."""
    exchange(nat_lab, tmp_path, True, False, silence=35.0)


def exchange(nat_lab: NatLabFactory, directory: Path, we_lead: bool, they_lead: bool, silence: float) -> None:
    lab = nat_lab("default", "default", delay=0.01)
    lab.server.start(peer_programs.run_servers, lab.server_addresses, directory / "servers")
    lab.server.call(peer_programs.wait_for_servers, lab.server_addresses[0])
    server = (lab.server_addresses[0], peer_programs.STUN_PORT)
    ours = lab.host_a.start(aioice_programs.run_ours, directory, server, we_lead, silence)
    theirs = lab.host_b.start(aioice_programs.run_aioice, directory, server, they_lead, silence)
    patience = 2 * aioice_programs.PATIENCE + silence
    received, remote = ours.result(patience)
    assert received == [b"\x40 from aioice", b"\x40 still here"]
    assert theirs.result(patience) == b"\x40 from ours"
    assert remote == lab.public_address_b
