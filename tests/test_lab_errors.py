"""Errors, sequence numbers, hop counts, fragments and time-outs at the user-space NAT, seen from outside."""

from __future__ import annotations

from pathlib import Path

import lab_probes as probes
import lab_programs as programs
import pytest

from ntcpsock.testing.natlab import Lab, Link
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = pytest.mark.lab

TELL = 7000
DELAY = 0.002
STRAY_TIMEOUT = 1.5


def start_teller(lab: Lab) -> programs.Address:
    lab.server.start(programs.tell_addresses, list(lab.server_addresses), TELL)
    lab.server.call(programs.seen_by_tcp, (lab.server_addresses[1], TELL), 0)
    return lab.server_addresses[0], TELL


def try_then_listen(lab: Lab, ready: Path, *, ttl: int = 64, patience: float = 5.0) -> tuple[str, str]:
    """Host A connects to host B in vain, then listens on the same port; B connects there from the port that A
    tried. What A's connect got, and B's."""
    listening = lab.host_a.start(
        probes.connect_then_listen,
        (lab.nat_b.public_address, 4402),
        4401,
        ttl,
        patience,
        str(ready),
        2 * STRAY_TIMEOUT,
    )
    while not ready.exists():
        assert listening.process.poll() is None
    target = (lab.nat_a.public_address, 4401)
    knock = lab.host_b.call(probes.knock_from, ("0.0.0.0", 4402), target, STRAY_TIMEOUT)
    outcome, peer = listening.result(programs.PATIENCE)
    assert (peer != "nobody") or knock != "connected"
    return outcome, knock


@pytest.mark.parametrize(
    ("words", "knock"),
    [("eim", "connected"), pytest.param("eim+icmp-kills", "timeout", marks=pytest.mark.slow)],
)
def test_what_an_icmp_error_does(nat_lab: NatLabFactory, tmp_path: Path, words: str, knock: str) -> None:
    """A SYN that dies on the public segment brings a time exceeded, translated back to its sender."""
    lab = nat_lab(words, "none", delay=DELAY)
    assert try_then_listen(lab, tmp_path / "ready", ttl=2) == ("EHOSTUNREACH", knock)


@pytest.mark.parametrize(
    ("words", "knock"),
    [
        ("eim", "connected"),
        ("eim+rst-kills", "timeout"),
        pytest.param("eim+conntrack", "timeout", marks=pytest.mark.slow),
    ],
)
def test_what_an_rst_does(nat_lab: NatLabFactory, tmp_path: Path, words: str, knock: str) -> None:
    """A refused connect, then the peer's SYN, which conntrack calls invalid."""
    lab = nat_lab(words, "none", delay=DELAY)
    assert try_then_listen(lab, tmp_path / "ready") == ("ECONNREFUSED", knock)


@pytest.mark.parametrize(
    ("words", "knock"),
    [
        pytest.param("eim", "connected", marks=pytest.mark.slow),
        ("eim+conntrack", "timeout"),
        pytest.param("default", "timeout", marks=pytest.mark.slow),
    ],
)
def test_sequence_check(nat_lab: NatLabFactory, tmp_path: Path, words: str, knock: str) -> None:
    """A connect that was given up, then a listener: its SYN-ACK has another number, at which both engines balk."""
    lab = nat_lab(words, "eim", delay=DELAY)
    assert try_then_listen(lab, tmp_path / "ready", patience=0.3) == ("timeout", knock)


def test_time_outs_and_lifetime(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("random+idle=0.4", "random+idle=60+lifetime=0.4", delay=DELAY)
    server = start_teller(lab)
    for host, router in ((lab.host_a, lab.nat_a), (lab.host_b, lab.nat_b)):
        before = host.call(programs.seen_by_udp, server, 4701)
        # Starting the next process takes a moment; the table says when the mapping is gone.
        while router.mappings():
            continue
        assert host.call(programs.seen_by_udp, server, 4701) != before


def test_time_to_live(nat_lab: NatLabFactory) -> None:
    """Each router counts, and its complaint comes back through the NATs."""
    lab = nat_lab("cgn", "linux", cgn_a="cgn", delay=DELAY)
    hops = lab.host_a.call(probes.hop_answers, (lab.public_address_b, 4800), [1, 2, 3])
    assert hops[0] == "10.1.0.1"
    assert hops[1].startswith("100.64.")
    assert hops[2] == "11.22.0.1"


def test_errors_from_behind_the_nat(nat_lab: NatLabFactory) -> None:
    """The complaints of the router (hops) and of the host (closed port) come from the public address, about the
    packet as it was sent: else the sender's kernel would not know whose they are."""
    lab = nat_lab("full-cone+preserving=1000", "none", delay=DELAY)
    server = start_teller(lab)
    mapped = lab.host_a.call(programs.seen_by_udp, server, 4801)
    assert mapped == (lab.nat_a.public_address, 5801)
    assert lab.server.call(probes.hop_answers, mapped, [2, 64]) == [lab.nat_a.public_address] * 2
    stray = (lab.nat_a.public_address, 5802)
    assert lab.server.call(probes.hop_answers, stray, [64]) == [""]


def test_large_datagrams(nat_lab: NatLabFactory) -> None:
    """Fragments pass both NATs, and a narrow link makes more of them (RFC 4787 REQ-13, REQ-14)."""
    lab = nat_lab("random", "none", link_a=Link(DELAY, mtu=1280))
    lab.host_b.start(probes.echo_datagrams, ("0.0.0.0", 4900))
    lab.host_b.start(probes.echo_datagrams, ("0.0.0.0", 4901))
    for size in (100, 1400, 20000):
        assert lab.host_a.call(probes.ask_with, size, (lab.host_b.address, 4900)) == size


@pytest.mark.parametrize("device", ["auto", pytest.param("packet", marks=pytest.mark.slow)])
def test_path_mtu(nat_lab: NatLabFactory, device: str) -> None:
    """TCP finds the size that fits through NATs on both sides: their routers' complaints are translated."""
    narrow = Link(DELAY, mtu=1300, loss=0.0001)
    lab = nat_lab("full-cone", "none", link_a=narrow, link_b=Link(DELAY), device=device, seed=1)
    sent = lab.host_b.start(programs.send_file, 4950, 1 << 21)
    digest, size, _ = lab.host_a.call(programs.receive_file, (lab.host_b.address, 4950), timeout=60)
    assert (size, digest) == (1 << 21, sent.result(programs.PATIENCE))


@pytest.mark.parametrize("late", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_simultaneous_open(nat_lab: NatLabFactory, late: float) -> None:
    lab = nat_lab("linux", "openwrt")
    calls = [
        host.start(programs.punch, 4001, (peer.public_address, 4001), lab.path_rtt, word, skew)
        for host, peer, word, skew in (
            (lab.host_a, lab.nat_b, b"from a", 0.0),
            (lab.host_b, lab.nat_a, b"from b", late),
        )
    ]
    assert [call.result(2 * programs.PATIENCE)[0] for call in calls] == [b"from b", b"from a"]


def test_restart(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("random", "random+udp:eim", delay=DELAY)
    server = start_teller(lab)
    before = lab.host_b.call(programs.seen_by_udp, server, 4002)
    assert lab.host_b.call(programs.seen_by_udp, server, 4002) == before
    lab.nat_b.flush_mappings()
    assert lab.nat_b.mappings() == []
    assert lab.host_b.call(programs.seen_by_udp, server, 4002) != before
    with pytest.raises(ValueError, match="real Linux router"):
        lab.nat_a.mappings()
