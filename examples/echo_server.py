"""An echo server with plain sockets: one import makes it reachable by name, through any NAT.

NTCP_BROKER=ntcp://HOST:6060 python examples/echo_server.py alice.ntcp 7000
"""

import sys
import threading

import ntcpsock as socket


def serve(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    host, port = sys.argv[1], int(sys.argv[2])
    with socket.create_server((host, port)) as listener:
        print(f"echo on {host}:{port}", flush=True)
        while True:
            connection, address = listener.accept()
            print("connection from", address, flush=True)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
