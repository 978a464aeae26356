"""RFC 8489 section 6.2.1 by table, with no clock at all."""

from __future__ import annotations

import pytest

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.attributes import (
    ErrorCodeAttribute,
    MappedAddress,
    Software,
    UnknownAttribute,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import MessageClass, Method
from ntcpsock._traversal.stun.machine import ClientTransaction, Failed, Succeeded, TimedOut
from ntcpsock._traversal.stun.message import Message, binding_request, encode_message

ID = b"transaction!"
START = 1000.0
MAPPED = XorMappedAddress(Endpoint("192.0.2.1", 32853))
SCHEDULE = [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
TIME_OUT = 39.5


def transaction(reliable: bool = False, rto: float = 0.5) -> ClientTransaction:
    return ClientTransaction(binding_request(ID), now=START, reliable=reliable, rto=rto)


def success(*attributes: MappedAddress | XorMappedAddress | Software | UnknownAttribute) -> bytes:
    return encode_message(Message(Method.BINDING, MessageClass.SUCCESS_RESPONSE, ID, attributes))


def run_unanswered(machine: ClientTransaction) -> tuple[list[float], float]:
    """When it sent, and when it gave up, both counted from the start."""
    sent = [0.0] * len(machine.datagrams_to_send())
    while True:
        now = machine.next_timeout()
        assert now is not None
        machine.handle_timeout(now)
        sent += [now - START] * len(machine.datagrams_to_send())
        if event := machine.next_event():
            assert event == TimedOut()
            assert machine.next_timeout() is None
            return sent, now - START


def test_schedule_over_udp() -> None:
    assert run_unanswered(transaction()) == (SCHEDULE, TIME_OUT)


def test_schedule_with_another_rto() -> None:
    sent, gave_up = run_unanswered(transaction(rto=0.1))
    assert sent == pytest.approx([time / 5 for time in SCHEDULE])
    assert gave_up == pytest.approx(TIME_OUT / 5)


def test_schedule_over_tcp() -> None:
    assert run_unanswered(transaction(reliable=True)) == ([0.0], 39.5)


def test_early_calls_do_nothing() -> None:
    machine = transaction()
    assert machine.datagrams_to_send() == [encode_message(binding_request(ID))]
    machine.handle_timeout(START + 0.499)
    assert machine.datagrams_to_send() == []
    assert machine.next_timeout() == START + 0.5
    assert machine.next_event() is None


def test_a_late_call_does_not_stretch_the_schedule() -> None:
    machine = transaction()
    machine.handle_timeout(START + 0.9)
    assert machine.next_timeout() == START + 1.5


def test_success() -> None:
    machine = transaction()
    assert machine.handle_message(success(MAPPED), START + 0.1)
    event = machine.next_event()
    assert isinstance(event, Succeeded)
    assert event.rtt == pytest.approx(0.1)
    assert event.response.get(XorMappedAddress) == MAPPED
    # Over: nothing more goes out, and nothing more comes in.
    assert machine.next_event() is None
    assert machine.next_timeout() is None
    assert machine.datagrams_to_send() == []
    assert not machine.handle_message(success(MAPPED), START + 0.2)
    machine.handle_timeout(START + 100)
    assert machine.next_event() is None


def test_an_old_server_says_mapped_address() -> None:
    machine = transaction()
    machine.handle_message(success(MappedAddress(MAPPED.endpoint)), START)
    assert isinstance(machine.next_event(), Succeeded)


def test_a_repetition_after_a_loss_is_answered() -> None:
    machine = transaction()
    machine.handle_timeout(START + 0.5)
    assert len(machine.datagrams_to_send()) == 2
    machine.handle_message(success(MAPPED), START + 0.55)
    event = machine.next_event()
    assert isinstance(event, Succeeded)
    assert event.rtt == pytest.approx(0.55)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"noise" * 20, id="noise"),
        pytest.param(encode_message(binding_request(ID)), id="our own request, reflected"),
        pytest.param(success(MAPPED)[:8] + b"another id!!" + success(MAPPED)[20:], id="another transaction"),
        pytest.param(success(MAPPED)[:4] + b"old!" + success(MAPPED)[8:], id="another cookie"),
        pytest.param(success(MAPPED)[:-1], id="cut"),
        pytest.param(encode_message(Message(3, MessageClass.SUCCESS_RESPONSE, ID)), id="another method"),
        pytest.param(encode_message(Message(1, MessageClass.INDICATION, ID)), id="indication"),
    ],
)
def test_what_is_no_response_changes_nothing(data: bytes) -> None:
    machine = transaction()
    assert not machine.handle_message(data, START + 0.1)
    assert machine.next_event() is None
    assert machine.next_timeout() == START + 0.5


def test_an_error_response() -> None:
    machine = transaction()
    refusal = Message(
        Method.BINDING, MessageClass.ERROR_RESPONSE, ID, (ErrorCodeAttribute(500, "Server Error"),)
    )
    machine.handle_message(encode_message(refusal), START)
    assert machine.next_event() == Failed(refusal, 500, "Server Error")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (success(MAPPED, UnknownAttribute(0x7FFF, b"")), "0x7fff"),
        (success(Software("server")), "no mapped address"),
        (encode_message(Message(1, MessageClass.ERROR_RESPONSE, ID)), "without ERROR-CODE"),
    ],
)
def test_a_response_that_cannot_be_used(data: bytes, reason: str) -> None:
    machine = transaction()
    assert machine.handle_message(data, START)
    event = machine.next_event()
    assert isinstance(event, Failed)
    assert event.code is None
    assert reason in event.reason


def test_an_unknown_optional_attribute_is_skipped() -> None:
    machine = transaction()
    machine.handle_message(success(MAPPED, UnknownAttribute(0xFFFE, b"?")), START)
    assert isinstance(machine.next_event(), Succeeded)
