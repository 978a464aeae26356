"""The checks as octets: STUN Binding requests and responses with short-term credentials (RFC 8445 section 7).

Both sides derive all credentials from the token of the sealed offer, so none of them travels: the dialer can check
at once, and nobody else can make, answer or even tell apart a check of this dial.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Literal

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import (
    ErrorCodeAttribute,
    UnknownAttributes,
    Username,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import (
    TRANSACTION_ID_LENGTH,
    ErrorCode,
    MessageClass,
    Method,
)
from ntcpsock._traversal.stun.message import (
    Message,
    binding_request,
    check_integrity,
    decode_message,
    encode_message,
    error_response,
)
from ntcpsock._traversal.stun.usages import IceControlled, IceControlling, Priority, UseCandidate

Side = Literal["dialer", "listener"]

#: RFC 8445 section 5.1.2.2: preferences of candidate types, for the priorities of candidates.
TYPE_PREFERENCES = {"host": 126, "mapped": 120, "prflx": 110, "srflx": 100, "relay": 0}

_TIE_BREAKER_OCTETS = 8


@dataclass(frozen=True, slots=True)
class Credentials:
    """Short-term credentials of both sides (RFC 8445 section 5.3): username fragments and passwords."""

    local_fragment: str
    local_password: str
    remote_fragment: str
    remote_password: str

    @property
    def local_key(self) -> bytes:
        """The key of requests to us, and of our responses."""
        return self.local_password.encode()

    @property
    def remote_key(self) -> bytes:
        return self.remote_password.encode()


def derive_credentials(token: bytes, round_number: int, side: Side) -> Credentials:
    """The credentials of one round of the dial whose offer has `token` (32 secret bytes), as `side` sees them."""
    dialer, listener = (
        (
            _derive(token, round_number, end, "fragment")[:16],
            _derive(token, round_number, end, "password")[:32],
        )
        for end in ("dialer", "listener")
    )
    return Credentials(*dialer, *listener) if side == "dialer" else Credentials(*listener, *dialer)


def _derive(token: bytes, round_number: int, side: str, purpose: str) -> str:
    return hmac.digest(token, f"ntcp checks {round_number} {side} {purpose}".encode(), "sha256").hex()


def candidate_priority(kind: str, preference: int) -> int:
    """RFC 8445 section 5.1.2.1. preference: among the candidates of one type, 0 to 65,535."""
    return TYPE_PREFERENCES[kind] << 24 | preference << 8 | 255


def pair_priority(controlling: int, controlled: int) -> int:
    """RFC 8445 section 6.1.2.3."""
    low, high = sorted((controlling, controlled))
    return (low << 32) + 2 * high + (controlling > controlled)


def new_tie_breaker() -> int:
    return int.from_bytes(secrets.token_bytes(_TIE_BREAKER_OCTETS))


def new_transaction_id() -> bytes:
    return secrets.token_bytes(TRANSACTION_ID_LENGTH)


@dataclass(frozen=True, slots=True)
class Request:
    """A check that came in, its credentials proven. controlling: which role its sender claims."""

    message: Message
    priority: int
    controlling: bool
    tie_breaker: int
    nominates: bool

    @property
    def transaction_id(self) -> bytes:
        return self.message.transaction_id


@dataclass(frozen=True, slots=True)
class Response:
    """The response to one of our checks, its integrity proven. code: None for success; mapped: our address as the
    other side sees it."""

    transaction_id: bytes
    code: int | None
    mapped: Endpoint | None


def encode_request(
    credentials: Credentials,
    transaction_id: bytes,
    *,
    priority: int,
    controlling: bool,
    tie_breaker: int,
    nominate: bool = False,
) -> bytes:
    """RFC 8445 section 7.2.4."""
    role = IceControlling(tie_breaker) if controlling else IceControlled(tie_breaker)
    attributes = [
        Username(f"{credentials.remote_fragment}:{credentials.local_fragment}"),
        Priority(priority),
        role,
        *([UseCandidate()] if nominate else []),
    ]
    message = binding_request(transaction_id, *attributes)
    return encode_message(message, integrity_key=credentials.remote_key, fingerprint=True)


def encode_success(credentials: Credentials, request: Message, source: Endpoint) -> bytes:
    """RFC 8445 section 7.3: shorter than any request that it can be the answer to."""
    message = Message(
        Method.BINDING, MessageClass.SUCCESS_RESPONSE, request.transaction_id, (XorMappedAddress(source),)
    )
    return encode_message(message, integrity_key=credentials.local_key, fingerprint=True)


def encode_error(credentials: Credentials, request: Message, code: ErrorCode) -> bytes:
    """The refusal of a request that has proven its credentials: 487 and 420."""
    further = (UnknownAttributes(request.unknown_required),) if code == ErrorCode.UNKNOWN_ATTRIBUTE else ()
    message = error_response(request, code, *further, reason="")
    return encode_message(message, integrity_key=credentials.local_key, fingerprint=True)


def fragment_untrusted(data: bytes) -> str:
    """Whom a request is for: the username's first half. Raises BadMessage for all that is no Binding request."""
    return _fragment(_decode_untrusted(data, MessageClass.REQUEST))


def decode_request_untrusted(data: bytes, credentials: Credentials) -> Request:
    """A check made for us. Raises BadMessage where anything of RFC 8489 section 9.1.3 or RFC 8445 section 7.3 is
    missing: such a request gets no answer, so that nobody learns by asking whether we are here."""
    message = _decode_untrusted(data, MessageClass.REQUEST)
    username = message.get(Username)
    expected = f"{credentials.local_fragment}:{credentials.remote_fragment}"
    if username is None or not hmac.compare_digest(username.text.encode(), expected.encode()):
        raise BadMessage("a check for somebody else")
    if not check_integrity(data, credentials.local_key):
        raise BadMessage("wrong integrity")
    priority = message.get(Priority)
    controlling, controlled = message.get(IceControlling), message.get(IceControlled)
    role = controlling or controlled
    if priority is None or role is None or (controlling and controlled):
        raise BadMessage("a check without priority or role")
    return Request(
        message,
        priority.priority,
        controlling is not None,
        role.tie_breaker,
        message.get(UseCandidate) is not None,
    )


def decode_response_untrusted(data: bytes, credentials: Credentials) -> Response:
    """A response that the other side made. Raises BadMessage."""
    message = _decode_untrusted(data, MessageClass.SUCCESS_RESPONSE, MessageClass.ERROR_RESPONSE)
    if not check_integrity(data, credentials.remote_key):
        raise BadMessage("wrong integrity")
    if message.message_class == MessageClass.SUCCESS_RESPONSE:
        mapped = message.get(XorMappedAddress)
        if mapped is None:
            raise BadMessage("a response without a mapped address")
        return Response(message.transaction_id, None, mapped.endpoint)
    error = message.get(ErrorCodeAttribute)
    if error is None:
        raise BadMessage("an error response without its code")
    return Response(message.transaction_id, error.code, None)


def _decode_untrusted(data: bytes, *classes: MessageClass) -> Message:
    message = decode_message(data)
    if message.method != Method.BINDING or message.message_class not in classes:
        raise BadMessage("no check")
    return message


def _fragment(message: Message) -> str:
    username = message.get(Username)
    if username is None or ":" not in username.text:
        raise BadMessage("a request without a username of two fragments")
    return username.text.partition(":")[0]
