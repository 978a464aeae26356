"""Offers and answers by way of the broker: sealed, sent, repeated, opened, and given to whom they are for."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from ntcpsock._address import Endpoint, decode_node_id, normalize_name
from ntcpsock._errors import BadMessage, NameNotFound
from ntcpsock._identity import Identity
from ntcpsock._raw.packet import Syn
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import BrokerSession, Delivery, Introduction
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.message import Spoof, SpoofOutcome
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.punch.message import (
    Answer,
    Offer,
    Signal,
    decode_sealed_payload_untrusted,
    encode_sealed_payload,
)
from ntcpsock._traversal.signals import WITHDRAWN

# An offer is a datagram: repeated after these pauses (seconds) until the listener answers.
OFFER_PAUSES = (0.25, 0.5, 1.0, 1.5, 1.5)

_SPOOF_REFUSALS = {
    SpoofOutcome.OFF: (
        errno.EPERM,
        "the broker sends no SYN-ACKs: its operator has not switched --allow-spoofing on",
    ),
    SpoofOutcome.FORBIDDEN: (
        errno.EPERM,
        "the broker sends no SYN-ACK between these two addresses: it sees one side at another one",
    ),
    SpoofOutcome.BUSY: (errno.EBUSY, "the broker has sent too many SYN-ACKs for now"),
}

# Offers being worked on at once; more are dropped, their dialers repeat them.
MAX_OFFERS = 512


class Introductions:
    """The node's mailbox. `serve` runs as a task for the node's life."""

    def __init__(self, session: BrokerSession, identity: Identity, pins: Pins, nursery: trio.Nursery) -> None:
        self._session = session
        self._pins = pins
        self._nursery = nursery
        self._sealer = Sealer(identity)
        self._dials: dict[bytes, Dial] = {}
        self._holders: Counter[bytes] = Counter()
        self._offers = 0
        self._offered: Callable[[Delivery, Offer], Awaitable[None]] | None = None
        self._heard: Callable[[Delivery, Signal], None] | None = None

    async def resolve(self, name: str) -> bytes:
        """The 32-byte key that `name` stands for: spelled by it, pinned, or registered (and pinned now).

        Raises NameNotFound, IdentityMismatch, BrokerUnreachable.
        """
        label = normalize_name(name)
        key = decode_node_id(label) or self._pins.get("names", label)
        if key is None:
            key = await self._session.lookup(label)
            self._pins.check("names", label, key)
        return key

    async def introduce(self, dial: Dial, payload: bytes) -> Introduction:
        """Bring an offer to the listener: by the stream that shall move, while it has a carrier, else by the broker.

        Raises PeerOffline, NameNotFound, IdentityMismatch, BrokerUnreachable.
        """
        sealed = self._sealer.seal(dial.key, payload)
        if dial.say is not None and dial.instance is not None and dial.say(sealed):
            return Introduction(dial.key, dial.instance, None, dial.observed_host, dial.also_observed)
        return await self._introduce_by_broker(dial, sealed)

    async def take_tickets(self, dial: Dial, payload: bytes) -> tuple[bytes, bytes] | None:
        """The two of `dial` to a relay; None where the broker has none. For new ones it wants to bring an offer."""
        if dial.tickets is None:
            await self._introduce_by_broker(dial, self._sealer.seal(dial.key, payload))
        taken, dial.tickets = dial.tickets, None
        return taken

    async def _introduce_by_broker(self, dial: Dial, sealed: bytes) -> Introduction:
        name = None if decode_node_id(dial.label) or dial.resume is not None else dial.label
        wanted = dial.instance if dial.resume is not None else None
        try:
            introduction = await self._session.introduce(
                dial.key, dial.port, sealed, name=name, instance=wanted
            )
        except NameNotFound:
            if name is not None:
                # The pinned key no longer has this name. Whose is it? Raises IdentityMismatch where it moved.
                self._pins.check("names", name, await self._session.lookup(name))
            raise
        dial.tickets = introduction.tickets
        return introduction

    @contextmanager
    def awaiting_answer(self, dial: Dial) -> Iterator[None]:
        """What the listener says to `dial` is taken in this block, and by `insist` beyond it."""
        self.hold(dial)
        try:
            yield
        finally:
            self.release(dial)

    @contextmanager
    def withdrawn_on_failure(self, dial: Dial) -> Iterator[None]:
        """When the block fails or is cancelled the listener hears of it, and stops punching."""
        try:
            yield
        except BaseException:
            dial.answered.set()  # nobody insists any more
            if dial.instance is not None:
                word = encode_sealed_payload(Signal(dial.dial_id, 1, WITHDRAWN, b""))
                sealed = self._sealer.seal(dial.key, word)
                if dial.say is None or not dial.say(sealed):
                    self._session.send_reply(dial.key, dial.instance, sealed)
            raise

    def hold(self, dial: Dial) -> None:
        """Take what the listener says to `dial`, until as many calls of `release`."""
        self._dials[dial.dial_id] = dial
        self._holders[dial.dial_id] += 1

    def release(self, dial: Dial) -> None:
        self._holders[dial.dial_id] -= 1
        if not self._holders[dial.dial_id]:
            del self._holders[dial.dial_id], self._dials[dial.dial_id]

    def insist(self, dial: Dial, payload: bytes) -> None:
        """Repeat the offer in the background until it is answered.

        That may outlive the connect: on short paths a connection is up before its offer, lost on the way, has
        reached the listener.
        """
        self.hold(dial)
        self._nursery.start_soon(self._insist, dial, payload)

    async def _insist(self, dial: Dial, payload: bytes) -> None:
        try:
            for pause in OFFER_PAUSES:
                with trio.move_on_after(pause):
                    await dial.answered.wait()
                    return
                try:
                    await self.introduce(dial, payload)
                except OSError:
                    return
        finally:
            self.release(dial)

    def offer_by_stream(self, dial: Dial, payload: bytes) -> bool:
        """Bring an offer to the listener by the stream that it is about; False where that has no carrier now."""
        return dial.say is not None and dial.say(self._sealer.seal(dial.key, payload))

    def reply(self, delivery: Delivery, answer: Answer) -> None:
        """Answer an offer, once: its dialer repeats it until an answer has arrived."""
        self._answer(delivery, encode_sealed_payload(answer))

    async def tell_dialer(self, delivery: Delivery, payload: bytes) -> None:
        """Send a payload to where an offer came from, once."""
        self._answer(delivery, payload)

    def _answer(self, delivery: Delivery, payload: bytes) -> None:
        sealed = self._sealer.seal(delivery.sender, payload)
        # What came over a stream that has ended since was from no instance that the broker could find.
        if (delivery.answer is None or not delivery.answer(sealed)) and delivery.sender_instance:
            self._session.send_reply(delivery.sender, delivery.sender_instance, sealed)

    def tell(self, key: bytes, instance: bytes, word: Signal) -> None:
        """Send a word to one process of a node by the broker, once."""
        self._session.send_reply(key, instance, self._sealer.seal(key, encode_sealed_payload(word)))

    async def spoof(self, dial_id: bytes, peer: bytes, local: Endpoint, remote: Endpoint, syn: Syn) -> None:
        """Ask the broker for a SYN-ACK from `remote`, the peer's, to `local`, ours, that answers our `syn`. It is out
        only when both sides have asked.

        Raises OSError: EPERM where the broker does not do that, or not for these addresses; EBUSY.
        """
        outcome = await self._session.spoof(Spoof(dial_id, peer, local, remote, syn))
        if outcome in _SPOOF_REFUSALS:
            raise OSError(*_SPOOF_REFUSALS[outcome])

    async def serve(
        self,
        offered: Callable[[Delivery, Offer], Awaitable[None]],
        heard: Callable[[Delivery, Signal], None],
    ) -> None:
        """Open what arrives: answers go to their dials, each offer to a task of `offered`, signals to the dial
        that they belong to, ours or (by `heard`) the other side's. Until cancelled."""
        self._offered, self._heard = offered, heard
        async for delivery in self._session.deliveries:
            self.take(delivery)

    def take(self, delivery: Delivery) -> None:
        """What arrives by the broker, or by a stream with another node."""
        try:
            sender, payload = self._sealer.open_untrusted(delivery.sealed)
            message = decode_sealed_payload_untrusted(payload)
        except BadMessage:
            return
        if sender != delivery.sender:
            return
        if isinstance(message, (Answer, Signal)):
            dial = self._dials.get(message.dial_id)
            if dial is not None and dial.key == sender:
                dial.take(message)
            elif dial is None and isinstance(message, Signal) and self._heard is not None:
                self._heard(delivery, message)
        elif self._offers < MAX_OFFERS and self._offered is not None:
            self._offers += 1
            self._nursery.start_soon(self._work_on, self._offered, delivery, message)

    async def _work_on(
        self, offered: Callable[[Delivery, Offer], Awaitable[None]], delivery: Delivery, offer: Offer
    ) -> None:
        try:
            await offered(delivery, offer)
        finally:
            self._offers -= 1
