"""Every NAT in words is named by its words; what the servers cannot tell is unknown, with the reason."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from discovery_support import ADM, APDM, EIM, FIRST, OTHER, PUBLIC, SimulatedNat, ask

from ntcpsock._address import Endpoint
from ntcpsock._diagnosis import Allocation, Discovery, Finding, TransportFindings
from ntcpsock._traversal.discovery.evidence import Answer, Outcome, Probe, Question
from ntcpsock._traversal.discovery.findings import conclude, tcp_profile
from ntcpsock._traversal.discovery.machine import DiscoveryMachine, believable_other
from ntcpsock._traversal.discovery.prospects import (
    BLOCK,
    DRAWS,
    KEEPS,
    NO_UDP,
    STEPS,
    advice,
    headline,
    prospects,
    unknowns,
)
from ntcpsock._traversal.discovery.prospects import (
    PUBLIC as PUBLIC_HOST,
)
from ntcpsock._traversal.discovery.router import with_router
from ntcpsock._traversal.punch.message import NATProfile
from ntcpsock._traversal.stun.connect_back import ConnectBackOutcome

WORDS = (EIM, ADM, APDM)
FILTERING: tuple[Question, ...] = ("filtering-address", "filtering-port")
ALLOCATIONS = ("preserving", "offset", "sequential", "band", "random")


@pytest.mark.parametrize(
    ("mapping", "filtering", "allocation"), list(itertools.product(WORDS, WORDS, ALLOCATIONS))
)
def test_every_nat_is_named_by_its_words(mapping: str, filtering: str, allocation: str) -> None:
    nat = SimulatedNat(mapping, filtering, allocation, stray="reset", hairpin=True)
    found = ask(nat)
    for transport in (found.udp, found.tcp):
        assert transport.reachable.truth is True
        assert transport.translated.truth is True
        assert transport.mapping.value == mapping
        assert transport.filtering.value == filtering
        assert transport.allocation.value == allocation
        assert transport.hairpin.truth is True
        assert transport.public == (PUBLIC,)
        assert transport.mapping.evidence
    assert found.udp.fragments.truth is True
    assert found.tcp.stray.value == ("none" if filtering == EIM else "reset")


@pytest.mark.parametrize(
    ("allocation", "words"),
    [
        ("preserving", {"offset": 0}),
        ("offset", {"offset": 7}),
        ("sequential", {"step": 2}),
        ("band", {"low": 20480, "high": 20991}),
    ],
)
def test_allocation_in_numbers(allocation: str, words: dict[str, int]) -> None:
    found = ask(SimulatedNat(allocation=allocation)).tcp.allocation
    assert {name: getattr(found, name) for name in words} == words


@pytest.mark.parametrize("stray", ["drop", "reset", "icmp"])
def test_stray_syn(stray: str) -> None:
    assert ask(SimulatedNat(stray=stray)).tcp.stray.value == stray


def test_another_port_for_each_session() -> None:
    found = ask(SimulatedNat(APDM, allocation="band", per_session=True))
    assert found.tcp.mapping.value == "session-dependent"
    assert found.udp.mapping.value == APDM  # a UDP socket has no sessions that could be ended


def test_a_public_host() -> None:
    found = ask(SimulatedNat(filtering=EIM, translates=False))
    assert found.tcp.translated.truth is False
    assert found.tcp.allocation.value == "none"
    assert found.tcp.hairpin.value == "none"
    assert found.double_nat.truth is False
    assert "public host" in headline(found)
    assert {one.verdict for one in prospects(found) if one.peer != NO_UDP} == {"yes"}
    assert advice(found) == ()


@pytest.mark.parametrize(
    ("mapping", "filtering", "mappings", "filterings"),
    [
        (EIM, EIM, (EIM, ADM), (EIM, ADM)),
        (ADM, ADM, (EIM, ADM), (EIM, ADM)),
        (APDM, APDM, (), ()),
    ],
)
def test_what_one_address_with_two_ports_cannot_tell(
    mapping: str, filtering: str, mappings: tuple[str, ...], filterings: tuple[str, ...]
) -> None:
    nat = SimulatedNat(mapping, filtering, other=None, allocation="random")
    found = ask(nat, (FIRST, Endpoint(FIRST.host, OTHER.port)))
    for transport in (found.udp, found.tcp):
        for finding, possible in ((transport.mapping, mappings), (transport.filtering, filterings)):
            assert finding.possible == possible
            assert finding.is_known is not bool(possible)
            assert finding.is_known or "one address" in finding.why


def test_two_servers_without_a_second_port_leave_two_kinds() -> None:
    for mapping in (ADM, APDM):
        nat = SimulatedNat(mapping, other=None, allocation="random", connects_back=False)
        found = ask(nat, (FIRST, OTHER)).tcp
        assert found.mapping.possible == (ADM, APDM)
        assert tcp_profile(found).mapping == "endpoint-dependent"
        assert tcp_profile(found).changes
        assert not found.filtering.is_known
        assert "420" in found.filtering.why
        assert not found.stray.is_known


def test_one_endpoint_tells_no_mapping() -> None:
    found = ask(SimulatedNat(other=None))
    assert not found.tcp.mapping.is_known
    assert tcp_profile(found.tcp).mapping == "unknown"
    assert {what for what, _ in unknowns(found)} >= {"UDP: mapping", "TCP: mapping"}
    assert all(why for _, why in unknowns(found))


@pytest.mark.parametrize("silent", [("udp",), ("tcp",), ("udp", "tcp")])
def test_blocked_transports(silent: tuple[str, ...]) -> None:
    found = ask(SimulatedNat(silent=silent), trouble=True)
    for name in ("udp", "tcp"):
        transport: TransportFindings = getattr(found, name)
        assert transport.reachable.truth is (name not in silent)
        assert transport.mapping.is_known is (name not in silent)
    assert {one.verdict for one in prospects(found)} == {"no"}
    assert advice(found)


def test_the_profile_for_the_card() -> None:
    found = ask(SimulatedNat(EIM, ADM, stray="icmp", hairpin=True))
    assert tcp_profile(found.tcp) == NATProfile(
        True, "endpoint-independent", "address-dependent", "icmp", True
    )
    assert tcp_profile(TransportFindings()) == NATProfile()


@pytest.mark.parametrize(
    ("nat", "verdicts"),
    [
        (SimulatedNat(), {PUBLIC_HOST: "yes", KEEPS: "yes", STEPS: "yes", DRAWS: "yes"}),
        (
            SimulatedNat(APDM, allocation="sequential"),
            {PUBLIC_HOST: "yes", KEEPS: "yes", STEPS: "yes", DRAWS: "no"},
        ),
        (
            SimulatedNat(APDM, allocation="random"),
            {PUBLIC_HOST: "yes", KEEPS: "yes", STEPS: "no", DRAWS: "no"},
        ),
        (SimulatedNat(EIM, EIM), {PUBLIC_HOST: "yes", KEEPS: "yes", STEPS: "yes", DRAWS: "yes"}),
    ],
    ids=lambda value: f"{value.mapping}-{value.allocation}" if isinstance(value, SimulatedNat) else None,
)
def test_prospects(nat: SimulatedNat, verdicts: dict[str, str]) -> None:
    found = ask(nat)
    assert {one.peer: one.verdict for one in prospects(found) if one.peer in verdicts} == verdicts
    needs_help = "no" in verdicts.values()
    assert any("NAT-PMP" in line for line in advice(found)) is needs_help


@pytest.mark.parametrize(("width", "verdict"), [(512, "perhaps"), (128, "perhaps"), (4096, "no")])
def test_a_block_holds_no_more_connections_than_it_has_ports(width: int, verdict: str) -> None:
    """By chance alone 512 connections each would meet four times out of 128 and 512 ports; 512 do not fit into 128."""
    tcp = TransportFindings(
        reachable=Finding("yes"),
        translated=Finding("yes"),
        mapping=Finding(APDM),
        filtering=Finding(APDM),
        allocation=Allocation("band", low=2048, high=2048 + width - 1),
    )
    found = prospects(Discovery(TransportFindings(reachable=Finding("yes")), tcp))
    assert {one.peer: one.verdict for one in found}[BLOCK] == verdict


# --- servers that lie -----------------------------------------------------------------------------


def outcome(question: Question, answer: Answer = "answered", **fields: object) -> Outcome:
    return Outcome(Probe(question, "tcp", FIRST), answer, **fields)  # type: ignore[arg-type]


REACHED = outcome("reach", local=Endpoint("10.0.0.2", 5), mapped=Endpoint(PUBLIC, 5))


@pytest.mark.parametrize(
    ("said", "arrived"), [(ConnectBackOutcome.CONNECTED, False), (ConnectBackOutcome.TIMED_OUT, True)]
)
def test_a_server_that_contradicts_what_arrives_here(said: int, arrived: bool) -> None:
    lie = outcome("filtering-address", connect_back=said, arrived=arrived)
    found = conclude([REACHED, lie]).tcp
    assert not found.filtering.is_known
    assert "nothing arrived" in found.filtering.why or arrived
    assert not found.stray.is_known


def test_strange_numbers_and_disagreeing_answers() -> None:
    strange = outcome("filtering-address", connect_back=77)
    assert not conclude([REACHED, strange]).tcp.filtering.is_known
    two = [
        outcome("filtering-address", connect_back=ConnectBackOutcome.RESET),
        outcome("filtering-port", connect_back=ConnectBackOutcome.TIMED_OUT),
    ]
    found = conclude([REACHED, *two]).tcp
    assert found.stray.possible == ("drop", "reset")
    busy = outcome("filtering-port", connect_back=ConnectBackOutcome.NOT_TRIED)
    assert not conclude([REACHED, busy]).tcp.filtering.is_known


def test_udp_silence_counts_only_where_the_other_address_is_known_to_answer() -> None:
    def of_udp(question: Question, answer: Answer, server: Endpoint = FIRST, **fields: object) -> Outcome:
        return Outcome(Probe(question, "udp", server), answer, **fields)  # type: ignore[arg-type]

    places: dict[str, Any] = {"local": Endpoint("10.0.0.2", 5), "mapped": Endpoint(PUBLIC, 5)}
    reached = of_udp("reach", "answered", **places)
    silence = of_udp("filtering-address", "silence")
    assert not conclude([reached, silence]).udp.filtering.is_known
    known = of_udp("mapping", "answered", OTHER, **places)
    assert conclude([reached, known, silence]).udp.filtering.possible == (ADM, APDM)
    # An answer from where it came from before, despite CHANGE-REQUEST, says nothing.
    unchanged = of_udp("filtering-address", "answered", source=FIRST, **places)
    assert not conclude([reached, known, unchanged]).udp.filtering.is_known


@pytest.mark.parametrize(
    ("server", "other", "believable"),
    [
        ("198.51.100.1", "198.51.100.2", True),
        ("198.51.100.1", "198.51.100.1", False),
        ("198.51.100.1", "127.0.0.1", False),
        ("198.51.100.1", "224.0.0.1", False),
        ("198.51.100.1", "0.0.0.0", False),
        ("198.51.100.1", "2001:db8::1", False),
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "198.51.100.2", False),
    ],
)
def test_only_an_address_that_may_be_one_is_asked(server: str, other: str, believable: bool) -> None:
    claimed = Endpoint(other, 3479)
    assert believable_other(Endpoint(server, 3478), claimed) == (claimed if believable else None)


def test_portal_and_carrier() -> None:
    assert conclude([outcome("reach", "not-stun")]).captive_portal.truth is True
    assert conclude([REACHED]).captive_portal.truth is False
    assert not conclude([outcome("reach", "silence")]).captive_portal.is_known
    for hops, verdict in (
        (("192.168.1.1", "100.64.0.1"), True),
        (("100.64.0.1", "198.51.100.9"), None),
        (("192.168.1.1", "10.0.0.1"), None),
        (("192.168.1.1", "", "100.127.255.254"), True),
        (("192.168.1.1", "100.128.0.1"), None),
    ):
        asked = Outcome(Probe("hops", "udp", FIRST), "answered", hops=hops)
        assert conclude([REACHED, asked]).double_nat.truth is verdict, hops
    inside = outcome("reach", local=Endpoint("100.80.0.2", 5), mapped=Endpoint(PUBLIC, 5))
    assert conclude([inside]).double_nat.truth is True


def test_what_the_router_says() -> None:
    """Whether it maps ports, and whether its own address is the public one."""
    found = conclude([REACHED])
    alone = with_router(found, {"pcp": None, "nat-pmp": PUBLIC}, {"upnp": "is silent"}, None)
    assert (alone.port_mapping.truth, alone.double_nat.truth) == (True, False)
    assert PUBLIC in alone.port_mapping.why
    behind_another = with_router(found, {"upnp": "192.168.0.2"}, {}, None)
    assert (behind_another.port_mapping.truth, behind_another.double_nat.truth) == (True, True)
    untold = with_router(found, {"pcp": None}, {}, None)
    assert (untold.port_mapping.truth, untold.double_nat) == (True, found.double_nat)
    silent = with_router(found, {}, {"pcp": "is silent", "upnp": "was not found"}, None)
    assert (silent.port_mapping.truth, silent.port_mapping.why) == (
        False,
        "pcp is silent, upnp was not found",
    )
    unasked = with_router(found, {}, {}, "no default route")
    assert not unasked.port_mapping.is_known
    verdicts = {one.peer: (one.verdict, one.technique) for one in prospects(alone)}
    assert verdicts[DRAWS] == ("yes", "port-mapped")
    assert {one.technique for one in prospects(behind_another)}.isdisjoint({"port-mapped"})


@pytest.mark.parametrize(("admitted", "filtering"), [(True, EIM), (False, APDM)])
def test_filtering_over_ipv6(admitted: bool, filtering: str) -> None:
    said = ConnectBackOutcome.CONNECTED if admitted else ConnectBackOutcome.RESET
    asked = [outcome(question, connect_back=said, arrived=admitted) for question in FILTERING]
    found = conclude([REACHED], over_ipv6=asked, ipv6=Finding("yes"))
    assert found.ipv6_filtering.value == filtering
    assert not found.tcp.filtering.is_known
    assert not conclude([REACHED], over_ipv6=asked, ipv6=Finding("no")).ipv6_filtering.is_known


def test_only_443_gets_out() -> None:
    asked = Outcome(Probe("https", "tcp", Endpoint(FIRST.host, 443)), "refused")
    over_udp = Outcome(Probe("reach", "udp", FIRST), "silence")
    found = conclude([outcome("reach", "silence"), over_udp, asked])
    assert "443" in headline(found)
    assert any("443" in line for line in advice(found))


# --- the order of questions -----------------------------------------------------------------------


def test_allocation_comes_before_what_takes_ports() -> None:
    machine = DiscoveryMachine([FIRST], transports=("tcp",))
    ((reach,),) = machine.batches_to_start()
    assert machine.batches_to_start() == []
    machine.handle_outcome(outcome("mapping"))  # never asked
    assert machine.outcomes == []
    nat = SimulatedNat()
    machine.handle_outcome(nat.answer(reach, 1))
    (allocation,) = machine.batches_to_start()
    assert {probe.question for probe in allocation} == {"allocation"}
    for probe in allocation[:-1]:
        machine.handle_outcome(nat.answer(probe, 20000 + probe.number))
        assert machine.batches_to_start() == []
    machine.handle_outcome(Outcome(allocation[-1], "silence"))
    further = machine.batches_to_start()
    assert {batch[0].question for batch in further} == {
        "mapping",
        "session",
        "filtering-address",
        "filtering-port",
        "hairpin",
    }
    assert [probe.server for probe in further[0]] == [FIRST, Endpoint(OTHER.host, FIRST.port), OTHER]
    machine.finish()
    assert machine.is_done
    assert {item.answer for item in machine.outcomes[-2:]} == {"unfinished"}


def test_a_liar_makes_us_ask_no_more_than_planned() -> None:
    machine = DiscoveryMachine([Endpoint(f"198.51.100.{number}", 1) for number in range(1, 100)])
    nat = SimulatedNat(seed=3)
    asked = 0
    while batches := machine.batches_to_start():
        for batch in batches:
            for probe in batch:
                asked += 1
                lie = Endpoint(f"198.51.100.{asked % 250}", 1 + asked)
                machine.handle_outcome(
                    Outcome(probe, "answered", nat.answer(probe, 9).local, lie, FIRST, other=lie)
                )
    assert asked <= 48


def test_nothing_to_ask() -> None:
    machine = DiscoveryMachine([])
    assert machine.is_done
    found = conclude(machine.outcomes)
    assert not found.tcp.reachable.is_known
    assert headline(found).startswith("No server was reached")
