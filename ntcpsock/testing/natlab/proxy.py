"""A small HTTP proxy (CONNECT only) for networks that have no other way out.

Run as `python -m ntcpsock.testing.natlab.proxy ADDRESS PORT`; it says `ready` on stdout when it listens.
"""

from __future__ import annotations

import socket
import sys
import threading

PORT = 3128
_LONGEST_REQUEST = 8192
_CONNECT_TIMEOUT = 30.0


def serve(address: str, port: int) -> None:
    """Accept for ever; a thread for each connection, as many as a lab's hosts make."""
    with socket.create_server((address, port)) as server:
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            threading.Thread(target=_handle, args=(client,), daemon=True).start()


def _handle(client: socket.socket) -> None:
    with client:
        request = _read_request(client)
        words = request.split(b" ", 2)
        if len(words) < 3 or words[0] != b"CONNECT":
            client.sendall(b"HTTP/1.1 405 Only CONNECT\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, port = words[1].decode("ascii", "replace").rpartition(":")
        try:
            remote = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT)
        except (OSError, ValueError):
            client.sendall(b"HTTP/1.1 502 Not reachable\r\nContent-Length: 0\r\n\r\n")
            return
        with remote:
            remote.settimeout(None)
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=_copy, args=(remote, client), daemon=True)
            back.start()
            _copy(client, remote)
            back.join()


def _read_request(client: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request and len(request) < _LONGEST_REQUEST:
        # One byte at a time: what follows the request belongs to the far end.
        data = client.recv(1)
        if not data:
            break
        request += data
    return request


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
