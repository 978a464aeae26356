"""One dial: its offer and its answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ntcpsock._address import Endpoint, full_name
from ntcpsock._config import Encryption, Prefer
from ntcpsock._errors import EncryptionMismatch, PeerOffline, PeerRefused
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.message import (
    DIAL_ID_LENGTH,
    TOKEN_LENGTH,
    Answer,
    DialKind,
    Offer,
    Signal,
    encode_sealed_payload,
)
from ntcpsock._traversal.signals import Mailbox

# A listener that is registered but has not answered for so many seconds has gone away.
ANSWER_DEADLINE = 5.0


@dataclass
class Dial:
    """One call of connect(). `dial_id` names it at both ends, `token` proves the dialer.

    source_port: the dialling program's own, which the listener shows to its program. earlier: how many dials of
    this peer have failed just before. kind: what is wanted; prefer: over what.

    resume: the id of the stream that shall move to what is dialled; then `instance` is known before, and nobody else
    gets the offer; `say` sends sealed payloads by that stream, and is False where its carrier is gone.
    useless: techniques that would bring no better path than there is. lost_relay: the one by which that stream has lost
    its path. standing: the listener has agreed to it before,
    and both ends go by that alone: nothing is said while it is dialled. since: in the end, when a NAT began to know the
    path that was found, on trio's clock.
    """

    key: bytes
    label: str
    port: int
    source_port: int = 0
    encryption: Encryption = "tls"
    earlier: int = 0
    kind: DialKind = "stream"
    prefer: Prefer = "tcp"
    resume: bytes | None = None
    say: Callable[[bytes], bool] | None = None
    useless: frozenset[str] = frozenset()
    lost_relay: Endpoint | None = None
    standing: bool = False
    since: float = 0.0
    dial_id: bytes = field(default_factory=lambda: secrets.token_bytes(DIAL_ID_LENGTH))
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_LENGTH))
    answer: Answer | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    was_busy: bool = False
    mailbox: Mailbox = field(default_factory=Mailbox)
    #: Where the broker sees the listener, or "".
    observed_host: str = ""
    #: Further addresses that the listener has proved to the broker.
    also_observed: tuple[str, ...] = ()
    #: Which process of the listening node got the offer.
    instance: bytes | None = None
    #: To a relay, of the latest introduction: ours, and the listener's. Good once.
    tickets: tuple[bytes, bytes] | None = None

    def offer(self, round_number: int, warm: WarmPort, broker_rtt: float, technique: str = "") -> bytes:
        """The offer of one round, ready to be sealed."""
        return encode_sealed_payload(
            Offer(
                self.dial_id,
                self.token,
                self.port,
                round_number,
                warm.offered,
                warm.profile,
                broker_rtt,
                self.source_port,
                self.encryption,
                technique,
                self.turn(round_number),
                warm.udp_profile,
                self.kind,
                self.prefer,
                self.resume,
                self.standing,
            )
        )

    def turn(self, round_number: int) -> int:
        """How many attempts there were before a round: it says who sends first."""
        return (self.earlier + round_number - 1) % 256

    def take(self, message: Answer | Signal) -> None:
        """What the listener says."""
        if isinstance(message, Signal):
            self.mailbox.take(message)
        else:
            self._take_answer(message)

    def _take_answer(self, answer: Answer) -> None:
        """The first answer decides; later ones repeat it, perhaps with newer candidates. A busy listener is asked
        again, as a full accept queue is."""
        if answer.outcome == "busy":
            self.was_busy = True
        elif self.answer is None:
            self.answer = answer
            self.answered.set()
        elif answer.outcome == self.answer.outcome == "accepted":
            self.answer = answer

    async def wait_accepted(self) -> Answer:
        """The listener's word. Raises PeerRefused, EncryptionMismatch, or PeerOffline when none comes."""
        with trio.move_on_after(ANSWER_DEADLINE):
            await self.answered.wait()
        name = full_name(self.label)
        if self.answer is None and self.was_busy:
            raise PeerRefused(f"{name} has too many connections under way; try again later")
        if self.answer is None:
            raise PeerOffline(
                f"{name} is registered at the broker but has not answered for {ANSWER_DEADLINE:.0f} s: "
                "its process, its machine or its network went away"
            )
        if self.answer.outcome == "refused":
            self.check_encryption(self.answer.demands or self.encryption)
            raise PeerRefused(f"nothing listens on port {self.port} of {name}")
        return self.answer

    def check_encryption(self, theirs: Encryption) -> None:
        """Before anything is dialled: both ends must want the same. Raises EncryptionMismatch."""
        if theirs == self.encryption:
            return
        name = full_name(self.label)
        if theirs == "off":
            raise EncryptionMismatch(
                f'{name} listens with encryption="off", and this end encrypts: remove it there, '
                'or set encryption="off" (NTCP_ENCRYPTION=off) here as well'
            )
        raise EncryptionMismatch(
            f'{name} encrypts its connections, and this end says encryption="off": remove it here, '
            f'or set encryption="off" (NTCP_ENCRYPTION=off) at {name} as well'
        )
