"""What nodes and brokers say to each other: msgpack arrays with an integer tag, every field bounded.

An `Envelope` is the payload of each sealed frame. All frames fit into one datagram of `MAX_DATAGRAM`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._raw.packet import Syn
from ntcpsock._traversal.broker.fields import (
    ALLOWED_DIGEST_LENGTH,
    COOKIE_LENGTH,
    DIAL_ID_LENGTH,
    MAX_COUNTER,
    MAX_ELSEWHERE,
    MAX_NAMES,
    MAX_PORTS,
    MAX_STUN_SERVERS,
    MAX_TTL,
    MAX_TURN_SERVERS,
    MAX_TURN_URI,
    MAX_TURN_WORD,
    MIN_CLIENT_DATAGRAM,
    MIN_TTL,
    AllowList,
    AlsoObserved,
    Body,
    Card,
    Edition,
    Instance,
    Name,
    NodeKey,
    ObservedHost,
    Port,
    Relays,
    RequestId,
    Sealed,
    Session,
    Ticket,
    TokenProof,
    check_endpoint,
    check_relay,
)
from ntcpsock._traversal.broker.frame import OVERHEAD
from ntcpsock._traversal.broker.operation import OfferRelay, Outcome, RelayTaken, WithdrawRelay


class Reason(IntEnum):
    """Why a request was refused."""

    #: Nobody has the name, or whoever has it does not let the asker know.
    NOT_FOUND = 1
    #: Nobody is connected under that key, or whoever is does not let the asker know.
    OFFLINE = 2
    #: The name belongs to another key.
    NAME_TAKEN = 3
    #: This key has as many names as one key may have.
    TOO_MANY_NAMES = 4
    #: The broker has reached a limit of its own; later it may work.
    BUSY = 5
    #: The broker takes known nodes only, and this one's key is none of them.
    NOT_ADMITTED = 6
    #: What the node has shown is no token of this broker's.
    BAD_TOKEN = 7
    #: Names are for holders of a token.
    TOKEN_NEEDED = 8
    #: The name is not one that the operator has given to this key.
    NAME_NOT_YOURS = 9
    #: The operator has banned this key.
    BANNED = 10
    #: More registrations than the operator grants one node or one address; later it works.
    OVER_QUOTA = 11


class SpoofOutcome(IntEnum):
    """What became of a Spoof."""

    #: The other side has not asked for the same yet: ask again.
    WAITING = 1
    #: Both have asked, and both SYN-ACKs are out.
    SENT = 2
    #: The operator has not switched it on.
    OFF = 3
    #: Not for these addresses: each node may ask for its own alone, as the broker sees it.
    FORBIDDEN = 4
    #: Too often; later it may work.
    BUSY = 5


# From the node


class Hello(Body, frozen=True, tag=1):
    """Open a session. With the cookie of a Challenge it proves that the source address is the sender's.

    hidden: nobody shall be told where this instance is. token: what a broker that admits by token asks for.
    """

    instance: Instance
    cookie: Annotated[bytes, Meta(max_length=COOKIE_LENGTH)] = b""
    hidden: bool = False
    token: TokenProof = b""


class Register(Body, frozen=True, tag=2):
    """The whole of what this instance offers; replaces what it said before.

    `allow` None: whoever proves a key may know and connect. Otherwise the node is private.
    """

    names: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)]
    ports: Annotated[tuple[Port, ...], Meta(max_length=MAX_PORTS)]
    #: Seconds after which a silent node is forgotten.
    ttl: Annotated[int, Meta(ge=MIN_TTL, le=MAX_TTL)]
    card: Card | None = None
    allow: AllowList | None = None
    #: Where names are for holders of a token.
    token: TokenProof = b""

    def __post_init__(self) -> None:
        if self.allow is not None:
            if len(self.allow) % ALLOWED_DIGEST_LENGTH:
                raise ValueError("allow list is not a row of digests")
            if self.card is not None:
                raise ValueError("a private node keeps its card")


class Lookup(Body, frozen=True, tag=3):
    """Ask for the key of a name."""

    name: Name


class Introduce(Body, frozen=True, tag=4):
    """Ask for a node's card and have `sealed` delivered to it, both in the same instant.

    With a `name` the answer is NOT_FOUND unless the name belongs to `to`. With an `instance` that one gets it, listed
    or not: whoever can say it has met it before.
    """

    to: NodeKey
    port: Annotated[int, Meta(ge=0, le=65535)]
    sealed: Sealed
    name: Name | None = None
    instance: Instance | None = None


class Reply(Body, frozen=True, tag=5):
    """Have `sealed` delivered to one instance of a node: the answer to an offer. Not acknowledged."""

    to: NodeKey
    instance: Instance
    sealed: Sealed


class KeepAlive(Body, frozen=True, tag=6):
    """Keep the session and the NAT's mapping. relays: the edition of the list of relays that we have; 0: none."""

    relays: Edition = 0


class Bye(Body, frozen=True, tag=7):
    """Forget this instance. Not acknowledged."""


class Spoof(Body, frozen=True, tag=9):
    """Ask for a SYN-ACK from `remote` to `local`, and let the other side have one from `local` (`tcp-stunt1`).

    Nothing is sent unless the node `peer` asks for the mirror image of the same dial, and both ends are where the
    broker sees the two nodes.
    """

    dial_id: Annotated[bytes, Meta(min_length=DIAL_ID_LENGTH, max_length=DIAL_ID_LENGTH)]
    peer: NodeKey
    #: Our endpoint, as the world sees it, and the peer's.
    local: Endpoint
    remote: Endpoint
    #: The SYN that left from `local`.
    syn: Syn

    def __post_init__(self) -> None:
        for endpoint in (self.local, self.remote):
            check_endpoint(endpoint)


class AskTurn(Body, frozen=True, tag=20):
    """Which TURN servers may be used, and how?"""


class Prove(Body, frozen=True, tag=8):
    """This instance is at this source address too: in the other family, or behind another uplink.

    Sent from there within the session. Without a good cookie a Challenge answers it.
    """

    cookie: Annotated[bytes, Meta(max_length=COOKIE_LENGTH)] = b""


# From the broker


class Challenge(Body, frozen=True, tag=32):
    """Say hello with this cookie: the broker knows no session of yours at this source address."""

    cookie: Annotated[bytes, Meta(min_length=COOKIE_LENGTH, max_length=COOKIE_LENGTH)]


class Welcome(Body, frozen=True, tag=33):
    """A session is open.

    `stun` with an unspecified host means the broker's own: its IPv4 address for 0.0.0.0, its IPv6 address for ::.
    `elsewhere`: where the broker is reached in the other family.
    """

    session: Session
    observed: Endpoint
    stun: Annotated[tuple[Endpoint, ...], Meta(max_length=MAX_STUN_SERVERS)] = ()
    elsewhere: Annotated[tuple[Endpoint, ...], Meta(max_length=MAX_ELSEWHERE)] = ()
    #: Whether the operator allows Spoof.
    spoofs: bool = False
    relays: Relays = ()
    #: Which list of relays this is; another number, another list.
    relays_edition: Edition = 0

    def __post_init__(self) -> None:
        for endpoint in (self.observed, *self.stun, *self.elsewhere):
            check_endpoint(endpoint)
        for relay in self.relays:
            check_relay(relay)


class TurnPlace(NamedTuple):
    """A TURN server as a URI of RFC 7065, and a user and a password that it takes for a while."""

    uri: str
    username: str
    password: str

    def __repr__(self) -> str:
        return f"TurnPlace({self.uri})"


class TurnPlaces(Body, frozen=True, tag=52):
    """The answer to AskTurn, best first. seconds: for which the passwords are good."""

    places: Annotated[tuple[TurnPlace, ...], Meta(max_length=MAX_TURN_SERVERS)] = ()
    seconds: Annotated[int, Meta(ge=0, le=2**31)] = 0

    def __post_init__(self) -> None:
        for place in self.places:
            if len(place.uri) > MAX_TURN_URI or max(map(len, place[1:])) > MAX_TURN_WORD:
                raise ValueError("a TURN server's URI or credentials are too long")


class Registered(Body, frozen=True, tag=34):
    """The registration stands."""


class Refused(Body, frozen=True, tag=35):
    """The registration, or a name of it, was refused; what stood before it still stands. To a Hello: there will be no
    session."""

    reason: Reason
    name: Name | None = None


class Found(Body, frozen=True, tag=36):
    """The key of the name."""

    key: NodeKey


class Introduced(Body, frozen=True, tag=37):
    """The offer is on its way to this instance. Without a card, wait for its answer."""

    key: NodeKey
    instance: Instance
    card: Card | None = None
    #: The address at which the broker sees that node: what it may be aimed at without further proof.
    observed_host: ObservedHost = ""
    #: Further addresses that it has proved.
    also_observed: AlsoObserved = ()
    #: Tickets to a relay, should the two need one: ours, and the one to pass on to that node.
    tickets: tuple[Ticket, Ticket] | None = None


class Unreachable(Body, frozen=True, tag=38):
    """To Lookup and Introduce: NOT_FOUND or OFFLINE. No field tells refusal from absence."""

    reason: Reason


class Deliver(Body, frozen=True, tag=39):
    """An offer or an answer from another node. The broker vouches for sender and name."""

    sender: NodeKey
    sender_instance: Instance
    sealed: Sealed
    sender_name: Name | None = None
    #: The address at which the broker sees the sender.
    observed_host: ObservedHost = ""
    #: Further addresses that it has proved.
    also_observed: AlsoObserved = ()


class KeepAliveAck(Body, frozen=True, tag=40):
    """The broker has heard. relays: those of now, where the node has another edition of their list; else None."""

    relays: Relays | None = None
    relays_edition: Edition = 0

    def __post_init__(self) -> None:
        for relay in self.relays or ():
            check_relay(relay)


class Spoofed(Body, frozen=True, tag=42):
    """The answer to a Spoof."""

    outcome: SpoofOutcome


class Proved(Body, frozen=True, tag=41):
    """The broker takes the source address for the node's, and tells it to whom the node is introduced."""


FromNode = (
    Hello
    | Register
    | Lookup
    | Introduce
    | Reply
    | KeepAlive
    | Bye
    | Prove
    | Spoof
    | Outcome
    | OfferRelay
    | WithdrawRelay
    | AskTurn
)
FromBroker = (
    Challenge
    | Welcome
    | Registered
    | Refused
    | Found
    | Introduced
    | Unreachable
    | Deliver
    | KeepAliveAck
    | Proved
    | Spoofed
    | RelayTaken
    | TurnPlaces
)


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    session: Session
    #: Rises with every frame of a sender. A frame whose counter was seen is a replay.
    counter: Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
    #: Chosen by the client, echoed by the broker; 0 in what answers nothing.
    request: RequestId


class ClientEnvelope(_Envelope, frozen=True):
    """From a node to its broker."""

    body: FromNode
    padding: Annotated[bytes, Meta(max_length=MIN_CLIENT_DATAGRAM)] = b""


class BrokerEnvelope(_Envelope, frozen=True):
    """From a broker to a node."""

    body: FromBroker


#: For those who do it very often: `encode_from_broker` and `decode_from_node` are these, with more words.
encode_envelope = _encode = msgspec.msgpack.Encoder().encode
_from_node = msgspec.msgpack.Decoder(ClientEnvelope)
decode_envelope = _from_node.decode
#: What `decode_envelope` raises for what is no message.
NO_MESSAGE = (msgspec.MsgspecError, ValueError, RecursionError)
_from_broker = msgspec.msgpack.Decoder(BrokerEnvelope)


def encode_from_node(session: bytes, counter: int, request: int, body: FromNode) -> bytes:
    """A client's payload, padded so that its frame has at least `MIN_CLIENT_DATAGRAM` bytes."""
    payload = _encode(ClientEnvelope(session, counter, request, body))
    missing = MIN_CLIENT_DATAGRAM - OVERHEAD - len(payload)
    if missing > 0:
        payload = _encode(ClientEnvelope(session, counter, request, body, bytes(missing)))
    return payload


def encode_from_broker(session: bytes, counter: int, request: int, body: FromBroker) -> bytes:
    """A broker's payload."""
    return _encode(BrokerEnvelope(session, counter, request, body))


def decode_from_node(payload: bytes) -> ClientEnvelope:
    """Raises BadMessage("malformed message", details)."""
    try:
        return _from_node.decode(payload)
    except NO_MESSAGE as error:
        raise BadMessage("malformed message", str(error)) from None


def decode_from_broker(payload: bytes) -> BrokerEnvelope:
    """Raises BadMessage("malformed message", details)."""
    try:
        return _from_broker.decode(payload)
    except NO_MESSAGE as error:
        raise BadMessage("malformed message", str(error)) from None
