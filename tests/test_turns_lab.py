"""Two nodes and several dials at once: costly attempts take turns, and SYNs cross where a NAT answers them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import condition_programs as conditions
import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import TECHNIQUES, UDP_TECHNIQUES, Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Lab, Link
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

World = tuple[Lab, Callable[..., Config]]


@pytest.fixture
def world(nat_lab: NatLabFactory, tmp_path: Path) -> Callable[..., World]:
    def make(nat_a: str, nat_b: str, **links: Any) -> World:
        lab = nat_lab(nat_a, nat_b, **links)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        uri = str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key))

        def config(name: str | None = None) -> Config:
            state = tmp_path / (name or "client")
            # UDP, looked for at the same time, would now and then be first.
            over_tcp = tuple(technique for technique in TECHNIQUES if technique not in UDP_TECHNIQUES)
            return Config(
                broker=uri, name=name, state_dir=state, broker_timeout=programs.PATIENCE, techniques=over_tcp
            )

        return lab, config

    return make


def _texts(outcomes: list[conditions.Outcome]) -> str:
    return "\n".join(outcome.text for outcome in outcomes)


def test_dials_of_one_pair_at_once_do_not_spray_at_once(world: Callable[..., World]) -> None:
    lab, config = world("random", "default", delay=0.005)
    lab.host_b.start(programs.run_listener, config("bob"))
    running = lab.host_a.start(conditions.dial_beside, config(), "bob", 3, 3, 0.0, 60.0)
    outcomes = running.result(2 * programs.PATIENCE)
    assert [outcome.technique for outcome in outcomes] == ["tcp-predict"] * 3, _texts(outcomes)
    sprays = sorted(span for outcome in outcomes for span in outcome.sprays)
    assert len(sprays) >= 3
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(sprays)), sprays


@pytest.mark.slow
def test_two_nodes_that_dial_each_other_at_once(world: Callable[..., World]) -> None:
    """Each leads a dial of its own: neither waits for the other for ever."""
    lab, config = world("random", "default", delay=0.005)
    there = lab.host_a.start(conditions.dial_and_listen, config("alice"), "bob", 4)
    back = lab.host_b.start(conditions.dial_and_listen, config("bob"), "alice", 4)
    outcomes = there.result(3 * programs.PATIENCE) + back.result(3 * programs.PATIENCE)
    assert [outcome.technique for outcome in outcomes] == ["tcp-predict"] * 8, _texts(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("delays", [(0.005, 0.150), (0.150, 0.005)])
def test_first_syns_cross_where_both_nats_answer(
    world: Callable[..., World], delays: tuple[float, float]
) -> None:
    """With a profile that says so, on links of 5 and 150 ms: one SYN of each side is enough."""
    lab, config = world("reject", "reject", link_a=Link(delays[0]), link_b=Link(delays[1]))
    lab.host_b.start(conditions.listen_knowing, config("bob"), "reset")
    running = lab.host_a.start(conditions.dial_knowing, config(), "bob", 20, "reset")
    dials = running.result(2 * programs.PATIENCE)
    assert sum(dialled.tries == 1 for dialled in dials) >= 18, [dialled.tries for dialled in dials]
