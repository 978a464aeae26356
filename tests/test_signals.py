"""The words of a joint technique: kept once, bounded, repeated by who says them, and when rounds begin."""

from __future__ import annotations

import itertools

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.plan import make_joint_plan
from ntcpsock._traversal.punch.message import NATProfile, Signal, decode_sealed_payload_untrusted
from ntcpsock._traversal.signals import MAX_SIGNALS, REPEAT_PAUSES, Mailbox, Talk

DIAL = bytes(16)
PROVEN = "192.0.2.1"


async def test_a_word_is_heard_before_and_after_it_came() -> None:
    mailbox = Mailbox()
    mailbox.take(Signal(DIAL, 1, "ports", b"first"))
    mailbox.take(Signal(DIAL, 1, "ports", b"second"))
    assert await mailbox.hear(1, "ports") == b"first"
    async with trio.open_nursery() as nursery:
        heard: list[bytes] = []

        async def listen() -> None:
            heard.append(await mailbox.hear(2, "ports"))

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.take(Signal(DIAL, 2, "other", b""))
        await trio.testing.wait_all_tasks_blocked()
        assert not heard
        mailbox.take(Signal(DIAL, 2, "ports", b"late"))
    assert heard == [b"late"]


async def test_a_mailbox_is_bounded() -> None:
    mailbox = Mailbox()
    for number in range(MAX_SIGNALS + 5):
        mailbox.take(Signal(DIAL, 1, f"word {number}", b""))
    with trio.move_on_after(0), pytest.raises(trio.Cancelled):
        await mailbox.hear(1, f"word {MAX_SIGNALS}")
    assert await mailbox.hear(1, f"word {MAX_SIGNALS - 1}") == b""


async def test_what_is_said_is_repeated(autojump_clock: trio.testing.MockClock) -> None:
    sent: list[tuple[float, bytes]] = []

    async def send(payload: bytes) -> None:
        sent.append((trio.current_time(), payload))

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        Talk(DIAL, 3, Mailbox(), nursery, send).say("ports", b"1-9")
    assert [when - begin for when, _ in sent] == pytest.approx([0, *itertools.accumulate(REPEAT_PAUSES)])
    assert {decode_sealed_payload_untrusted(payload) for _, payload in sent} == {
        Signal(DIAL, 3, "ports", b"1-9")
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "first"),
    [
        ("address-and-port-dependent", "endpoint-independent", 0.0),
        ("endpoint-independent", "session-dependent", 0.0),
        ("endpoint-dependent", "unknown", 0.0),
        ("unknown", "endpoint-independent", 1.5),
        ("endpoint-independent", "endpoint-independent", 3.0),
    ],
)
def test_prediction_starts_when_it_is_likely_to_be_needed(ours: str, theirs: str, first: float) -> None:
    profiles = [NATProfile(True, mapping) for mapping in (ours, theirs)]  # type: ignore[arg-type]
    plan = make_joint_plan(*profiles, techniques=("tcp-predict",), budget=8.0, proven_host=PROVEN)
    assert plan[0].delay == first
    assert len(plan) > 1
    assert {attempt.remote for attempt in plan} == {Endpoint(PROVEN, 0)}
    assert all(attempt.budget <= 8.0 for attempt in plan)
    later = make_joint_plan(
        *profiles, techniques=("tcp-predict",), budget=8.0, proven_host=PROVEN, earliest=0.4
    )
    assert later[0].delay == max(first, 0.4)
    assert not make_joint_plan(*profiles, techniques=("lan",), budget=8.0, proven_host=PROVEN)
    assert not make_joint_plan(*profiles, techniques=("tcp-predict",), budget=8.0, proven_host="")
