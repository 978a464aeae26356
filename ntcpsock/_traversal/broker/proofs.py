"""Proving further addresses to the broker: what is to be sent from each of them, and when.

    Prove -> Challenge -> Prove(cookie) -> Proved        all from and to the address in question

The broker tells peers which addresses are proved, and peers aim at those without stint (see `aim.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ntcpsock._traversal.broker.message import Prove
from ntcpsock._traversal.broker.outbox import Outbox
from ntcpsock._traversal.broker.round_trip import INITIAL_RTO


@dataclass(slots=True)
class _Proof:
    """Of one address."""

    due: float
    pause: float = INITIAL_RTO
    cookie: bytes = b""
    #: The number of the Prove that is out.
    number: int = 0
    #: Whether its Challenge was answered at once: a second one waits for the timer.
    prompted: bool = False


class Proofs:
    """As many addresses as `set_count` says; the driver knows which. Each is proved anew every `interval` seconds."""

    def __init__(self, outbox: Outbox, interval: float) -> None:
        self._outbox = outbox
        self._interval = interval
        self._proofs: list[_Proof] = []
        self._frames: list[tuple[int, bytes]] = []

    def set_count(self, count: int, now: float) -> None:
        """So many addresses, none of them proved yet."""
        self._proofs = [_Proof(now) for _ in range(count)]
        self._frames.clear()

    def restart(self, now: float) -> None:
        """A new session knows of no proofs."""
        for proof in self._proofs:
            proof.due, proof.pause = now, INITIAL_RTO

    def next_timer(self) -> float | None:
        """When `send_due` has something to do."""
        return min((proof.due for proof in self._proofs), default=None)

    def send_due(self, broker_key: bytes, now: float) -> None:
        """Prove what is to be proved. Raises BadMessage for a `broker_key` that is none."""
        for index, proof in enumerate(self._proofs):
            if now >= proof.due:
                proof.prompted = False
                self._send(index, proof, broker_key, now)

    def challenged(self, number: int, cookie: bytes, broker_key: bytes, now: float) -> bool:
        """Whether a Challenge is to one of ours; it is answered then."""
        for index, proof in enumerate(self._proofs):
            if proof.number == number:
                proof.cookie = cookie
                if not proof.prompted:
                    proof.prompted = True
                    self._send(index, proof, broker_key, now)
                return True
        return False

    def proved(self, number: int, now: float) -> bool:
        """Whether it is the answer to one of ours."""
        for proof in self._proofs:
            if proof.number == number:
                proof.due, proof.pause = now + self._interval, INITIAL_RTO
                return True
        return False

    def take(self) -> list[tuple[int, bytes]]:
        """Frames, each with the number of the address from which it is to be sent; once."""
        frames, self._frames = self._frames, []
        return frames

    def _send(self, index: int, proof: _Proof, broker_key: bytes, now: float) -> None:
        proof.number = self._outbox.new_number()
        frame = self._outbox.sealed(broker_key, proof.number, Prove(proof.cookie))
        self._frames.append((index, frame))
        # An address that leads nowhere costs a datagram every `interval`.
        proof.due = now + proof.pause
        proof.pause = min(2 * proof.pause, self._interval)
