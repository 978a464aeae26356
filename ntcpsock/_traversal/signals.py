"""What the two sides of a joint technique tell each other, by way of the broker, in one round of a dial."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint
from ntcpsock._raw.packet import Syn
from ntcpsock._traversal.punch.message import Signal, encode_sealed_payload

# A signal is a datagram that nobody acknowledges: said again after these pauses in seconds.
REPEAT_PAUSES = (0.2, 0.4, 0.8, 1.6)

#: The word of a dialer that has given up, in round 1.
WITHDRAWN = "withdrawn"

# Words of one dial that are kept; a peer cannot make us keep more.
MAX_SIGNALS = 64


@dataclass
class Mailbox:
    """The words that came in for one dial, the first of each name and round."""

    _words: dict[tuple[int, str], bytes] = field(default_factory=dict)
    _arrived: trio.Event = field(default_factory=trio.Event)

    def take(self, signal: Signal) -> None:
        """Keep a word; repetitions and what is too much are dropped."""
        key = (signal.round, signal.name)
        if key in self._words or len(self._words) >= MAX_SIGNALS:
            return
        self._words[key] = signal.body
        self._arrived.set()
        self._arrived = trio.Event()

    async def wait_for_round(self, round_number: int) -> None:
        """Until the other side has said any word in this round."""
        while not any(number == round_number for number, _ in self._words):
            await self._arrived.wait()

    async def hear(self, round_number: int, name: str) -> bytes:
        """The word called `name` of a round. It has no deadline of its own: the attempt has."""
        while (body := self._words.get((round_number, name))) is None:
            await self._arrived.wait()
        return body


#: Ask the broker for a SYN-ACK from the second endpoint, the other side's, to the first, ours, that answers this SYN
#: of ours. Raises OSError.
AskToSpoof = Callable[[Endpoint, Endpoint, Syn], Awaitable[None]]


@dataclass(frozen=True)
class Talk:
    """One round's talk as an attempt sees it.

    send: brings a payload to the other side, once, unacknowledged; spoof: asks the broker, for `tcp-stunt1`.
    """

    dial_id: bytes
    round_number: int
    mailbox: Mailbox
    nursery: trio.Nursery
    send: Callable[[bytes], Awaitable[None]]
    spoof: AskToSpoof | None = None

    def say(self, name: str, body: bytes) -> None:
        """Tell the other side, and tell it again: the task lives as long as the dial's attempts."""
        self.nursery.start_soon(
            self._repeat, encode_sealed_payload(Signal(self.dial_id, self.round_number, name, body))
        )

    async def hear(self, name: str) -> bytes:
        """What the other side says under `name`."""
        return await self.mailbox.hear(self.round_number, name)

    async def _repeat(self, payload: bytes) -> None:
        for pause in (0.0, *REPEAT_PAUSES):
            await trio.sleep(pause)
            try:
                await self.send(payload)
            except OSError:
                return
