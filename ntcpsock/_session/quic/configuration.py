"""What both ends of a QUIC connection of ours agree on, in qh3's words; and how a server knows a first packet."""

from __future__ import annotations

from typing import Final

from qh3.quic.configuration import QuicConfiguration

ALPN: Final = "ntcp/1"
VERSION: Final = 1  # RFC 9000
SMALLEST_INITIAL: Final = 1200  # RFC 9000 section 14.1

# Bytes of stream data under way and not read yet: what Linux allows a TCP socket (tcp_rmem). Enough for 120 MB/s where
# a round trip takes 50 ms.
WINDOW: Final = 16 * 1024 * 1024

DONE: Final = 0  # application error codes of CONNECTION_CLOSE
ABORT: Final = 1


def parse_initial(datagram: bytes) -> bytes | None:
    """The destination connection id of the Initial packet that `datagram` begins with, None where it is none.

    RFC 9000 sections 14.1 and 17.2.2.
    """
    if len(datagram) < SMALLEST_INITIAL or datagram[0] & 0xF0 != 0xC0:
        return None
    length = datagram[5]
    if int.from_bytes(datagram[1:5], "big") != VERSION or not 8 <= length <= 20:
        return None
    return datagram[6 : 6 + length]


class ServerIdentity:
    """A certificate and its key in the form of the core. Made once: some 0.1 ms."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        loader = QuicConfiguration(is_client=False)
        loader.load_cert_chain(certificate_pem, key_pem)
        self.certificate = loader.certificate
        self.private_key = loader.private_key


def configuration(is_client: bool, datagram_size: int, initial_rtt: float) -> QuicConfiguration:
    """initial_rtt: seconds."""
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=0.0,  # is ours to watch
        # A client's core has lost its first flight before it begins (`connection`), and waits twice as long.
        initial_rtt=initial_rtt / 2 if is_client and datagram_size <= SMALLEST_INITIAL else initial_rtt,
        max_data=WINDOW,
        max_stream_data=WINDOW,
        max_datagram_frame_size=65535,
        max_datagram_size=datagram_size,
        probe_datagram_size=True,
        supported_versions=[VERSION],
    )
