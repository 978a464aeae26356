"""The words that messages of nodes, brokers and relays are made of: their limits, and types with these limits."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ntcpsock._address import Endpoint
from ntcpsock._traversal.broker.frame import OVERHEAD
from ntcpsock._traversal.relay.message import TICKET_LENGTH

#: With IPv6 and UDP headers still below 1280, the smallest MTU of IPv6 (RFC 8200 section 5).
MAX_DATAGRAM = 1200
#: Every client's frame is padded to this, so that a Challenge is never larger than what it answers.
MIN_CLIENT_DATAGRAM = 128
#: A node's public card, kept at the broker.
MAX_CARD = 600
#: A sealed offer or answer, as a whole frame (73 bytes of it are the frame's overhead).
MAX_SEALED = 880
MAX_NAME = 128
MAX_NAMES = 8
MAX_PORTS = 64
MAX_STUN_SERVERS = 8
#: Addresses of a broker beside the one that was reached.
MAX_ELSEWHERE = 4
#: Addresses of a node beside the one of its session.
MAX_PROVED = 3
MAX_RELAYS = 4
MAX_RELAY_HOST = 100
MAX_TURN_SERVERS = 4
MAX_TURN_URI = 110
MAX_TURN_WORD = 64
#: Entries of an allow list; each travels as a digest.
MAX_ALLOWED = 48
ALLOWED_DIGEST_LENGTH = 16
COOKIE_LENGTH = 16
SESSION_LENGTH = 8
INSTANCE_LENGTH = 8
#: See `token.token_proof`.
TOKEN_PROOF_LENGTH = 16
DIAL_ID_LENGTH = 16
#: Seconds after which a silent node is forgotten: at least longer than a cookie is good for, so that the
#: counters that refuse a recorded Hello outlive it.
MIN_TTL = 60
MAX_TTL = 600
#: The session of frames that belong to none: Hello and Challenge.
NO_SESSION = bytes(SESSION_LENGTH)
MAX_COUNTER = 2**63 - 1

_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.?")
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=rf"^{_LABEL}(\.{_LABEL})*\Z")]
NodeKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
Instance = Annotated[bytes, Meta(min_length=INSTANCE_LENGTH, max_length=INSTANCE_LENGTH)]
Session = Annotated[bytes, Meta(min_length=SESSION_LENGTH, max_length=SESSION_LENGTH)]
Sealed = Annotated[bytes, Meta(min_length=OVERHEAD, max_length=MAX_SEALED)]
Card = Annotated[bytes, Meta(min_length=1, max_length=MAX_CARD)]
Port = Annotated[int, Meta(ge=1, le=65535)]
#: Digests of the admitted, `ALLOWED_DIGEST_LENGTH` bytes each; see `allowed_digest`.
AllowList = Annotated[bytes, Meta(max_length=MAX_ALLOWED * ALLOWED_DIGEST_LENGTH)]
ObservedHost = Annotated[str, Meta(max_length=64)]
AlsoObserved = Annotated[tuple[ObservedHost, ...], Meta(max_length=MAX_PROVED)]
Ticket = Annotated[bytes, Meta(min_length=TICKET_LENGTH, max_length=TICKET_LENGTH)]
#: Empty where the node has no token.
TokenProof = Annotated[bytes, Meta(max_length=TOKEN_PROOF_LENGTH)]
RequestId = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Root of the messages."""


class RelayPlace(NamedTuple):
    """A relay as nodes are told it: `0.0.0.0` and `::` mean the host at which the broker was reached, port 0 that port,
    in TLS where the broker was reached so. tls: speak TLS there; `host` may be a name then. load: how full it is, in
    percent."""

    host: str
    port: int
    tls: bool = False
    load: int = 0

    def __str__(self) -> str:
        return f"{'wss://' if self.tls else ''}{Endpoint(self.host, self.port)}"


Relays = Annotated[tuple[RelayPlace, ...], Meta(max_length=MAX_RELAYS)]
#: Of a list that may change: counted up by the broker, from a number drawn at its start.
Edition = Annotated[int, Meta(ge=0, le=2**32 - 1)]


def check_relay(relay: RelayPlace) -> None:
    """Raises ValueError for one that cannot be told to nodes."""
    if not 0 <= relay.load <= 100:
        raise ValueError("load out of range")
    if not 0 <= relay.port <= 65535:
        raise ValueError("port out of range")
    try:
        address = ipaddress.ip_address(relay.host)
    except ValueError:
        # A certificate is made out to a name; without one, nobody need resolve anything.
        if not relay.tls or not _HOST_NAME.fullmatch(relay.host) or len(relay.host) > MAX_RELAY_HOST:
            raise
        address = None
    if not relay.port and (address is None or not address.is_unspecified):
        raise ValueError("port out of range")


def check_endpoint(endpoint: Endpoint) -> None:
    # Scoped addresses (fe80::1%2) are what a broker on the same link sees.
    if len(endpoint.host) > 64:
        raise ValueError("host is too long")
    ipaddress.ip_address(endpoint.host)
    if not 0 < endpoint.port <= 65535:
        raise ValueError("port out of range")
