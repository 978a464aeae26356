"""The cores that a connection has one after another, when it is idle in between: see `dormancy`.

The traffic secrets of each generation come from those of the one before, which are forgotten (HKDF-Expand, RFC 5869;
the first ones are TLS's, RFC 9001 section 5.1). So either end can make the next core alone, at any time, without a
handshake; and as no two generations share a key, packet numbers and the stream begin anew with each.
"""

from __future__ import annotations

import hmac
from typing import Final, NamedTuple

from qh3 import tls
from qh3._hazmat import QuicConnectionCore

from ntcpsock._session.quic import core_window
from ntcpsock._session.quic.configuration import SMALLEST_INITIAL, VERSION, WINDOW
from ntcpsock._session.quic.established import CONNECTION_IDS, Limits

ID_LENGTH: Final = 8  # bytes of connection ids

_INITIAL: Final = int(tls.Epoch.INITIAL)
_HASHES: Final = {32: "sha256", 48: "sha384"}  # by the length of a secret: RFC 8446 section B.4
_KEY_LENGTHS: Final = {"aes-128-gcm": 16, "aes-256-gcm": 32, "chacha20-poly1305": 32}


class Secrets(NamedTuple):
    """What both ends know of one generation. algorithms: AEAD and header protection, in the words of the core; sent,
    received: traffic secrets, of what this end sends and of what it receives."""

    algorithms: tuple[str, str]
    sent: bytes
    received: bytes

    def following(self) -> Secrets:
        """Those of the next generation."""
        return Secrets(self.algorithms, derive(self.sent, b"next"), derive(self.received, b"next"))

    @property
    def header_key(self) -> bytes | None:
        """Of the header protection of what is received, where that is AES."""
        return self._key(self.received, b"hp") if self.algorithms[1].startswith("aes") else None

    def _key(self, secret: bytes, label: bytes) -> bytes:
        return derive(secret, label, _KEY_LENGTHS[self.algorithms[0]])

    def make_core(
        self,
        is_client: bool,
        address: tuple[str, int],
        now: float,
        *,
        datagram_size: int,
        round_trip: float,
        limits: Limits,
    ) -> QuicConnectionCore:
        """A core of this generation, as after a handshake. round_trip: seconds, as the last one knew it."""
        ours, theirs = connection_id(self.received), connection_id(self.sent)
        began = now - round_trip
        core = _raw_core(is_client, ours, theirs, address, began, round_trip)
        limits.limit_datagrams(core, datagram_size)
        if is_client:
            other = _raw_core(False, theirs, theirs, address, began, round_trip)
            core_window.limit(other, SMALLEST_INITIAL)
            _exchange(core, other, address, began, began)
            _exchange(other, core, address, began, now)
        for direction, secret in (("send", self.sent), ("receive", self.received)):
            core.install_packet_key(
                direction,
                int(tls.Epoch.ONE_RTT),
                self.algorithms,
                self._key(secret, b"key"),
                derive(secret, b"iv", 12),
                self._key(secret, b"hp"),
                0,
                secret,
                VERSION,
            )
        core.discard_keys(_INITIAL)
        core.handshake_confirmed()
        return core


def _raw_core(
    is_client: bool, ours: bytes, theirs: bytes, address: tuple[str, int], now: float, round_trip: float
) -> QuicConnectionCore:
    """A core that knows nothing yet. ours, theirs: connection ids."""
    return QuicConnectionCore(
        is_client,
        VERSION,
        ("0.0.0.0", 0),
        address,
        ours,
        theirs,
        True,  # the peer's address is validated
        CONNECTION_IDS,
        core_window.VAST,
        False,  # what the path carries is known
        0.0,  # the idle time-out is ours to watch
        3,  # the exponent of acknowledgements' delay: RFC 9000 section 18.2
        65535,  # the longest DATAGRAM frame
        None,
        WINDOW,
        0,  # what the peer takes is said with its limits
        WINDOW,
        0,
        0,
        0,
        WINDOW,
        100,  # streams at most, as before the handshake
        100,
        0,
        0,
        round_trip,
        0.025,  # the longest delay of acknowledgements: RFC 9000 section 18.2
        now,
    )


def _exchange(
    source: QuicConnectionCore, target: QuicConnectionCore, address: tuple[str, int], sent: float, now: float
) -> None:
    """One packet under the keys that every connection begins with (RFC 9001 section 5.2), which is at `target` by now.

    A client's core that has heard nothing of its peer takes what it sends for too large as soon as an answer is late,
    and dies of a DATAGRAM that does not fit any more. So it hears one; that tells it how long a round trip takes, too.
    """
    source.send_crypto(_INITIAL, 0, b"?")
    transmit = source.poll_transmit(sent)
    assert transmit is not None
    target.receive_datagram(transmit[0], address, now)


def derive(secret: bytes, label: bytes, length: int | None = None) -> bytes:
    """HKDF-Expand (RFC 5869 section 2.3) to `length` bytes, at most and by default as many as the secret has."""
    expanded = hmac.digest(secret, b"ntcp quic " + label + b"\x01", _HASHES[len(secret)])
    return expanded if length is None else expanded[:length]


def connection_id(secret: bytes) -> bytes:
    """The one under which packets of a direction arrive."""
    return derive(secret, b"id", ID_LENGTH)
