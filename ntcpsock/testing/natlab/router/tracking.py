"""What a router knows of one TCP connection, and whether the next segment fits it.

State table and window check are those of Linux (net/netfilter/nf_conntrack_proto_tcp.c) with its default settings:
not `be_liberal`, but `loose`, so a connection that is older than the router's memory is picked up. One difference:
a second SYN of the opener begins anew whatever its number (Linux: only a higher one).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ntcpsock.testing.natlab.router.packet import ACK, FIN, RST, SYN, Packet

_MASK = 0xFFFFFFFF
_HALF = 0x80000000
_LARGEST_ACK_WINDOW = 66000  # MAXACKWINCONST


class State(Enum):
    """The states of conntrack."""

    NONE = "NO"
    SYN_SENT = "SS"
    SYN_RECEIVED = "SR"
    ESTABLISHED = "ES"
    FIN_WAIT = "FW"
    CLOSE_WAIT = "CW"
    LAST_ACK = "LA"
    TIME_WAIT = "TW"
    CLOSED = "CL"
    BOTH_SYN_SENT = "S2"


_IGNORED, _INVALID = "IG", "IV"

# Rows: the kind of segment; columns: the states above, in their order.
_FROM_OPENER = {
    "syn": "SS SS IG IG IG IG IG SS SS S2",
    "synack": "IV IV SR IV IV IV IV IV IV SR",
    "fin": "IV IV FW FW LA LA LA TW CL IV",
    "ack": "ES IV ES ES CW CW TW TW CL IV",
    "rst": "IV CL CL CL CL CL CL CL CL CL",
    "none": "IV IV IV IV IV IV IV IV IV IV",
}
_FROM_OTHER = {
    # A SYN in TIME_WAIT begins a connection of its own in Linux, which has no permission to come in.
    "syn": "IV S2 IV IV IV IV IV IV IV S2",
    "synack": "IV SR IG IG IG IG IG IG IG SR",
    "fin": "IV IV FW FW LA LA LA TW CL IV",
    "ack": "IV IG SR ES CW CW TW TW CL IG",
    "rst": "IV CL CL CL CL CL CL CL CL CL",
    "none": "IV IV IV IV IV IV IV IV IV IV",
}
_TABLE = {
    (opener, kind, state): verdict
    for opener, rows in ((True, _FROM_OPENER), (False, _FROM_OTHER))
    for kind, row in rows.items()
    for state, verdict in zip(State, row.split(), strict=True)
}


@dataclass(slots=True)
class _End:
    """One side's sequence space, in conntrack's words."""

    end: int = 0
    max_end: int = 0
    max_window: int = 0
    scale: int | None = None
    max_ack: int | None = None


class Connection:
    """A TCP connection as seen from the middle. Side 0 is inside, side 1 outside."""

    __slots__ = ("_ends", "_initial", "_opener", "state")

    def __init__(self) -> None:
        self.state = State.NONE
        self._opener = 0
        self._initial: int | None = None
        self._ends = (_End(), _End())

    @property
    def established(self) -> bool:
        """Whether the longer time-out holds (RFC 5382 section 5)."""
        return self.state is State.ESTABLISHED

    @property
    def unanswered(self) -> bool:
        """Whether nothing has come back for the SYN that opened it."""
        return self.state is State.SYN_SENT

    def is_new_attempt(self, packet: Packet) -> bool:
        """Whether a segment is a SYN other than the one that opened this connection."""
        sequence, _, flags, _ = packet.tcp_fields
        return flags & (SYN | ACK) == SYN and self._initial is not None and self._initial != sequence

    def is_one_sided(self, packet: Packet, side: int) -> bool:
        """Whether a segment from `side` belongs to an opening of which one side is the opener and the other answers."""
        kind = _kind(packet.tcp_fields[2])
        if kind == "syn":
            return not self.unanswered or side == self._opener
        return kind != "synack" or (self.state is not State.NONE and side != self._opener)

    def take(self, packet: Packet, side: int, *, checked: bool) -> bool:
        """Whether a segment from `side` fits; where it does, or is not `checked`, the state follows it."""
        sequence, acknowledgement, flags, window = packet.tcp_fields
        kind = _kind(flags)
        if self.state is State.NONE:
            self._opener = side
        verdict = _TABLE[side == self._opener, kind, self.state]
        if verdict == _INVALID:
            return False
        if verdict == _IGNORED:
            return True
        opening = kind == "syn" and side == self._opener and verdict == State.SYN_SENT.value
        if opening and self._initial != sequence:
            self._initial = sequence
            self._ends = (_End(), _End())
        if checked:
            sender, receiver = self._ends[side], self._ends[1 - side]
            if kind == "rst" and receiver.max_ack is not None and _before(sequence, receiver.max_ack):
                return False
            if not self._in_window(sender, receiver, packet, sequence, acknowledgement, window, flags):
                return False
        self.state = State(verdict)
        return True

    def _in_window(
        self,
        sender: _End,
        receiver: _End,
        packet: Packet,
        sequence: int,
        acknowledgement: int,
        window: int,
        flags: int,
    ) -> bool:
        """`tcp_in_window`."""
        end = (sequence + packet.tcp_length + bool(flags & SYN) + bool(flags & FIN)) & _MASK
        if sender.max_window == 0:
            if flags & SYN:
                sender.end = sender.max_end = end
                sender.max_window = max(window, 1)
                sender.scale = packet.tcp_window_scale
                if not flags & ACK:
                    return True  # the first SYN of a side cannot be wrong
                if sender.scale is None or receiver.scale is None:
                    sender.scale = receiver.scale = None  # only both sides together scale
            else:
                sender.end = end
                sender.max_window = max(window << (sender.scale or 0), 1)
                sender.max_end = end + sender.max_window & _MASK
                if receiver.max_window == 0:
                    receiver.end = receiver.max_end = acknowledgement
        if not flags & ACK or (flags & RST and acknowledgement == 0):
            acknowledgement = receiver.end
        if flags & RST and sequence == 0 and self.state is State.SYN_SENT:
            sequence = end = sender.end  # a refusal has no number of its own
        reach = max(sender.max_window, _LARGEST_ACK_WINDOW)
        if not (
            _before(sequence, sender.max_end + 1)
            and (receiver.max_window == 0 or _before(sender.end - receiver.max_window - 1, end))
            and _before(acknowledgement, receiver.end + 1)
            and _before(receiver.end - reach - 1, acknowledgement)
        ):
            return False
        if not flags & SYN:
            window <<= sender.scale or 0
        sender.max_window = max(sender.max_window, window)
        if _before(sender.end, end):
            sender.end = end
        if flags & ACK and (sender.max_ack is None or _before(sender.max_ack, acknowledgement)):
            sender.max_ack = acknowledgement
        if receiver.max_window and _before(sender.max_end, end):
            receiver.max_window += end - sender.max_end & _MASK
        if _before(receiver.max_end - 1, acknowledgement + window):
            receiver.max_end = acknowledgement + max(window, 1) & _MASK
        return True


def _kind(flags: int) -> str:
    if flags & RST:
        return "rst"
    if flags & SYN:
        return "synack" if flags & ACK else "syn"
    if flags & FIN:
        return "fin"
    return "ack" if flags & ACK else "none"


def _before(one: int, other: int) -> bool:
    """Whether sequence number `one` is before `other` (RFC 1982)."""
    return (one - other) & _MASK >= _HALF
