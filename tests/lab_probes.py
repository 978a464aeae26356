"""What the tests of the user-space NAT run in hosts: it is judged from outside, by plain sockets."""

from __future__ import annotations

import contextlib
import errno
import select
import selectors
import socket
import time
from pathlib import Path

import lab_programs as programs
from lab_programs import Address

SILENCE = 0.7  # seconds without an answer that count as silence: dozens of round trips
IP_RECVERR, MSG_ERRQUEUE = 11, 0x2000


def answer_from(addresses: list[Address]) -> None:
    """A server on several UDP endpoints: the datagram `N` is answered from the endpoint number N (any that
    arrived at), with the client's address. Runs until killed."""
    with selectors.DefaultSelector() as selector:
        sockets = []
        for address in addresses:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(address)
            sockets.append(sock)
            selector.register(sock, selectors.EVENT_READ, len(sockets) - 1)
        while True:
            for key, _ in selector.select():
                data, client = sockets[key.data].recvfrom(100)
                answering = sockets[int(data)]
                # Which one answered says the source address.
                answering.sendto(f"{client[0]} {client[1]}".encode(), client)


def udp_words(addresses: list[Address], local_port: int) -> tuple[list[Address], list[bool]]:
    """As which address each endpoint of an `answer_from` sees this port; and whose packets come in while only the
    first has been talked to, from port `local_port` + 500."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", local_port + 500))
        sock.settimeout(programs.PATIENCE)
        sock.sendto(b"0", addresses[0])
        assert sock.recvfrom(100)[1] == addresses[0]
        # The least likely first: an earlier guest must not open the door for the next.
        for number in reversed(range(1, len(addresses))):
            sock.sendto(str(number).encode(), addresses[0])
        heard = {addresses[0]}
        deadline = time.monotonic() + SILENCE
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                heard.add(sock.recvfrom(100)[1])
    mapped = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", local_port))
        sock.settimeout(programs.PATIENCE)
        for number, address in enumerate(addresses):
            sock.sendto(str(number).encode(), address)
            text, sender = sock.recvfrom(100)
            assert sender == address
            mapped.append(_address(text))
    return mapped, [address in heard for address in addresses]


def tcp_ports(servers: list[Address], local_port: int) -> list[Address]:
    """As which address each TCP server (a `tell_addresses`) sees this port, one after the other."""
    return [programs.seen_by_tcp(server, local_port) for server in servers]


def hold_and_listen(server: Address, local_port: int, seconds: float) -> int:
    """Keep a connection to `server` (it may be silent) from this port and listen on it too; how many come in."""
    with socket.socket() as held, socket.socket() as listener:
        for sock in (held, listener):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("0.0.0.0", local_port))
        held.settimeout(programs.PATIENCE)
        held.connect(server)
        listener.listen()
        listener.settimeout(seconds)
        count = 0
        with contextlib.suppress(TimeoutError):
            while True:
                listener.accept()[0].close()
                count += 1
        return count


def hold_connections(address: Address) -> None:
    """A server that accepts and says nothing. Runs until killed."""
    with socket.create_server(address, backlog=64) as server:
        held = []
        while True:
            held.append(server.accept()[0])


def knock_from(source: Address, target: Address, timeout: float) -> str:
    """`programs.knock` from an endpoint of choice."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(source)
        sock.settimeout(timeout)
        try:
            sock.connect(target)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "connected"


def connect_then_listen(
    target: Address, port: int, ttl: int, patience: float, ready: str, listening: float
) -> tuple[str, str]:
    """Connect from `port` with a TTL, for so long; then listen there, and say so by making the file `ready`.

    What the connect got, and who was accepted within `listening` seconds, or "nobody".
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.settimeout(patience)
        outcome = "connected"
        try:
            sock.connect(target)
        except TimeoutError:
            outcome = "timeout"
        except OSError as error:
            outcome = errno.errorcode[error.errno or 0]
    with socket.create_server(("0.0.0.0", port)) as server:
        Path(ready).touch()
        server.settimeout(listening)
        try:
            connection, peer = server.accept()
        except TimeoutError:
            return outcome, "nobody"
        connection.close()
        return outcome, str(peer[0])


def listen_once(port: int, timeout: float, ready: str) -> str:
    """Who is accepted at `port` within `timeout`, or "nobody". The file `ready` says that it listens."""
    with socket.create_server(("0.0.0.0", port)) as server:
        Path(ready).touch()
        server.settimeout(timeout)
        try:
            connection, peer = server.accept()
        except TimeoutError:
            return "nobody"
        connection.close()
        return str(peer[0])


def exchange_datagrams(port: int, target: Address, seconds: float) -> list[Address]:
    """Send to `target` from `port` every 50 ms; who was heard."""
    heard = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", port))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            sock.sendto(b"here", target)
            sock.settimeout(0.05)
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                heard.add(sock.recvfrom(100)[1])
    return sorted(heard)


def echo_datagrams(address: Address) -> None:
    """Send each datagram back. Runs until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        while True:
            sock.sendto(*sock.recvfrom(65535))


def ask_with(size: int, server: Address, tries: int = 5) -> int:
    """Send `size` bytes to an `echo_datagrams`; how many come back."""
    payload = bytes(range(256)) * (size // 256 + 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1.0)
        for _ in range(tries):
            sock.sendto(payload[:size], server)
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(65535)
                assert answer == payload[:size]
                return len(answer)
    return 0


def hop_answers(target: Address, ttls: list[int]) -> list[str]:
    """Who says "time exceeded" to a datagram of each TTL; "" for nobody."""
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        for ttl in ttls:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            sock.sendto(b"ttl", target)
            poll = select.poll()
            poll.register(sock, 0)
            answer = ""
            if poll.poll(SILENCE * 1000):
                _, ancillary, _, _ = sock.recvmsg(512, 512, MSG_ERRQUEUE)
                data = ancillary[0][2]
                # struct sock_extended_err, then the offender's sockaddr_in
                answer = socket.inet_ntoa(data[20:24])
            answers.append(answer)
    return answers


def round_trips(server: Address, count: int) -> tuple[int, int, bool, list[float]]:
    """Send `count` numbered datagrams to an `echo_datagrams` at once: distinct answers, answers, whether they came
    in order, and the seconds until each."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        start = time.monotonic()
        for number in range(count):
            sock.sendto(str(number).encode(), server)
        came: list[int] = []
        seconds = []
        sock.settimeout(SILENCE)
        with contextlib.suppress(TimeoutError):
            while True:
                came.append(int(sock.recv(100)))
                seconds.append(time.monotonic() - start)
    return len(set(came)), len(came), came == sorted(came), seconds


def through_proxy(proxy: Address, target: Address) -> str:
    """What a `tell_addresses` says through an HTTP proxy."""
    with socket.create_connection(proxy, programs.PATIENCE) as sock:
        sock.sendall(f"CONNECT {target[0]}:{target[1]} HTTP/1.1\r\n\r\n".encode())
        text = b"".join(iter(lambda: sock.recv(2048), b""))
    return text.decode()


def connect6(target: str, port: int, timeout: float) -> str:
    """`programs.knock` over IPv6."""
    with socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((target, port))
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return str(sock.getsockname()[0])


def listen6(port: int) -> None:
    """Accept IPv6 connections. Runs until killed."""
    with socket.create_server(("::", port), family=socket.AF_INET6) as server:
        while True:
            server.accept()[0].close()


def _address(text: bytes) -> Address:
    host, port = text.decode().split()
    return host, int(port)


def seen_from(source: Address, server: Address) -> Address:
    """As which address a TCP `tell_addresses` sees a connection from an endpoint of choice."""
    with socket.create_connection(server, programs.PATIENCE, source) as sock:
        return _address(b"".join(iter(lambda: sock.recv(2048), b"")))
