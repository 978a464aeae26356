"""Labs with more than two plain NATs: carriers, one NAT for both, blocked networks, IPv6, two uplinks, bad links."""

from __future__ import annotations

import lab_probes as probes
import lab_programs as programs
import pytest

from ntcpsock.testing.natlab import Lab, Link, open_lab
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = pytest.mark.lab

TELL = 7000
DELAY = 0.002
SHORT = 1.0  # seconds without an answer that count as silence


def teller(lab: Lab, ports: tuple[int, ...] = (TELL,)) -> list[programs.Address]:
    for port in ports:
        lab.server.start(programs.tell_addresses, list(lab.server_addresses), port)
        lab.server.call(programs.seen_by_tcp, (lab.server_addresses[1], port), 0)
    return [(lab.server_addresses[0], port) for port in ports]


@pytest.mark.parametrize(
    ("nat", "cgn"), [("linux", "cgn"), pytest.param("default", "random", marks=pytest.mark.slow)]
)
def test_two_nats_in_a_row(nat_lab: NatLabFactory, nat: str, cgn: str) -> None:
    lab = nat_lab(nat, "none", cgn_a=cgn, delay=DELAY)
    server = teller(lab)[0]
    assert lab.cgn_a is not None
    assert lab.nat_a.public_address.startswith("100.64.")
    assert lab.public_address_a == lab.cgn_a.public_address == "11.22.33.2"
    assert lab.path_rtt == 4 * DELAY
    host, port = lab.host_a.call(programs.seen_by_tcp, server, 4001)
    assert host == lab.public_address_a
    assert port != 4001
    if cgn == "cgn":
        inner = {row["inner"] for row in lab.cgn_a.mappings() if row["protocol"] == "tcp"}
        assert inner == {(lab.nat_a.public_address, 4001)}
        assert lab.nat_a.mappings()[0]["inner"] == (lab.host_a.address, 4001)


@pytest.mark.parametrize(
    ("cgn", "hears"), [("cgn", True), pytest.param("symmetric", False, marks=pytest.mark.slow)]
)
def test_same_carrier(nat_lab: NatLabFactory, cgn: str, hears: bool) -> None:
    lab = nat_lab("full-cone", "full-cone", cgn_a=cgn, same_cgn=True, delay=DELAY)
    server = teller(lab)[0]
    assert lab.cgn_a is lab.cgn_b
    seen = {
        name: getattr(lab, name).call(programs.seen_by_udp, server, 4001) for name in ("host_a", "host_b")
    }
    assert {host for host, _ in seen.values()} == {lab.public_address_a} == {lab.public_address_b}
    other = lab.host_b.start(probes.exchange_datagrams, 4001, seen["host_a"], 3 * SHORT)
    heard = lab.host_a.call(probes.exchange_datagrams, 4001, seen["host_b"], 2 * SHORT)
    assert heard == ([seen["host_b"]] if hears else [])
    assert bool(other.result(programs.PATIENCE)) is hears
    # Inside the carrier's network a customer reaches another one's router directly.
    inner = (lab.nat_b.public_address, 4001)
    answering = lab.host_b.start(probes.echo_datagrams, ("0.0.0.0", 4001))
    assert lab.host_a.call(probes.ask_with, 10, inner) == 10
    answering.process.terminate()


@pytest.mark.slow
def test_private_networks_lead_nowhere(nat_lab: NatLabFactory) -> None:
    """No way around the NATs: what "gets through" to a private address would be a fault of the lab."""
    lab = nat_lab("full-cone", "full-cone", cgn_a="cgn", delay=DELAY)
    server = teller(lab)[0]
    for host in (lab.host_a, lab.host_b):
        host.call(programs.seen_by_udp, server, 4001)
    for host, target in ((lab.host_a, lab.host_b), (lab.host_b, lab.host_a)):
        heard = target.start(programs.receive_datagram, 4001, SHORT)
        host.call(programs.send_datagrams, (target.address, 4001), 5)
        assert heard.result(programs.PATIENCE) is None
    assert lab.host_b.call(programs.knock, (lab.nat_a.public_address, 4001), SHORT) == "timeout"


@pytest.mark.parametrize(
    "kind",
    ["proxy-only", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("udp-blocked", "only-443"))],
)
def test_blocked_networks(nat_lab: NatLabFactory, kind: str) -> None:
    lab = nat_lab(kind, "none", delay=DELAY)
    plain, https = teller(lab, (TELL, 443))
    assert lab.host_a.call(probes.ask_with, 3, plain, 1) == 0
    outcomes = [lab.host_a.call(programs.knock, target, SHORT) for target in (plain, https)]
    assert (
        outcomes
        == {
            "udp-blocked": ["connected", "connected"],
            "only-443": ["timeout", "connected"],
            "proxy-only": ["timeout", "timeout"],
        }[kind]
    )
    if kind == "proxy-only":
        assert lab.nat_a.proxy == ("10.1.0.1", 3128)
        seen = lab.host_a.call(probes.through_proxy, lab.nat_a.proxy, plain)
        assert seen.startswith("HTTP/1.1 200 ")
        assert f"\r\n\r\n{lab.nat_a.public_address} " in seen
    else:
        assert lab.nat_a.proxy is None
    assert lab.nat_a.drops()["outward"] > 0


@pytest.mark.parametrize(("kind_a", "kind_b"), [("linux", "default")])
@pytest.mark.parametrize(
    "ipv6",
    [
        pytest.param("open", marks=pytest.mark.slow),
        ("open", "firewall"),
        pytest.param(("none", "reject"), marks=pytest.mark.slow),
    ],
)
def test_ipv6(nat_lab: NatLabFactory, kind_a: str, kind_b: str, ipv6: str | tuple[str, str]) -> None:
    lab = nat_lab(kind_a, kind_b, ipv6=ipv6, cgn_a="cgn", delay=DELAY)
    of_a, of_b = (ipv6, ipv6) if isinstance(ipv6, str) else ipv6
    assert (lab.host_a.addresses6, lab.host_b.addresses6) == (
        () if of_a == "none" else ("2001:db8:33::10",),
        ("2001:db8:44::10",),
    )
    for place in (lab.host_b, lab.server):
        place.start(probes.listen6, TELL)
    while lab.host_b.call(probes.connect6, lab.server_addresses6[1], TELL, SHORT) != "2001:db8:44::10":
        continue
    if of_a != "none":
        assert lab.host_a.call(probes.connect6, lab.server_addresses6[0], TELL, SHORT) == "2001:db8:33::10"
        outcome = lab.host_a.call(probes.connect6, lab.host_b.addresses6[0], TELL, SHORT)
        assert outcome == {"open": "2001:db8:33::10", "firewall": "timeout", "reject": "ECONNREFUSED"}[of_b]
    else:
        stray = lab.server.call(probes.connect6, lab.host_b.addresses6[0], TELL, SHORT)
        assert stray == "ECONNREFUSED"


def test_multi_homed(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("linux", "none", second_a="mobile", ipv6="open", delay=DELAY)
    server = teller(lab)[0]
    assert lab.second_nat_a is not None
    assert lab.host_a.addresses == ("10.1.0.10", "10.3.0.10")
    assert len(lab.host_a.addresses6) == 2
    seen = [lab.host_a.call(probes.seen_from, (address, 4001), server) for address in lab.host_a.addresses]
    assert [host for host, _ in seen] == [lab.nat_a.public_address, lab.second_nat_a.public_address]
    assert seen[0][1] == 4001
    assert lab.host_a.call(programs.seen_by_tcp, server, 4002) == (lab.nat_a.public_address, 4002)


def test_bad_link(nat_lab: NatLabFactory) -> None:
    """Loss, duplicates, another order and jitter are seen by datagrams; a stream gets through whole."""
    bad = Link(DELAY, loss=0.1, duplication=0.1, reordering=0.1, jitter=0.002)
    lab = nat_lab("linux", "default", link_a=bad, link_b=Link(0.001), seed=5)
    assert lab.path_rtt == pytest.approx(0.006)
    lab.server.start(probes.echo_datagrams, (lab.server_addresses[0], 4900))
    lab.host_b.call(probes.ask_with, 10, (lab.server_addresses[0], 4900))
    distinct, answers, in_order, _ = lab.host_a.call(probes.round_trips, (lab.server_addresses[0], 4900), 300)
    assert 200 < distinct < 290
    assert answers > distinct
    assert not in_order
    lost = sum(direction["dropped_packets"] for direction in lab.wire_counters()[:2])
    assert lost > 20
    assert [d["dropped_packets"] for d in lab.wire_counters()[2:]] == [0, 0]
    sent = lab.server.start(programs.send_file, 4901, 1 << 20)
    digest, size, _ = lab.host_a.call(programs.receive_file, (lab.server_addresses[0], 4901), timeout=60)
    assert (size, digest) == (1 << 20, sent.result(programs.PATIENCE))


@pytest.mark.slow
def test_rate_of_a_link(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("linux", "none", link_a=Link(DELAY, rate=500_000), link_b=Link(DELAY))
    sent = lab.server.start(programs.send_file, 4902, 1 << 20)
    _, size, seconds = lab.host_a.call(programs.receive_file, (lab.server_addresses[0], 4902), timeout=60)
    assert size == 1 << 20
    assert seconds > size / 500_000 * 0.8  # the first bytes come before the clock starts
    assert len(sent.result(programs.PATIENCE)) == 64


@pytest.mark.slow
def test_the_seed_makes_chance_repeat() -> None:
    seen = []
    for _ in range(2):
        with open_lab("apdm+random", "none", delay=DELAY, seed=9) as lab:
            servers = [(address, TELL) for address in lab.server_addresses]
            teller(lab)
            seen.append(lab.host_a.call(programs.seen_by_udp_twice, servers, 4001))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"nat_a": "nonsense"},
        {"nat_a": "eim+nonsense"},
        {"ipv6": "maybe"},
        {"same_cgn": True},
        {"same_cgn": True, "cgn_a": "cgn", "cgn_b": "cgn"},
    ],
)
def test_what_does_not_fit_together(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"), open_lab(**arguments):  # type: ignore[arg-type]
        pass
