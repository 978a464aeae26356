"""`tcp-stunt1`: the broker answers both SYNs, each in the other side's name (NUTSS, Guha, Takeda and Francis, 2004).

For NATs that accept nothing but the client's side of a handshake: a SYN that leaves, a SYN-ACK that comes in. Needs a
broker whose operator allows it (`_servers.spoofing` has the rules), in a network that lets foreign sources out.
"""

from __future__ import annotations

from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.half_open import HalfOpen, connect_half_open


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; EPERM says what is missing for raw packets, here or at the broker."""
    return await connect_half_open(context, _ask_broker)


async def _ask_broker(context: AttemptContext, half_open: HalfOpen) -> None:
    assert context.talk is not None
    assert context.talk.spoof is not None, "both ends of a dial can ask the broker"
    meeting = half_open.meeting
    await context.talk.spoof(meeting.mapped, meeting.remote, half_open.ours)
