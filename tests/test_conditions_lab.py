"""connect() on bad paths: loss, jitter, duplicates, late and unequal sides. 97 in 100 are up within the time-out.

A few dials in the normal run; `slow` ones for the rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import condition_programs as conditions
import peer_programs as programs
import pytest

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Link
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SHARE = 0.97
DELAY = 0.025
PATH_RTT = 4 * DELAY


@dataclass(frozen=True)
class Conditions:
    """Both links, and how much later than it could each side starts."""

    link_a: Link = field(default_factory=lambda: Link(DELAY))
    link_b: Link = field(default_factory=lambda: Link(DELAY))
    dialer_late: float = 0.0
    listener_late: float = 0.0


def both(**words: Any) -> Conditions:
    return Conditions(Link(DELAY, **words), Link(DELAY, **words))


PATHS = {
    "1 % loss": both(loss=0.01),
    "5 % loss": both(loss=0.05),
    "10 % loss": both(loss=0.10),
    "jitter of an RTT": both(jitter=PATH_RTT),
    "duplicates, reordering": both(duplication=0.05, reordering=0.05),
    "listener 100 ms late": Conditions(listener_late=0.1),
    "listener 500 ms late": Conditions(listener_late=0.5),
    "dialer 100 ms late": Conditions(dialer_late=0.1),
    "dialer 500 ms late": Conditions(dialer_late=0.5),
    "5 and 150 ms": Conditions(Link(0.005), Link(0.150)),
    "150 and 5 ms": Conditions(Link(0.150), Link(0.005)),
}

Dial = Callable[..., list[conditions.Outcome]]


@pytest.fixture
def dial(nat_lab: NatLabFactory, tmp_path: Path) -> Dial:
    def run(nat_a: str, nat_b: str, path: Conditions, count: int, beside: int) -> list[conditions.Outcome]:
        lab = nat_lab(nat_a, nat_b, link_a=path.link_a, link_b=path.link_b)
        key = load_identity(tmp_path / "servers" / "broker.key").public_key
        lab.server.start(programs.run_servers, lab.server_addresses, tmp_path / "servers")
        lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
        uri = str(BrokerAddress(lab.server_addresses[0], programs.BROKER_PORT, key))

        def config(name: str | None = None) -> Config:
            state = tmp_path / (name or "client")
            return Config(broker=uri, name=name, state_dir=state, broker_timeout=programs.PATIENCE)

        lab.host_b.start(conditions.listen_late, config("bob"), path.listener_late)
        running = lab.host_a.start(conditions.dial_beside, config(), "bob", count, beside, path.dialer_late)
        return running.result(programs.PATIENCE + 15 * count / beside)

    return run


def check(outcomes: list[conditions.Outcome], allowed: int) -> None:
    failed = [outcome.text for outcome in outcomes if outcome.technique is None]
    assert len(failed) <= allowed, "\n".join(failed)


@pytest.mark.parametrize(
    ("nat_a", "nat_b", "path"),
    [
        ("reject", "reject", "10 % loss"),
        ("reject", "default", "listener 500 ms late"),
        ("reject", "reject", "5 and 150 ms"),
    ],
)
def test_a_few_dials_on_a_bad_path(dial: Dial, nat_a: str, nat_b: str, path: str) -> None:
    check(dial(nat_a, nat_b, PATHS[path], 8, 4), 1)


def test_prediction_on_a_path_that_loses_packets(dial: Dial) -> None:
    check(dial("default", "random", PATHS["5 % loss"], 2, 1), 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("nat_a", "nat_b"), [("default", "default"), ("reject", "reject"), ("default", "reject")]
)
def test_the_share_of_dials_that_succeed(dial: Dial, nat_a: str, nat_b: str, path: str) -> None:
    outcomes = dial(nat_a, nat_b, PATHS[path], 100, 5)
    check(outcomes, round(100 * (1 - SHARE)))
    print(
        f"{path}, {nat_a}/{nat_b}: median {statistics.median(outcome.seconds for outcome in outcomes):.2f} s"
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("nat_a", "nat_b"), [("default", "random"), ("random", "reject")])
def test_the_share_of_predictions_that_succeed(dial: Dial, nat_a: str, nat_b: str, path: str) -> None:
    """One after the other: two nodes do not spray twice at once."""
    check(dial(nat_a, nat_b, PATHS[path], 34, 1), round(34 * (1 - SHARE)))
