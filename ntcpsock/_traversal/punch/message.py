"""What two nodes tell each other before a punch: the card, the offer and the answer.

The card is signed and lies at the broker; offers and answers are sealed from node to node (design,
section 4). All are MessagePack arrays, so that fields appended later stay readable for older nodes.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

import msgspec

from ntcpsock._address import Endpoint
from ntcpsock._config import Encryption, Prefer
from ntcpsock._errors import BadMessage
from ntcpsock._identity import SIGNATURE_LENGTH, Identity, verify_untrusted

DIAL_ID_LENGTH = 16
TOKEN_LENGTH = 32
FINGERPRINT_LENGTH = 32

# A liar's list costs us at most this many targets; RFC 8445 section 6.1.2.5 bounds its pairs likewise.
MAX_CANDIDATES = 14
#: Of them, of one transport.
MAX_CANDIDATES_OF_TRANSPORT = 8

#: Bytes that one side of a joint technique may tell the other at once.
MAX_SIGNAL = 512

#: Rounds that one dial can name: direct and joint ones, the relay's, the mapped port's, and the joint ones over UDP.
MAX_ROUND = 32

# More ports than this do not fit into a card; dials to them wait for the answer.
MAX_CARD_PORTS = 16

# A signature under this prefix can be mistaken for no other one of the same key.
_CARD_CONTEXT = b"ntcp card 1\0"

#: The types of RFC 8445 section 5.1.1, and "mapped": a port that a router maps to us because we asked it.
CandidateType = Literal["host", "srflx", "prflx", "relay", "mapped"]
Transport = Literal["tcp", "udp"]

#: RFC 4787 section 4.1. "endpoint-dependent" is one of the two kinds that one server address cannot tell apart;
#: "session-dependent" (Guha and Francis, 2005) is another port even for the same pair of endpoints.
MappingBehavior = Literal[
    "unknown",
    "endpoint-independent",
    "endpoint-dependent",
    "address-dependent",
    "address-and-port-dependent",
    "session-dependent",
]
#: RFC 4787 section 5.
FilteringBehavior = Literal[
    "unknown", "endpoint-independent", "address-dependent", "address-and-port-dependent"
]
#: What a SYN from outside that belongs to nothing gets (RFC 5382 section 4.3).
SynAnswer = Literal["unknown", "drop", "reset", "icmp"]

#: What a dial is for: a stream, or datagrams with nothing that orders or repeats them.
DialKind = Literal["stream", "datagram"]

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Host = Annotated[str, msgspec.Meta(max_length=45)]
_Fingerprint = Annotated[bytes, msgspec.Meta(min_length=FINGERPRINT_LENGTH, max_length=FINGERPRINT_LENGTH)]
_DialId = Annotated[bytes, msgspec.Meta(min_length=DIAL_ID_LENGTH, max_length=DIAL_ID_LENGTH)]
_Token = Annotated[bytes, msgspec.Meta(min_length=TOKEN_LENGTH, max_length=TOKEN_LENGTH)]
RelayTimes = Annotated[
    tuple[
        tuple[Annotated[str, msgspec.Meta(max_length=128)], Annotated[int, msgspec.Meta(ge=0, le=60_000)]],
        ...,
    ],
    msgspec.Meta(max_length=4),
]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A transport address at which a node may be reached (RFC 8445 section 5.1.1)."""

    type: CandidateType
    transport: Transport
    host: _Host
    port: _Port

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.host, self.port)


_Candidates = Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=MAX_CANDIDATES)]


class NATProfile(msgspec.Struct, frozen=True, array_like=True):
    """What a node believes of the NAT before it, in the words of RFC 4787. It orders attempts only."""

    #: None: not known.
    translated: bool | None = None
    mapping: MappingBehavior = "unknown"
    filtering: FilteringBehavior = "unknown"
    stray_syn: SynAnswer = "unknown"
    hairpin: bool | None = None

    @property
    def changes(self) -> bool | None:
        """Whether the mapping for a peer is another one than a STUN server sees; None: not known."""
        return None if self.mapping == "unknown" else self.mapping != "endpoint-independent"


class Card(msgspec.Struct, frozen=True, array_like=True):
    """How to reach a listening node: registered at the broker, signed by the node's key.

    ports: those open to everybody; for a port among them a dialer need not wait for the answer;
    broker_rtt: the node's round-trip time to its broker in seconds; encryption: of all its connections;
    raw: whether the node can send and capture raw packets, and wants to; relayed: whether it lets itself be reached
    over a relay; udp_profile: what the NAT does with UDP, None where that is not known to differ from `profile`;
    turn: whether the node has a TURN server to go by.
    """

    fingerprint: _Fingerprint
    candidates: _Candidates
    ports: Annotated[tuple[_Port, ...], msgspec.Meta(max_length=MAX_CARD_PORTS)] = ()
    profile: NATProfile = NATProfile()
    broker_rtt: _Seconds = 0.0
    encryption: Encryption = "tls"
    raw: bool = False
    relayed: bool = True
    udp_profile: NATProfile | None = None
    turn: bool = False


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer"):
    """The dialer's side of an introduction. A repeated dial id with a higher round adds candidates.

    source_port: what the dialling program's socket says as its own port; 0: it has no socket.
    technique: what both sides do together in this round; empty for the direct ones, which need no agreement.
    turn: how many attempts there were before this round, in this dial and in failed ones: who sends first changes.
    udp_profile: as in the card; kind: what the dialling program wants to have; prefer: where it is "tcp", both sides
    give TCP a head start over the checks of the first round. resume: the id of the stream that shall move to what is
    dialled, instead of a new one; the listener that has it lets it in whatever listens on the port by now.
    standing: nobody dials now: the listener answers, and keeps the offer for when that stream has no path left.
    """

    dial_id: _DialId
    token: _Token
    port: _Port
    round: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROUND)]
    candidates: _Candidates
    profile: NATProfile = NATProfile()
    broker_rtt: _Seconds = 0.0
    source_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    encryption: Encryption = "tls"
    technique: Annotated[str, msgspec.Meta(max_length=24)] = ""
    turn: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    udp_profile: NATProfile | None = None
    kind: DialKind = "stream"
    prefer: Prefer = "tcp"
    resume: _DialId | None = None
    standing: bool = False


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """The listener's side: whether it lets this dial in, and where it is.

    demands: the encryption without which the listener refuses this dial; None where that is not the reason.
    relay_times: how far the broker's relays are, by the broker's words for them, in milliseconds.
    """

    dial_id: _DialId
    outcome: Literal["accepted", "refused", "busy"]
    fingerprint: _Fingerprint = bytes(FINGERPRINT_LENGTH)
    candidates: _Candidates = ()
    profile: NATProfile = NATProfile()
    broker_rtt: _Seconds = 0.0
    demands: Encryption | None = None
    raw: bool = False
    relayed: bool = True
    udp_profile: NATProfile | None = None
    turn: bool = False
    relay_times: RelayTimes = ()


class Signal(msgspec.Struct, frozen=True, array_like=True, tag="signal"):
    """A word from one side of a joint technique to the other, in one round of a dial."""

    dial_id: _DialId
    round: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROUND)]
    name: Annotated[str, msgspec.Meta(max_length=24)]
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNAL)]


SealedPayload = Offer | Answer | Signal

_encoder = msgspec.msgpack.Encoder()
_card_decoder = msgspec.msgpack.Decoder(Card)
_candidates_decoder = msgspec.msgpack.Decoder(_Candidates)
_sealed_decoder: msgspec.msgpack.Decoder[SealedPayload] = msgspec.msgpack.Decoder(SealedPayload)


def encode_card(card: Card, identity: Identity) -> bytes:
    """signature(64) | MessagePack."""
    body = _encoder.encode(card)
    return identity.sign(_CARD_CONTEXT + body) + body


def encode_card_within(limit: int, card: Card, identity: Identity) -> bytes:
    """As `encode_card`, in at most `limit` bytes: IPv6 addresses are long, and the last candidates, those for UDP, may
    find no room. (Offers and answers have room for all.)"""
    while len(encoded := encode_card(card, identity)) > limit and card.candidates:
        card = msgspec.structs.replace(card, candidates=card.candidates[:-1])
    return encoded


def decode_card_untrusted(data: bytes, node_key: bytes) -> Card:
    """The card in `data`, which must bear `node_key`'s signature. Raises BadMessage."""
    signature, body = data[:SIGNATURE_LENGTH], data[SIGNATURE_LENGTH:]
    verify_untrusted(node_key, _CARD_CONTEXT + body, signature)
    return decode_card_body_untrusted(body)


def decode_card_body_untrusted(body: bytes) -> Card:
    """What stands under the signature: a node may lie under its own. Raises BadMessage."""
    try:
        card = _card_decoder.decode(body)
    # ValueError: msgspec lets UnicodeDecodeError out.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(f"card: {error}") from error
    _check_candidates(card.candidates)
    return card


def encode_sealed_payload(message: SealedPayload) -> bytes:
    return _encoder.encode(message)


def decode_sealed_payload_untrusted(data: bytes) -> SealedPayload:
    """What was inside an opened box. Raises BadMessage."""
    try:
        message = _sealed_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(f"offer, answer or signal: {error}") from error
    if not isinstance(message, Signal):
        _check_candidates(message.candidates)
    return message


def encode_candidates(candidates: tuple[Candidate, ...]) -> bytes:
    """The body of a signal: at most `MAX_CANDIDATES_OF_TRANSPORT` fit."""
    return _encoder.encode(candidates)


def decode_candidates_untrusted(body: bytes) -> tuple[Candidate, ...]:
    """What stands in such a signal. Raises BadMessage."""
    try:
        candidates = _candidates_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(f"candidates: {error}") from error
    _check_candidates(candidates)
    return candidates


def _check_candidates(candidates: tuple[Candidate, ...]) -> None:
    for candidate in candidates:
        try:
            address = ipaddress.ip_address(candidate.host)
        except ValueError as error:
            raise BadMessage(f"candidate: {candidate.host!r} is not a numeric address") from error
        if str(address) != candidate.host:
            raise BadMessage(f"candidate: {candidate.host!r} is not in its canonical form")
