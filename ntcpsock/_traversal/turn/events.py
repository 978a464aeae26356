"""What a TURN machine tells its driver, and what the server's refusals mean."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.constants import ErrorCode
from ntcpsock._traversal.turn.message import TurnErrorCode


@dataclass(frozen=True, slots=True)
class Allocated:
    """The allocation is there. relayed: what peers send to; mapped: ourselves as the server sees us; lifetime: seconds
    that it lasts without a refresh; rtt: of the request, in seconds."""

    relayed: Endpoint
    mapped: Endpoint
    lifetime: float
    rtt: float


@dataclass(frozen=True, slots=True)
class Redirected:
    """300: the allocation is to be had at `server`, whose certificate names `domain` where that is told."""

    server: Endpoint
    domain: str | None


@dataclass(frozen=True, slots=True)
class PeerPermitted:
    """The server passes on what comes from this host."""

    host: str


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """The server does not, or no longer, work for this host."""

    host: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Ended:
    """There is no allocation, or no more. refusal: why; None after `close`."""

    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server does not do as asked. code: its error code, None where it said nothing that counts."""

    code: int | None
    reason: str

    @property
    def errno(self) -> int:
        """The like of it among the errors of sockets."""
        if self.code is None:
            return errno.ETIMEDOUT
        return _MEANING.get(self.code, (errno.EPROTO, ""))[0]

    def __str__(self) -> str:
        if self.code is None:
            return self.reason
        meaning = _MEANING.get(self.code, (0, "the server refuses"))[1]
        # The server's own words are for people, of any length, and perhaps with control characters.
        said = "".join(c for c in self.reason if c.isprintable())[:80]
        return f"{meaning} ({self.code} {said})" if said else f"{meaning} ({self.code})"


Event = Allocated | Redirected | PeerPermitted | PeerRefused | Ended

_MEANING: dict[int, tuple[int, str]] = {
    ErrorCode.TRY_ALTERNATE: (errno.EHOSTUNREACH, "the server sends us elsewhere"),
    ErrorCode.BAD_REQUEST: (errno.EPROTO, "the server does not understand the request"),
    ErrorCode.UNAUTHENTICATED: (
        errno.EACCES,
        "the server does not take these credentials: check turn_user, turn_password or turn_secret",
    ),
    TurnErrorCode.FORBIDDEN: (errno.EACCES, "the server does not allow it"),
    ErrorCode.UNKNOWN_ATTRIBUTE: (errno.EPROTO, "the server does not know what is asked for"),
    TurnErrorCode.ALLOCATION_MISMATCH: (
        errno.ECONNRESET,
        "the server does not know the allocation: it expired, the server was restarted, or our address changed",
    ),
    ErrorCode.STALE_NONCE: (errno.EPROTO, "the server finds each of its own nonces too old"),
    TurnErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED: (
        errno.EAFNOSUPPORT,
        "the server relays no such address family",
    ),
    TurnErrorCode.WRONG_CREDENTIALS: (
        errno.EACCES,
        "the allocation belongs to another user: credentials may not change while it lasts",
    ),
    TurnErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL: (errno.EPROTONOSUPPORT, "the server does not relay UDP"),
    TurnErrorCode.PEER_ADDRESS_FAMILY_MISMATCH: (
        errno.EAFNOSUPPORT,
        "the peer has another address family than the allocation",
    ),
    TurnErrorCode.ALLOCATION_QUOTA_REACHED: (
        errno.EDQUOT,
        "this user has as many allocations as the server allows; old ones end within minutes",
    ),
    ErrorCode.SERVER_ERROR: (errno.EPROTO, "the server has a fault of its own"),
    TurnErrorCode.INSUFFICIENT_CAPACITY: (errno.ENOBUFS, "the server has no free port or address left"),
}
