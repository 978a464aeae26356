"""Messages about how the whole works, rather than for one node: how dials end, and which relays there are."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from ntcpsock._traversal.broker.fields import Body, RelayPlace, check_relay
from ntcpsock._traversal.relay.message import PROOF_LENGTH, SECRET_LENGTH

#: How a NAT maps, in the words of `punch.message.MappingBehavior`, or "none" where there is no NAT.
NATKind = Literal[
    "unknown",
    "none",
    "endpoint-independent",
    "endpoint-dependent",
    "address-dependent",
    "address-and-port-dependent",
    "session-dependent",
]
#: Of a path, as `PathInfo.kind`; empty where there is none.
PathKind = Literal["", "lan", "tcp", "udp", "ipv6", "port-mapped", "relay"]

LONGEST_DIAL_MS = 600_000


class Outcome(Body, frozen=True, tag=10):
    """How a dial of this node has ended: no address, no name, no key of anybody. Not acknowledged.

    technique: what has connected the two; empty: nothing. dialer, listener: the NATs of both sides. milliseconds:
    from the call to its end.
    """

    technique: Annotated[str, Meta(max_length=24, pattern=r"^[a-z0-9-]*\Z")]
    kind: PathKind
    dialer: NATKind
    listener: NATKind
    milliseconds: Annotated[int, Meta(ge=0, le=LONGEST_DIAL_MS)]


class OfferRelay(Body, frozen=True, tag=11):
    """The sender is a relay, and here it is; said again every few seconds, or it is forgotten.

    place: with its load. Its host may be 0.0.0.0 or ::, which is the address that the broker sees it come from.
    proof: that it has the broker's relay.key (`relay.message.relay_proof`), or empty where the broker knows the
    sender's key.
    """

    place: RelayPlace
    proof: Annotated[bytes, Meta(max_length=PROOF_LENGTH)] = b""

    def __post_init__(self) -> None:
        check_relay(self.place)


class WithdrawRelay(Body, frozen=True, tag=12):
    """The sender takes no more connections. Acknowledged as OfferRelay."""


class RelayTaken(Body, frozen=True, tag=43):
    """The broker tells nodes of the relay, or has ceased to. secret: what its tickets are checked with, for a relay
    that it knows by key."""

    secret: Annotated[bytes, Meta(max_length=SECRET_LENGTH)] = b""
