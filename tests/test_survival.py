"""What `ntcp doctor` says of open connections: by settings, broker and relay."""

from __future__ import annotations

from typing import Any

import pytest

from ntcpsock._config import Config
from ntcpsock._diagnosis import BrokerState
from ntcpsock._traversal.discovery.survival import (
    ADDRESS,
    BROKER,
    MAPPINGS,
    PROCESS,
    RELAY,
    SILENCE,
    survivals,
)

THERE = BrokerState("192.0.2.1:6060", True, relays=1)
NO_RELAY = BrokerState("192.0.2.1:6060", True)
AWAY = BrokerState("192.0.2.1:6060", why="no answer")
TURN = {"turn": ("turn:192.0.2.9",), "turn_secret": "s"}


@pytest.mark.parametrize(
    ("settings", "broker", "address", "silence", "relay"),
    [
        ({}, THERE, "yes", "yes", "perhaps"),
        (TURN, THERE, "yes", "yes", "yes"),
        (TURN, NO_RELAY, "yes", "yes", "perhaps"),
        ({}, NO_RELAY, "perhaps", "yes", "yes"),
        ({"relay": "never"}, THERE, "perhaps", "yes", "yes"),
        ({"relay": "only"}, THERE, "yes", "yes", "perhaps"),
        ({}, AWAY, "perhaps", "perhaps", "yes"),
        ({}, BrokerState(), "unknown", "unknown", "yes"),
        ({"linger": 0}, THERE, "no", "perhaps", "no"),
        ({"encryption": "off"}, THERE, "no", "perhaps", "no"),
    ],
)
def test_verdicts(
    settings: dict[str, Any], broker: BrokerState, address: str, silence: str, relay: str
) -> None:
    found = {one.event: one.verdict for one in survivals(Config(**settings), broker)}
    assert found == {
        ADDRESS: address,
        MAPPINGS: address,
        SILENCE: silence,
        RELAY: relay,
        BROKER: "yes",
        PROCESS: "no",
    }


def test_reasons_name_the_settings() -> None:
    assert "linger=0" in survivals(Config(linger=0), THERE)[0].why
    assert 'encryption="off"' in survivals(Config(encryption="off"), THERE)[0].why
    assert "7 s" in survivals(Config(linger=7), THERE)[2].why
    assert "not allowed" in survivals(Config(relay="never"), THERE)[0].why
    assert all(one.why for one in survivals(Config(), AWAY))
