"""The session machine's part in moving: what is kept, what the reader has taken, and what is sent again."""

from __future__ import annotations

import pytest

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import (
    HEADER_LENGTH,
    LARGEST_OFFSET,
    LARGEST_PAYLOAD,
    Ack,
    Fin,
    Ping,
    Reset,
    encode_data_header,
    encode_frame,
)
from ntcpsock._session.machine import (
    ACK_INTERVAL,
    Acknowledged,
    DataReceived,
    EndReceived,
    ResetReceived,
    Session,
    SignalReceived,
)

WINDOW = 1000


def send(session: Session, data: bytes) -> bytes:
    header = session.send_data(len(data))
    session.keep(data)
    return header + data


def a_sender(*parts: bytes, end: bool = False) -> Session:
    session = Session(WINDOW)
    for part in parts:
        send(session, part)
    if end:
        session.send_eof()
    return session


def all_again(session: Session) -> bytes:
    frames = []
    while session.is_behind:
        frames.append(session.next_again())
    assert session.next_again() == b""
    return b"".join(frames)


# -- the window


def test_room_is_what_the_peer_has_not_confirmed() -> None:
    session = Session(WINDOW)
    assert session.room == WINDOW
    send(session, bytes(600))
    assert session.room == 400
    session.receive_data(encode_frame(Ack(500)))
    assert session.room == 900
    send(session, bytes(900))
    assert session.room == 0


def test_without_a_window_nothing_is_kept() -> None:
    session = Session()
    assert session.room == LARGEST_OFFSET
    send(session, bytes(LARGEST_PAYLOAD))
    assert session.room == LARGEST_OFFSET
    assert session.next_again() == b""
    with pytest.raises(RuntimeError, match="cannot move"):
        session.reattach(0)


def test_a_small_window_does_not_wait_for_a_large_interval() -> None:
    """The peer's window is full long before 256 KiB were taken."""
    session = Session(WINDOW)
    session.receive_data(encode_data_header(0, WINDOW // 4) + bytes(WINDOW // 4))
    assert session.control_to_send() == encode_frame(Ack(WINDOW // 4))
    default = Session(16 * ACK_INTERVAL)
    default.receive_data(encode_data_header(0, ACK_INTERVAL - 1) + bytes(ACK_INTERVAL - 1))
    assert not default.has_control


# -- what the reader has taken


def test_what_is_held_is_not_acknowledged_until_it_is_taken() -> None:
    session = Session(WINDOW)
    session.receive_data(encode_data_header(0, 900))
    session.hold(900)
    session.skip_payload(900)
    session.acknowledge()
    assert not session.has_control
    assert session.position == 900
    session.release(100)
    assert not session.has_control  # too little, unless somebody asks
    session.acknowledge()
    assert session.control_to_send() == encode_frame(Ack(100))
    assert not session.has_unacknowledged
    session.release(800)
    assert session.control_to_send() == encode_frame(Ack(900))


def test_an_end_behind_held_bytes_is_acknowledged_with_them() -> None:
    session = Session(WINDOW)
    session.receive_data(encode_data_header(0, 10))
    session.hold(10)
    session.skip_payload(10)
    assert session.receive_data(encode_frame(Fin(10))) == [EndReceived()]
    assert session.position == 11
    assert session.control_to_send() == encode_frame(Ack(0))
    session.release(4)
    session.acknowledge()
    assert session.control_to_send() == encode_frame(Ack(4))
    session.release(6)
    assert session.control_to_send() == encode_frame(Ack(11))


# -- going on over another carrier


@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize("end", [False, True])
def test_the_peer_gets_exactly_what_it_lacks(position: int, end: bool) -> None:
    session = a_sender(b"abc", b"defg", end=end)
    session.reattach(position)
    missing = b"abcdefg"[position:]
    expected = encode_data_header(position, len(missing)) + missing if missing else b""
    assert all_again(session) == expected + (encode_frame(Fin(7)) if end else b"")


def test_a_peer_that_has_the_end_gets_nothing_again() -> None:
    session = a_sender(b"abc", end=True)
    session.reattach(4)
    assert not session.is_behind
    assert session.next_again() == b""


def test_large_frames_are_cut() -> None:
    session = Session(4 * LARGEST_PAYLOAD)
    data = bytes(range(256)) * 1024
    send(session, data)
    send(session, data)
    session.reattach(5)
    peer = Session(1)
    peer.received = 5
    events = peer.receive_data(all_again(session))
    assert b"".join(one.data for one in events if isinstance(one, DataReceived)) == (data + data)[5:]


def test_an_end_waits_behind_what_is_sent_again() -> None:
    session = a_sender(b"abc")
    session.reattach(1)
    assert session.send_eof() == b""
    assert all_again(session) == encode_data_header(1, 2) + b"bc" + encode_frame(Fin(3))
    with pytest.raises(RuntimeError, match="after FIN"):
        session.send_eof()


def test_an_end_said_without_a_carrier_goes_over_the_next_one() -> None:
    session = a_sender(b"abc")
    session.send_eof()
    session.reattach(3)
    assert all_again(session) == encode_frame(Fin(3))


def test_a_reset_said_without_a_carrier_keeps_its_code() -> None:
    session = a_sender(b"abc")
    session.reset(77)
    session.reattach(3)
    again = all_again(session)
    assert again == encode_frame(Reset(77))
    peer = Session(WINDOW)
    peer.received = 3
    assert peer.receive_data(again) == [ResetReceived(77)]


def test_a_second_move_in_the_middle_of_the_first() -> None:
    session = a_sender(b"abc", end=True)
    session.reattach(0)
    session.next_again()
    session.reattach(2)
    assert all_again(session) == encode_data_header(2, 1) + b"c" + encode_frame(Fin(3))
    session.reattach(3)
    assert all_again(session) == encode_frame(Fin(3))


def test_what_came_half_is_not_sent_again() -> None:
    """Offsets are exact to a byte, and the rest of the old carrier's frame is forgotten."""
    receiver = Session(WINDOW)
    receiver.receive_data(encode_data_header(0, 5) + b"ab")
    assert receiver.position == 2
    receiver.reattach(0)
    assert receiver.payload_remaining == 0
    assert receiver.receive_data(encode_data_header(2, 3) + b"cde") == [DataReceived(b"cde")]
    receiver.receive_data(encode_frame(Fin(5))[:7])
    receiver.reattach(0)
    assert receiver.header_missing == HEADER_LENGTH


def test_acknowledgements_are_said_again_and_questions_are_not() -> None:
    session = Session(WINDOW)
    session.receive_data(encode_data_header(0, 3) + b"abc" + encode_frame(Ping(9)))
    session.acknowledge()
    session.control_to_send()
    session.ping(5)
    session.receive_data(encode_frame(Ping(10)))
    session.reattach(0)
    assert session.control_to_send() == encode_frame(Ack(3))
    assert session.aside_heard == session.aside_said == 0


@pytest.mark.parametrize(
    ("acknowledged", "position", "text"),
    [
        (0, 5, "claims to have 5 bytes"),
        (0, LARGEST_OFFSET, "claims to have"),
        (2, 1, "has lost what it confirmed"),
        (4, 3, "has lost what it confirmed"),  # the end, too
    ],
)
def test_a_position_that_cannot_be(acknowledged: int, position: int, text: str) -> None:
    session = a_sender(b"abc", end=True)
    session.receive_data(encode_frame(Ack(acknowledged)))
    before = {name: value for name, value in vars(session).items() if isinstance(value, int)}
    for refused in (session.check_position, session.reattach):
        with pytest.raises(BadMessage, match=text):
            refused(position)
    assert before == {name: value for name, value in vars(session).items() if isinstance(value, int)}
    session.check_position(acknowledged)
    session.reattach(acknowledged)


def test_an_end_that_was_not_sent_cannot_have_arrived() -> None:
    session = a_sender(b"abc")
    with pytest.raises(BadMessage, match="claims to have 4"):
        session.reattach(4)


def test_what_this_carrier_has_not_carried_cannot_be_confirmed() -> None:
    """It would free what is still to be sent again: a peer that said it lacks that, and then that it has it, lies."""
    session = a_sender(bytes(20 * 1024), b"abc")
    session.reattach(0)
    with pytest.raises(BadMessage, match="on this carrier"):
        session.receive_data(encode_frame(Ack(20 * 1024)))
    session = a_sender(b"abc", end=True)
    session.reattach(3)
    with pytest.raises(BadMessage, match="on this carrier"):
        session.receive_data(encode_frame(Ack(4)))
    session = a_sender(b"abc", end=True)
    session.reattach(0)
    session.next_again()
    assert session.receive_data(encode_frame(Ack(3))) == [Acknowledged(3, False)]
    session.next_again()
    assert session.receive_data(encode_frame(Ack(4))) == [Acknowledged(3, True)]


# -- words beside the stream


def test_what_is_beside_the_stream_is_counted() -> None:
    left, right = Session(WINDOW), Session(WINDOW)
    left.signal(b"a word")
    wire = left.control_to_send() + left.ping(1)
    assert left.aside_said == len(wire)
    assert right.receive_data(wire) == [SignalReceived(b"a word")]
    assert right.aside_heard == len(wire)
    right.receive_data(send(left, b"x"))
    assert right.aside_heard == len(wire)
    right.acknowledge()
    answer = right.control_to_send()
    assert right.aside_said == HEADER_LENGTH  # the pong: an ACK is news
    left.receive_data(answer)
    assert left.aside_heard == len(answer) == 2 * HEADER_LENGTH


def test_of_many_signals_the_newest_wait() -> None:
    left, right = Session(WINDOW), Session(WINDOW)
    for number in range(100):
        left.signal(b"%d" % number)
    events = right.receive_data(left.control_to_send())
    assert events == [SignalReceived(b"%d" % number) for number in range(84, 100)]
    assert not left.has_control
