"""Time to an authenticated, encrypted connection through two NATs, in round-trip times of the path.

Links of 25 ms one way, so the path's round trip is 100 ms; warm nodes; each try from a fresh port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import Series, save, show
from ntcpsock.cli.lab import dial, enter_namespaces, open_lab_stage, start_echo

TRIES = 20
DELAY = 0.025

# A private listener has an `allow` list: no card at the broker, it answers each offer itself.
PRIVATE: Mapping[str, Mapping[str, str]] = {"listener": {"NTCP_ALLOW": "a"}, "dialer": {"NTCP_NAME": "a"}}
# The transport that connects a round trip earlier, without the head start that TCP has by default; and the relay alone.
OVER_UDP: Mapping[str, Mapping[str, str]] = {"dialer": {"NTCP_PREFER": "udp", "NTCP_TECHNIQUES": "udp-punch"}}
OVER_RELAY: Mapping[str, Mapping[str, str]] = {
    "listener": {"NTCP_RELAY": "only"},
    "dialer": {"NTCP_RELAY": "only"},
}


def measure(
    name: str, nat: str, settings: Mapping[str, Mapping[str, str]] | None = None, tries: int = TRIES
) -> Series:
    """Connect `tries` times with `nat` on both sides."""
    settings = settings or {}
    with open_lab_stage(nat, nat, DELAY) as (lab, stage):
        start_echo(lab, stage, settings.get("listener"))
        events: list[dict[str, Any]] = list(dial(lab, stage, tries, dialer=settings.get("dialer")))
        rtt = lab.path_rtt
    seconds = [event["seconds"] / rtt for event in events if event["event"] == "connected"]
    return Series(name, "path RTT", tuple(seconds), failures=tries - len(seconds))


def main() -> None:
    enter_namespaces()
    series = [
        measure("default NATs, open card", "default"),
        measure("default NATs, private card", "default", PRIVATE),
        measure("reject NATs, open card", "reject"),
        measure("default NATs, over UDP", "default", OVER_UDP),
        measure("default NATs, over the relay", "default", OVER_RELAY),
    ]
    show(f"Connect through two NATs, {DELAY * 1000:g} ms links, {TRIES} tries", series)
    print(save("connect_time", series))
