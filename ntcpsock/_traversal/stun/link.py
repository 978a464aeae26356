"""What two STUN servers on two hosts say to each other, so that together they have the two addresses of RFC 5780.

A client asks one of them to be answered from the other address. That one makes the response and orders the other one
to send it:

    0xC5 | Unix time in ms(8) | nonce(8) | port(2) | destination port(2) | destination(16) | response | MAC(16)

`port` is that of the receiver's endpoint to answer from; an IPv4 destination is mapped (RFC 4291 section 2.5.5.2). The
MAC is a keyed BLAKE2b (RFC 7693 section 2.9) over all before it, under a key that the two share: whoever has no key
can aim nothing. The first octet is one that no STUN message begins with (RFC 8489 section 5), so orders come in at the
port that clients ask.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage

KEY_LENGTH: Final = 32
FIRST_OCTET: Final = 0xC5
#: Seconds that an order may be under way, with clocks that differ.
LIFETIME: Final = 10.0
#: The longest response that is passed on.
MAX_RESPONSE: Final = 1280

_HEAD: Final = struct.Struct("!BQ8sHH16s")
_MAC_LENGTH: Final = 16
#: What an order adds to its response.
OVERHEAD: Final = _HEAD.size + _MAC_LENGTH
# Nonces of the last seconds; beyond that nothing more is taken, so that nothing is taken twice.
_MOST_REMEMBERED: Final = 50_000


@dataclass(frozen=True, slots=True)
class Order:
    """Send `response` from your endpoint with `port` to `destination`."""

    port: int
    destination: Endpoint
    response: bytes


class Link:
    """One end. `now` is Unix time in seconds."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        if len(key) != KEY_LENGTH:
            raise ValueError(f"the key of a link has {KEY_LENGTH} bytes")
        self._key = key
        self._random_bytes = random_bytes
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def seal(self, order: Order, now: float) -> bytes:
        """The order as a datagram."""
        address = ipaddress.ip_address(order.destination.host.partition("%")[0])
        packed = address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
        milliseconds, nonce = int(now * 1000), self._random_bytes(8)
        head = _HEAD.pack(FIRST_OCTET, milliseconds, nonce, order.port, order.destination.port, packed)
        return head + order.response + self._mac(head + order.response)

    def open_untrusted(self, datagram: bytes, now: float) -> Order:
        """The order in `datagram`, once. Raises BadMessage."""
        if not OVERHEAD < len(datagram) <= OVERHEAD + MAX_RESPONSE:
            raise BadMessage("not an order")
        body, mac = datagram[:-_MAC_LENGTH], datagram[-_MAC_LENGTH:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise BadMessage("order of somebody without the key")
        first, milliseconds, nonce, port, destination_port, packed = _HEAD.unpack_from(body)
        if first != FIRST_OCTET or not destination_port:
            raise BadMessage("not an order")
        then = milliseconds / 1000
        if abs(now - then) > LIFETIME:
            raise BadMessage("order is too old, or the clocks of the two servers differ")
        self._remember(nonce, then, now)
        address = ipaddress.IPv6Address(packed)
        host = str(address.ipv4_mapped or address)
        return Order(port, Endpoint(host, destination_port), body[_HEAD.size :])

    def _remember(self, nonce: bytes, then: float, now: float) -> None:
        # They come about in the order of their times; one that does not is forgotten a little late.
        while self._seen and now - next(iter(self._seen.values())) > LIFETIME:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise BadMessage("order came twice")
        if len(self._seen) >= _MOST_REMEMBERED:
            raise BadMessage("too many orders")
        self._seen[nonce] = then

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(
            body, key=self._key, digest_size=_MAC_LENGTH, person=b"ntcp stun link"
        ).digest()
