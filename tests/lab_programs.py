"""What the lab's tests run inside hosts: plain sockets, nothing of ours, so that the lab is tested alone."""

from __future__ import annotations

import errno
import hashlib
import random
import selectors
import socket
import statistics
import time

Address = tuple[str, int]

PATIENCE = 30.0  # seconds until a wait is given up


def tell_addresses(addresses: list[str], port: int) -> None:
    """A server: tells each TCP and UDP client the address from which it comes. Runs until killed."""
    with selectors.DefaultSelector() as selector:
        # A socket an address: a datagram is answered from the address to which it came.
        for address in addresses:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                server = socket.socket(socket.AF_INET, kind)
                server.bind((address, port))
                if kind is socket.SOCK_STREAM:
                    server.listen(64)
                selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready.type is socket.SOCK_DGRAM:
                    _, client = ready.recvfrom(2048)
                    ready.sendto(_text(client), client)
                else:
                    connection, client = ready.accept()
                    with connection:
                        connection.sendall(_text(client))


def seen_by_tcp(server: Address, local_port: int) -> Address:
    """The address as which `server` (a `tell_addresses`) sees a TCP connection from `local_port`."""
    with _connect_patiently(server, local_port) as connection:
        return _address(b"".join(iter(lambda: connection.recv(2048), b"")))


def seen_by_udp(server: Address, local_port: int) -> Address:
    """The address as which `server` (a `tell_addresses`) sees datagrams from `local_port`."""
    with _udp(local_port) as sock:
        return _address(_ask(sock, server))


def seen_by_udp_twice(servers: list[Address], local_port: int) -> list[Address]:
    """The addresses as which several servers see datagrams from one socket."""
    with _udp(local_port) as sock:
        return [_address(_ask(sock, server)) for server in servers]


def udp_round_trips(server: Address, count: int) -> list[float]:
    """Seconds of `count` exchanges with a `tell_addresses`."""
    with _udp(0) as sock:
        _ask(sock, server)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            _ask(sock, server)
            seconds.append(time.perf_counter() - start)
        return seconds


def knock(target: Address, timeout: float) -> str:
    """What one connect gets within `timeout` seconds: "connected", "timeout", or the errno's name."""
    with socket.socket() as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(target)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "connected"


def receive_datagram(port: int, timeout: float) -> bytes | None:
    """The first datagram that comes to `port` within `timeout` seconds."""
    with _udp(port) as sock:
        sock.settimeout(timeout)
        try:
            return sock.recv(2048)
        except TimeoutError:
            return None


def send_datagrams(target: Address, count: int) -> str:
    """Send `count` datagrams, 50 ms apart; the name of the first error, or "sent"."""
    with _udp(0) as sock:
        for _ in range(count):
            try:
                sock.sendto(b"datagram", target)
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            time.sleep(0.05)
    return "sent"


def punch(local_port: int, target: Address, rtt: float, word: bytes, skew: float = 0.0) -> tuple[bytes, int]:
    """Simultaneous open: after `skew` seconds connect until it works, with a random pause after each refusal.

    Returns what the other side said, and the number of attempts.
    """
    time.sleep(skew)
    deadline = time.monotonic() + PATIENCE
    attempts = 0
    while time.monotonic() < deadline:
        attempts += 1
        with _bound(local_port) as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect(target)
                sock.sendall(word)
                sock.shutdown(socket.SHUT_WR)
                heard = b"".join(iter(lambda sock=sock: sock.recv(2048), b""))  # type: ignore[misc]
            except (ConnectionRefusedError, ConnectionResetError):
                time.sleep(random.uniform(0, rtt))
                continue
            if heard:
                return heard, attempts
    raise TimeoutError(f"no connection in {attempts} attempts")


def send_file(port: int, size: int) -> str:
    """Serve `size` random bytes to one client; their sha256."""
    block = random.randbytes(1 << 20)
    digest = hashlib.sha256()
    with socket.create_server(("0.0.0.0", port)) as listener:
        listener.settimeout(PATIENCE)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            for _ in range(size // len(block)):
                digest.update(block)
                connection.sendall(block)
    return digest.hexdigest()


def receive_file(server: Address) -> tuple[str, int, float]:
    """Download from a `send_file`: the sha256, the number of bytes, and the seconds."""
    digest = hashlib.sha256()
    size = 0
    with _connect_patiently(server, 0) as connection:
        start = time.perf_counter()
        while data := connection.recv(1 << 20):
            digest.update(data)
            size += len(data)
        return digest.hexdigest(), size, time.perf_counter() - start


def median_round_trip(server: Address, count: int) -> float:
    return statistics.median(udp_round_trips(server, count))


def _udp(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    return sock


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("0.0.0.0", port))
    return sock


def _connect_patiently(server: Address, local_port: int) -> socket.socket:
    """Connect to a server that may still be starting."""
    deadline = time.monotonic() + PATIENCE
    while True:
        sock = _bound(local_port)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(server)
        except ConnectionRefusedError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except BaseException:
            sock.close()
            raise
        else:
            return sock


def _ask(sock: socket.socket, server: Address) -> bytes:
    deadline = time.monotonic() + PATIENCE
    sock.settimeout(1.0)
    while time.monotonic() < deadline:
        sock.sendto(b"?", server)
        try:
            while True:
                data, sender = sock.recvfrom(2048)
                if sender == server:
                    return data
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise TimeoutError(f"no answer from {server}")


def _text(address: Address) -> bytes:
    return f"{address[0]} {address[1]}".encode()


def _address(text: bytes) -> Address:
    host, port = text.decode().split()
    return host, int(port)
