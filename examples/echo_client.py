"""The client of echo_server.py: it sends a line and shows what comes back, and by which way.

NTCP_BROKER=ntcp://HOST:6060 python examples/echo_client.py alice.ntcp 7000 "hello there"
"""

import sys

import ntcpsock as socket


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    host, port = sys.argv[1], int(sys.argv[2])
    message = " ".join(sys.argv[3:]) or "hello"
    with socket.create_connection((host, port)) as connection:
        connection.sendall(message.encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            print(answer.read().decode())
        # A plain host name gives a plain connection, which has no such path.
        if path := getattr(connection, "path", None):
            print(f"{path.kind} path by {path.technique}, {path.local} -> {path.remote}", file=sys.stderr)


if __name__ == "__main__":
    main()
