"""An extension of ours: what CHANGE-REQUEST means on a stream. The server connects back, and says how that went.

RFC 5780 tests filtering over UDP only: the server answers from another address or port. Over TCP the like of it is a
connection *from* the server: a Binding request with CHANGE-REQUEST has the server connect to the very address and
port that the request came from, out of another port of its address (change port) or out of its other address (change
address). Nobody can aim it at a third party, since the source of a stream is proven. The connection carries the
request's transaction id and is closed; the response on the first stream then has RESPONSE-ORIGIN, from where the
server connected, and CONNECT-BACK, with what outcome.

A server without it answers 420 to CHANGE-REQUEST, as RFC 5780 wants it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Attribute

#: Not in the registry: of its unassigned numbers that may be skipped (RFC 8489 section 18.3), one of our own.
CONNECT_BACK_TYPE: Final = 0xD7C9


class ConnectBackOutcome(IntEnum):
    """What became of the server's connection to the client."""

    CONNECTED = 1
    #: A RST: of the NAT, of a firewall, or of the client.
    RESET = 2
    #: Silence.
    TIMED_OUT = 3
    #: An ICMP error.
    ICMP = 4
    #: The server has too many of them under way, or from this client: ask later.
    NOT_TRIED = 5


@dataclass(frozen=True, slots=True)
class ConnectBack(Attribute):
    """CONNECT-BACK: one octet, a number of `ConnectBackOutcome`, or one that is not known yet; 3 octets of zero."""

    outcome: int
    type = CONNECT_BACK_TYPE

    def encode(self, mask: bytes) -> bytes:
        return bytes((self.outcome, 0, 0, 0))

    @classmethod
    def decode_untrusted(cls, value: bytes, mask: bytes) -> Self:
        if len(value) != 4:
            raise BadMessage(f"a CONNECT-BACK of {len(value)} octets")
        return cls(value[0])
