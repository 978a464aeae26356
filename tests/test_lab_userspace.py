"""The user-space NAT does what its words say, seen from outside by plain sockets and by coturn's prober."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import lab_probes as probes
import lab_programs as programs
import pytest

from ntcpsock.testing.natlab import (
    PRESETS,
    Allocation,
    Behaviour,
    Filtering,
    Hairpin,
    Lab,
    Mapping,
    Outward,
    TcpBehaviour,
    UdpBehaviour,
)
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = pytest.mark.lab

TELL = 7000
SILENT = 7900
DELAY = 0.002
STRAY_TIMEOUT = 1.5

MAPPINGS, FILTERINGS, ALLOCATIONS = list(Mapping), list(Filtering), list(Allocation)


def endpoints(lab: Lab) -> list[programs.Address]:
    """An endpoint, another port of its address, and another address."""
    first, second = lab.server_addresses
    return [(first, TELL + 1), (first, TELL + 2), (second, TELL + 1)]


def start_tellers(lab: Lab, first_port: int = TELL) -> list[programs.Address]:
    """TCP and UDP tellers on both addresses and two ports."""
    for port in (first_port, first_port + 10):
        lab.server.start(programs.tell_addresses, list(lab.server_addresses), port)
        lab.server.call(programs.seen_by_tcp, (lab.server_addresses[1], port), 0)
    first, second = lab.server_addresses
    return [(first, first_port), (first, first_port + 10), (second, first_port)]


def behaviour_of(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> Behaviour:
    words = {"mapping": mapping, "filtering": filtering, "allocation": allocation, "delta": 2, "band": 64}
    return Behaviour(udp=UdpBehaviour(**words), tcp=TcpBehaviour(**words))  # type: ignore[arg-type]


def check_ports(ports: list[int], own: int, words: UdpBehaviour | TcpBehaviour) -> None:
    groups = {
        Mapping.ENDPOINT_INDEPENDENT: 1,
        Mapping.ADDRESS_DEPENDENT: 2,
        Mapping.ADDRESS_AND_PORT_DEPENDENT: 3,
    }
    assert len(set(ports)) == groups[words.mapping], ports
    new = list(dict.fromkeys(ports))
    steps = [after - before for before, after in itertools.pairwise(new)]
    if words.allocation is Allocation.PRESERVING:
        assert new == [own + number for number in range(len(new))]
    elif words.allocation is Allocation.SEQUENTIAL:
        assert set(steps) <= {words.delta}
    elif words.allocation is Allocation.RANDOM:
        assert own not in new
    else:
        assert len({port // words.band for port in new}) == 1


ADMITTED = {
    Filtering.ENDPOINT_INDEPENDENT: [True, True, True],
    Filtering.ADDRESS_DEPENDENT: [True, True, False],
    Filtering.ADDRESS_AND_PORT_DEPENDENT: [True, False, False],
}


def check_udp(lab: Lab, words: UdpBehaviour) -> None:
    """Mapping, filtering and allocation of router A."""
    addresses = endpoints(lab)
    lab.server.start(probes.answer_from, addresses)
    start_tellers(lab)  # TCP waits for a server; the other one is there then as well, or is asked again
    mapped, heard = lab.host_a.call(probes.udp_words, addresses, 4001)
    assert heard == ADMITTED[words.filtering]
    assert {host for host, _ in mapped} == {lab.nat_a.public_address}
    check_ports([port for _, port in mapped], 4001, words)


def check_tcp(lab: Lab, words: TcpBehaviour) -> None:
    """Mapping, filtering and allocation of router A; filtering by a server that knocks at the port of a connection
    that is held open."""
    tellers = start_tellers(lab, TELL + 20)
    lab.server.start(probes.hold_connections, (lab.server_addresses[0], SILENT))
    ports = [port for _, port in lab.host_a.call(probes.tcp_ports, tellers, 4101)]
    if words.allocation is Allocation.PER_SESSION:
        assert len(set(ports)) == 3
    else:
        check_ports(ports, 4101, words)
    holder = lab.host_a.start(
        probes.hold_and_listen, (lab.server_addresses[0], SILENT), 4201, 3 * STRAY_TIMEOUT
    )
    held = wait_for_mapping(lab, 4201)
    knocks = [
        lab.server.call(probes.knock_from, (address, port), held, STRAY_TIMEOUT / 2)
        for address, port in ((lab.server_addresses[1], 7801), (lab.server_addresses[0], 7802))
    ]
    admitted = ADMITTED[words.filtering]
    assert [knock == "connected" for knock in knocks] == admitted[:0:-1]
    assert holder.result(programs.PATIENCE) == sum(admitted[1:])


def wait_for_mapping(lab: Lab, inner_port: int) -> programs.Address:
    """The public endpoint of a TCP port of host A, when it has a session."""
    while True:
        for row in lab.nat_a.mappings():
            if row["protocol"] == "tcp" and row["inner"] == (lab.host_a.address, inner_port):
                outer: programs.Address = row["outer"]
                return outer


SAMPLE = [
    (Mapping.ADDRESS_DEPENDENT, Filtering.ADDRESS_DEPENDENT, Allocation.SEQUENTIAL),
]
PRODUCT = [words for words in itertools.product(MAPPINGS, FILTERINGS, ALLOCATIONS) if words not in SAMPLE]


@pytest.mark.parametrize(("mapping", "filtering", "allocation"), SAMPLE)
def test_words(
    nat_lab: NatLabFactory, mapping: Mapping, filtering: Filtering, allocation: Allocation
) -> None:
    behaviour = behaviour_of(mapping, filtering, allocation)
    lab = nat_lab(behaviour, "none", delay=DELAY)
    check_udp(lab, behaviour.udp)
    check_tcp(lab, behaviour.tcp)


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "filtering", "allocation"), PRODUCT)
def test_every_combination_of_words(
    nat_lab: NatLabFactory, mapping: Mapping, filtering: Filtering, allocation: Allocation
) -> None:
    behaviour = behaviour_of(mapping, filtering, allocation)
    lab = nat_lab(behaviour, "none", delay=DELAY)
    check_udp(lab, behaviour.udp)
    check_tcp(lab, behaviour.tcp)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, p in PRESETS.items() if p.outward is Outward.ALL])
def test_presets(nat_lab: NatLabFactory, name: str) -> None:
    lab = nat_lab(name, "none", delay=DELAY)
    check_udp(lab, PRESETS[name].udp)
    check_tcp(lab, PRESETS[name].tcp)


SAID_MAPPING = {
    Mapping.ENDPOINT_INDEPENDENT: "Endpoint Independent Mapping",
    Mapping.ADDRESS_DEPENDENT: "Address Dependent Mapping",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "Address and Port Dependent Mapping",
}
SAID_FILTERING = {
    Filtering.ENDPOINT_INDEPENDENT: "Endpoint Independent Filtering",
    Filtering.ADDRESS_DEPENDENT: "Address Dependent Filtering",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "Address and Port Dependent Filtering",
}


def check_by_coturn(lab: Lab, mapping: Mapping, filtering: Filtering) -> None:
    first, second = lab.server_addresses
    listen = [*("-L", first), *("-L", second), "--listening-port", "3478"]
    quiet = ["--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--pidfile", "/dev/null"]
    lab.server.popen(
        ["turnserver", "-n", *listen, *quiet, "--log-file", "/dev/null"], stdout=subprocess.DEVNULL
    )
    # It answers STUN over TCP too; when that port is open, all are.
    while lab.server.call(programs.knock, (second, 3479), programs.PATIENCE) != "connected":
        continue
    probe = ["turnutils_natdiscovery", "-m", "-f", first]
    said = lab.host_a.run(probe, capture_output=True, text=True, timeout=programs.PATIENCE).stdout
    assert f"NAT with {SAID_MAPPING[mapping]}!" in said
    assert f"NAT with {SAID_FILTERING[filtering]}!" in said


needs_coturn = pytest.mark.skipif(
    shutil.which("turnutils_natdiscovery") is None or shutil.which("turnserver") is None,
    reason="the Debian package coturn is missing",
)


@needs_coturn
def test_coturn_says_the_same(nat_lab: NatLabFactory) -> None:
    words = Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT
    check_by_coturn(nat_lab(behaviour_of(*words, Allocation.RANDOM), "none", delay=DELAY), *words)


@needs_coturn
@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "filtering"), list(itertools.product(MAPPINGS, FILTERINGS)))
def test_coturn_says_the_same_of_all(nat_lab: NatLabFactory, mapping: Mapping, filtering: Filtering) -> None:
    lab = nat_lab(behaviour_of(mapping, filtering, Allocation.RANDOM), "none", delay=DELAY)
    check_by_coturn(lab, mapping, filtering)


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "outcomes"),
    [
        ("eim+rst", "eim+icmp", ("ECONNREFUSED", "ECONNREFUSED")),
        ("firewall+rst", "eim+drop", ("ECONNREFUSED", "timeout")),
    ],
)
def test_stray_syn(nat_lab: NatLabFactory, nat_a: str, nat_b: str, outcomes: tuple[str, str]) -> None:
    lab = nat_lab(nat_a, nat_b, delay=DELAY)
    for router, outcome in zip((lab.nat_a, lab.nat_b), outcomes, strict=True):
        timeout = STRAY_TIMEOUT if outcome == "timeout" else programs.PATIENCE
        assert lab.server.call(programs.knock, (router.public_address, 4001), timeout) == outcome


@pytest.mark.parametrize(
    "hairpin",
    [
        Hairpin.EXTERNAL,
        pytest.param(Hairpin.INTERNAL, marks=pytest.mark.slow),
        pytest.param(Hairpin.NONE, marks=pytest.mark.slow),
    ],
)
def test_hairpin(nat_lab: NatLabFactory, tmp_path: Path, hairpin: Hairpin) -> None:
    words = {"hairpin": hairpin, "filtering": Filtering.ENDPOINT_INDEPENDENT}
    lab = nat_lab(
        Behaviour(udp=UdpBehaviour(**words), tcp=TcpBehaviour(**words)),  # type: ignore[arg-type]
        same_nat=True,
        delay=DELAY,
    )
    server = start_tellers(lab)[0]
    public = lab.nat_a.public_address
    for host, port in ((lab.host_a, 4301), (lab.host_b, 4302)):
        assert host.call(programs.seen_by_udp, server, port) == (public, port)
        assert host.call(programs.seen_by_tcp, server, port) == (public, port)
    heard = lab.host_b.start(probes.exchange_datagrams, 4302, (public, 4301), 3 * probes.SILENCE)
    heard_a = lab.host_a.call(probes.exchange_datagrams, 4301, (public, 4302), 2 * probes.SILENCE)
    expected = {
        Hairpin.NONE: [],
        Hairpin.EXTERNAL: [(public, 4302)],
        Hairpin.INTERNAL: [(lab.host_b.address, 4302)],
    }[hairpin]
    assert heard_a == expected
    assert len(heard.result(programs.PATIENCE)) == len(expected)
    ready = tmp_path / "ready"
    accepted = lab.host_b.start(probes.listen_once, 4302, 2 * STRAY_TIMEOUT, str(ready))
    while not ready.exists():
        assert accepted.process.poll() is None
    # The mapping of the listener's port is still there; the connection has a source of its own.
    knock = lab.host_a.start(programs.knock, (public, 4302), 2 * STRAY_TIMEOUT)
    peer = accepted.result(programs.PATIENCE)
    assert (
        peer
        == {
            Hairpin.NONE: "nobody",
            Hairpin.EXTERNAL: public,
            # The answer comes straight over the LAN, from an address that the caller did not call.
            Hairpin.INTERNAL: "nobody",
        }[hairpin]
    )
    assert (knock.result(programs.PATIENCE) == "connected") is (hairpin is Hairpin.EXTERNAL)
