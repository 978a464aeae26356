"""One hop more, and nothing else: `python -m benchmarks.forwarder PORT` connects to PORT and prints its own.

Two of these in a row are what any pump between two applications comes to, without encryption, frames, or a lock
that is shared with the application: the least that a round trip through an engine at either end can take.
"""

from __future__ import annotations

import select
import socket
import sys


def forward(one: socket.socket, other: socket.socket) -> None:
    """Until either ends."""
    ways = {one.fileno(): (one, other), other.fileno(): (other, one)}
    epoll = select.epoll()
    for descriptor in ways:
        epoll.register(descriptor, select.EPOLLIN)
    while True:
        for descriptor, _ in epoll.poll():
            source, target = ways[descriptor]
            if not (data := source.recv(65536)):
                return
            target.sendall(data)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    inner, _ = listener.accept()
    with inner, socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as outer:
        for end in (inner, outer):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        forward(inner, outer)


if __name__ == "__main__":
    main()
