"""What must hold at every moment, and at the end. Knows what was written; sees what readers and machines have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntcpsock._session import send_buffer

if TYPE_CHECKING:
    from session_simulation.ends import End


class Violation(AssertionError):
    """The claim does not hold."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def check_read(end: End, data: bytes) -> None:
    """Before `end`'s reader counts `data`: these are the next bytes that the other end's writer wrote."""
    other = end.other
    require(not end.got_end, f"{end.name} read {len(data)} bytes behind the end")
    require(end.got + len(data) <= other.written, f"{end.name} read what nobody wrote")
    expected = other.outgoing[end.got : end.got + len(data)]
    require(data == expected, f"{end.name} read other bytes than were written at {end.got}")


def check_end(end: End) -> None:
    """Before `end`'s reader counts the end of the stream."""
    require(not end.got_end, f"{end.name} read the end twice")
    require(end.other.wrote_end, f"{end.name} read an end that nobody wrote")
    require(end.got == end.other.written, f"{end.name} read the end at {end.got} of {end.other.written}")


def check_now(end: End) -> None:
    """The bounds, and what each end believes of the other."""
    session, other = end.session, end.other
    kept = session._kept
    require(session.sent - session.acknowledged <= session.window, f"{end.name} sent more than a window")
    require(0 <= session.held <= session.window, f"{end.name} holds {session.held} bytes")
    require(session.acknowledged <= other.got, f"{end.name} believes in bytes that no reader took")
    require(
        not session.eof_acknowledged or other.got_end, f"{end.name} believes in an end that no reader saw"
    )
    assert kept is not None
    require(kept.end == session.sent == end.written, f"{end.name} kept {kept.end} of {session.sent}")
    # Whole pieces are forgotten, and a small one grows until it is none.
    slack = max(end.largest_frame, 2 * send_buffer.SMALL)
    require(kept.start <= session.acknowledged, f"{end.name} forgot what nobody confirmed")
    require(session.acknowledged - kept.start <= slack, f"{end.name} keeps what was confirmed")


def check_whole(end: End) -> None:
    """At the end of a schedule in which everything must have arrived."""
    session, other = end.session, end.other
    kept = session._kept
    require(end.wrote_end, f"{end.name} could not write all")
    require(
        other.got == end.written and other.got_end, f"{other.name} has {other.got} of {end.written} bytes"
    )
    if other.can_move or session.eof_acknowledged:
        require(session.eof_acknowledged, f"{end.name} never learnt that its end arrived")
        assert kept is not None
        require(kept.start == kept.end and not kept._pieces, f"{end.name} keeps what was confirmed")
        require(session.held == 0, f"{end.name} holds what was taken")
