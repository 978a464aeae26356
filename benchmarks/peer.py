"""The far end of the throughput and ping-pong benchmarks: `python -m benchmarks.peer KIND HOST [CERTIFICATE]`.

One protocol over three kinds of socket: an order (one letter and a number), then the number's worth of work.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
from pathlib import Path

ORDER = struct.Struct("!cQ")  # b"T": take so many bytes; b"P": send back so many single bytes
CHUNK = 256 * 1024


def listen(kind: str, host: str, certificate: str | None) -> socket.socket:
    """A listening socket of `kind`: plain, ssl or ntcp."""
    if kind == "ntcp":
        import ntcpsock

        return ntcpsock.create_server((host, 0))
    listener = socket.create_server((host, 0))
    if kind == "ssl":
        assert certificate is not None
        return server_context(Path(certificate)).wrap_socket(listener, server_side=True)
    return listener


def server_context(certificate: Path) -> ssl.SSLContext:
    """TLS 1.3 with the key and certificate in one PEM file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate)
    return context


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (chunk := connection.recv(count - len(data))):
        data += chunk
    return data


def serve(connection: socket.socket) -> None:
    """Carry out orders until the other side closes."""
    buffer = bytearray(CHUNK)
    while len(order := read_exactly(connection, ORDER.size)) == ORDER.size:
        letter, count = ORDER.unpack(order)
        if letter == b"P":
            for _ in range(count):
                connection.sendall(connection.recv(1))
            continue
        while count > 0:
            taken = connection.recv_into(buffer, min(count, CHUNK))
            if not taken:
                return
            count -= taken
        connection.sendall(b"k")


def main() -> None:
    kind, host, *rest = sys.argv[1:]
    listener = listen(kind, host, rest[0] if rest else None)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(connection)


if __name__ == "__main__":
    main()
