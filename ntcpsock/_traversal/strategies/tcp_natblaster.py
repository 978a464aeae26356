"""`tcp-natblaster`: each side answers the other one's SYN by hand (Biggadike, Ferullo, Wilson and Perrig, 2005).

For NATs that let no SYN in, whatever has left before, but let a SYN-ACK out after a SYN: their own connection then
looks to each of them as if the other side had answered. Linux' conntrack drops that SYN-ACK.
"""

from __future__ import annotations

from functools import partial

from ntcpsock._raw.inject import Injector
from ntcpsock._raw.packet import build_syn_ack
from ntcpsock._traversal.strategies.base import AttemptContext, Connection
from ntcpsock._traversal.strategies.half_open import HalfOpen, connect_half_open


async def attempt(context: AttemptContext) -> Connection:
    """Raises OSError; EPERM says what is missing for raw packets."""
    return await connect_half_open(context, _answer)


async def _answer(context: AttemptContext, half_open: HalfOpen) -> None:
    remote = half_open.meeting.remote
    injector = Injector()
    try:
        make = partial(build_syn_ack, half_open.local, remote, half_open.ours, half_open.theirs)
        await injector.send(make, remote.host)
    finally:
        injector.close()
