"""Paths over UDP between two hosts behind NATs, with 25 ms links: a path RTT of 100 ms."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest
import udp_programs
from lab_stage import Stage, start_servers, ways

from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATH_RTT = 0.1
# Where round trips are counted: computing on a slow machine must not look like one more of them.
LONG_RTT = 0.6

UDP_ONLY = ("udp-punch",)

# TCP opens from inside only, on both sides; UDP as everywhere.
NO_TCP = "tcp:no-syn-in"

MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> MakeStage:
    def make(
        nat_a: str,
        nat_b: str,
        *,
        delay: float = PATH_RTT / 4,
        there: dict[str, Any] | None = None,
        tcp: bool = False,
        listens: bool = True,
        **lab: Any,
    ) -> Stage:
        made = start_servers(nat_lab(nat_a, nat_b, delay=delay, **lab), tmp_path, tcp=tcp)
        if listens:
            made.listen(**(there or {}))
        return made

    return make


@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [
        # The routers answer what comes too early, and remember it against the host behind them.
        ("accept", "accept"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                # Another port for every destination, towards one who lets in whoever comes from that address.
                ("random", "udp:adf"),
                ("default", "default"),
                ("reject", "default"),
                ("none", "default"),
                ("default", "firewall"),
                ("eif", "apdm+random"),
            ]
        ),
    ],
)
def test_pairs_that_meet_over_udp(stage: MakeStage, nat_a: str, nat_b: str) -> None:
    assert ways(stage(nat_a, nat_b).dial(3, techniques=UDP_ONLY)) == {("udp", "udp-punch", "udp-punch")}


def test_a_port_that_was_poisoned_by_an_early_packet(stage: MakeStage) -> None:
    """The dialer's checks come before the listener's, and its router shows that port as another one from then on,
    to everybody: so the listener has another port for the next round."""
    made = stage("accept", "accept", listens=False)
    made.lab.host_b.start(udp_programs.listen_late, made.config("bob"))
    assert ways(made.dial(3, techniques=UDP_ONLY)) == {("udp", "udp-punch", "udp-punch")}


@pytest.mark.slow
def test_over_ipv6(stage: MakeStage) -> None:
    """Neither IPv4 NAT can be met; both firewalls of IPv6 are opened from inside."""
    made = stage("apdm+random", "apdm+random", ipv6=("firewall", "firewall"))
    (dialled,) = made.dial(1, techniques=UDP_ONLY)
    assert (dialled.kind, dialled.technique) == ("udp", "udp-punch")
    assert ":" in dialled.local


@pytest.mark.slow
def test_neighbours_behind_one_nat(stage: MakeStage) -> None:
    made = stage("default", "default", same_nat=True)
    (dialled,) = made.dial(1, techniques=UDP_ONLY)
    assert (dialled.kind, dialled.technique) == ("udp", "udp-punch")


def test_a_pair_that_only_udp_connects(stage: MakeStage) -> None:
    """All techniques are allowed: what TCP cannot do UDP does, long before the relay or the end of patience."""
    dials = stage(NO_TCP, NO_TCP).dial(3)
    assert ways(dials) == {("udp", "udp-punch", "udp-punch")}
    assert max(dialled.seconds for dialled in dials) < 3


def test_without_udp_it_is_tcp(stage: MakeStage) -> None:
    dials = stage("udp-blocked", "default", tcp=True).dial(2, prefer="udp", relay="never")
    assert {dialled.technique for dialled in dials} == {"tcp-open"}


@pytest.mark.parametrize(
    ("prefer", "technique", "tried"),
    [
        # Nobody has waited for a check: TCP has a head start.
        pytest.param("tcp", "tcp-open", {"tcp-open"}, marks=pytest.mark.slow),
        ("udp", "udp-punch", {"tcp-open", "udp-punch"}),
    ],
)
def test_where_both_connect_the_preferred_one_wins(
    stage: MakeStage, prefer: str, technique: str, tried: set[str]
) -> None:
    dials = stage("default", "default").dial(3, prefer=prefer)
    assert {dialled.technique for dialled in dials} == {technique}
    assert {each for dialled in dials for each, _ in dialled.attempts} >= tried


@pytest.mark.slow
@pytest.mark.parametrize(("nat_a", "nat_b"), [("default", "default"), ("default", "none")])
def test_round_trips_to_connect(stage: MakeStage, nat_a: str, nat_b: str) -> None:
    """1.5 path RTT: the first QUIC packet leaves with the first check, when half a round trip has brought both
    sides each other's candidates."""
    made = stage(nat_a, nat_b, delay=LONG_RTT / 4)
    dials = made.dial(7, techniques=UDP_ONLY)
    assert statistics.median(dialled.seconds for dialled in dials) / LONG_RTT <= 1.8


@pytest.mark.slow
def test_round_trips_with_a_private_card(stage: MakeStage) -> None:
    """The listener's answer is waited for, half a round trip more."""
    made = stage("default", "default", delay=LONG_RTT / 4, there={"allow": ("carol",)})
    dials = made.dial(3, "carol", techniques=UDP_ONLY)
    assert all("answer" in dialled.stages for dialled in dials)
    assert statistics.median(dialled.seconds for dialled in dials) / LONG_RTT <= 2.5


def test_a_transfer_is_identical_at_both_ends(stage: MakeStage) -> None:
    made = stage("default", "default", delay=0.005)
    running = made.lab.host_a.start(udp_programs.exchange, made.config(techniques=UDP_ONLY), "bob", 128)
    sent, back, technique = running.result(programs.PATIENCE * 2)
    assert sent == back
    assert technique == "udp-punch"


# --- the path afterwards --------------------------------------------------------------------------


@pytest.mark.parametrize("forgetful", ["a", pytest.param("b", marks=pytest.mark.slow)])
def test_a_nat_that_has_forgotten_everything_during_a_silence(
    stage: MakeStage, tmp_path: Path, forgetful: str
) -> None:
    """As after a restart of the router: the next check makes a new mapping, and with it another path, or the same."""
    made = stage("udp:eif+udp:random", "udp:eif+udp:random")
    flag = tmp_path / "flag"
    running = made.lab.host_a.start(udp_programs.stay, made.config(techniques=UDP_ONLY), "bob", flag, 1)
    udp_programs.wait_for(flag.with_suffix(".0.done"))
    (made.lab.nat_a if forgetful == "a" else made.lab.nat_b).flush_mappings()
    flag.with_suffix(".1").touch()
    technique, remotes = running.result(programs.PATIENCE * 2)
    assert technique == "udp-punch"
    assert len(remotes) == 2


@pytest.mark.slow
@pytest.mark.parametrize("nat", ["udp:idle=5", "udp:idle=12+udp:random", "udp:idle=8+udp:unreplied=3"])
def test_thirty_seconds_of_silence_with_short_time_outs(stage: MakeStage, tmp_path: Path, nat: str) -> None:
    """Nodes that know of it (`ntcp doctor --lifetime`) send as often as such NATs need it."""
    often: dict[str, Any] = {"keep_alive": "fixed", "keep_alive_interval": 2.0}
    made = stage(nat, nat, there=often)
    flag = tmp_path / "flag"
    config = made.config(techniques=UDP_ONLY, **often)
    running = made.lab.host_a.start(udp_programs.stay, config, "bob", flag, 1)
    udp_programs.wait_for(flag.with_suffix(".0.done"))
    made.lab.host_a.call(udp_programs.be_silent, 30.0)
    flag.with_suffix(".1").touch()
    technique, remotes = running.result(programs.PATIENCE * 2)
    assert technique == "udp-punch"
    assert len(remotes) == 2


# --- NATs that change ports -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "technique"),
    [
        ("apdm+apdf+udp:random", "default", "udp-birthday"),
        pytest.param("default", "random", "udp-birthday", marks=pytest.mark.slow),
        pytest.param("apdm+apdf+udp:sequential=1", "default", "udp-predict", marks=pytest.mark.slow),
        pytest.param("default", "apdm+apdf+udp:band=256", "udp-predict", marks=pytest.mark.slow),
    ],
)
def test_changing_ports_are_met(stage: MakeStage, nat_a: str, nat_b: str, technique: str) -> None:
    techniques = ("udp-punch", "udp-predict", "udp-birthday")
    dials = stage(nat_a, nat_b).dial(2, techniques=techniques, relay="never")
    assert ways(dials) == {("udp", technique, technique)}


@pytest.mark.slow
@pytest.mark.parametrize(("nat_a", "nat_b"), [("default", "random"), ("apdm+apdf+udp:random", "default")])
def test_birthdays_in_twenty_tries(stage: MakeStage, nat_a: str, nat_b: str) -> None:
    """Endpoint-independent against random: at least 95 of 100 within 20 seconds, without any relay."""
    made = stage(nat_a, nat_b)
    config = made.config(
        techniques=("udp-punch", "udp-predict", "udp-birthday"), relay="never", connect_timeout=20.0
    )
    running = made.lab.host_a.start(udp_programs.try_often, config, "bob", 20)
    outcomes = running.result(programs.PATIENCE + 20 * 25)
    met = [seconds for seconds, technique in outcomes if technique == "udp-birthday"]
    assert len(met) >= 19, [why for _, why in outcomes if why != "udp-birthday"]
    assert max(met) < 20
