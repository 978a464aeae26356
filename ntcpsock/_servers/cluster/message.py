"""What brokers of a cluster say to each other: msgpack arrays with an integer tag, every field bounded.

Each travels as a sealed frame (`_traversal.broker.frame`) from the key that all of them share to itself, so the store
in between can neither read nor make one. What it can do is repeat one, which costs a second delivery.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.fields import (
    AlsoObserved,
    Card,
    Instance,
    Name,
    NodeKey,
    ObservedHost,
    Sealed,
)

BROKER_ID_LENGTH = 8
#: One offer with all its fields, and its frame.
MAX_MESSAGE = 2048

BrokerId = Annotated[bytes, Meta(min_length=BROKER_ID_LENGTH, max_length=BROKER_ID_LENGTH)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Root of the messages. origin: the broker that says it, and to which an answer goes."""

    origin: BrokerId


class Offer(Body, frozen=True, tag=1):
    """Deliver an offer to the node `to`, which is with you, and say with `Met` whom it found, or `Absent`.

    exact: only to an instance that has `port`; we have one without. instance: to that one alone.
    """

    number: Number
    to: NodeKey
    port: Annotated[int, Meta(ge=0, le=65535)]
    exact: bool
    sender: NodeKey
    sender_instance: Instance
    sealed: Sealed
    instance: Instance | None = None
    observed_host: ObservedHost = ""
    also_observed: AlsoObserved = ()


class Met(Body, frozen=True, tag=2):
    """The offer with that number was delivered to this instance."""

    number: Number
    instance: Instance
    card: Card | None = None
    observed_host: ObservedHost = ""
    also_observed: AlsoObserved = ()


class Absent(Body, frozen=True, tag=3):
    """Nobody is here for the offer with that number, or nobody who lets its sender in."""

    number: Number


class Answer(Body, frozen=True, tag=4):
    """Deliver an answer to this instance of `to`, whose offer came from you. Not acknowledged, as between nodes."""

    to: NodeKey
    instance: Instance
    sender: NodeKey
    sender_instance: Instance
    sealed: Sealed
    sender_name: Name | None = None
    observed_host: ObservedHost = ""
    also_observed: AlsoObserved = ()


class Moved(Body, frozen=True, tag=5):
    """This instance is with us now: forget it, where it is still with you."""

    key: NodeKey
    instance: Instance


Message = Offer | Met | Absent | Answer | Moved

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Its payload, to be sealed."""
    return _encode(message)


def decode_untrusted(payload: bytes) -> Message:
    """Raises BadMessage("malformed message", details)."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage("malformed message", str(error)) from None
