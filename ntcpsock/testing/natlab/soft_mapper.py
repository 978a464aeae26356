"""NAT-PMP (RFC 6886) for the lab's user-space routers, whose table no daemon of the world can write to.

TCP only. It runs in a thread of the lab's owner, with its socket in the router's namespace.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from ntcpsock.testing.natlab.device import inside
from ntcpsock.testing.natlab.place import MappedPort

PORT = 5351

_HEAD = struct.Struct("!BB")
_MAP = struct.Struct("!BB2xHHI")
_ANSWER = struct.Struct("!BBHI")
_MAPPED = struct.Struct("!HHI")

_SUCCESS, _UNSUPPORTED_VERSION, _UNSUPPORTED_OPCODE = 0, 1, 5
_EXTERNAL_ADDRESS, _MAP_TCP = 0, 2
_LOOK_INTERVAL = 0.2  # seconds between two looks for leases that have ended

#: Is told a public port, and where it leads to from now on, or None.
Forward = Callable[[int, tuple[str, int] | None], None]


class SoftMapper:
    """gateway: the router's address inside; external: the one that it tells."""

    def __init__(self, namespace: str, gateway: str, external: str, forward: Forward) -> None:
        self._external = external
        self._forward = forward
        self._started = time.monotonic()
        self._leases: dict[int, tuple[str, int, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._asked = 0
        with inside(namespace):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((gateway, PORT))
        self._socket.settimeout(_LOOK_INTERVAL)
        self._thread = threading.Thread(target=self._serve, name="natlab-mapper", daemon=True)
        self._thread.start()

    @property
    def log(self) -> str:
        """Nothing."""
        return ""

    def asked(self) -> int:
        """How many packets have come."""
        return self._asked

    def mappings(self) -> list[MappedPort]:
        """The mappings in force."""
        with self._lock:
            return [MappedPort(outer, host, port) for outer, (host, port, _) in self._leases.items()]

    def restart(self) -> None:
        """Forget every mapping, and count the epoch anew."""
        with self._lock:
            self._started = time.monotonic()
            for outer in list(self._leases):
                self._unmap(outer)

    def close(self) -> None:
        """End it, and its mappings."""
        self._ended.set()
        self._thread.join()
        self._socket.close()
        self.restart()

    def _serve(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                data, client = self._socket.recvfrom(2048)
                with self._lock:
                    self._asked += 1
                    answer = self._answer(data, client[0])
                if answer:
                    self._socket.sendto(answer, client)
            with self._lock:
                now = time.monotonic()
                for outer in [outer for outer, lease in self._leases.items() if now >= lease[2]]:
                    self._unmap(outer)

    def _answer(self, data: bytes, host: str) -> bytes:
        if len(data) < _HEAD.size:
            return b""
        version, opcode = _HEAD.unpack_from(data)
        if version != 0:
            return self._head(0, _UNSUPPORTED_VERSION)
        if opcode == _EXTERNAL_ADDRESS:
            return self._head(opcode, _SUCCESS) + IPv4Address(self._external).packed
        if opcode != _MAP_TCP or len(data) < _MAP.size:
            return self._head(opcode, _UNSUPPORTED_OPCODE)
        _, _, port, wish, lifetime = _MAP.unpack_from(data)
        known = next((outer for outer, lease in self._leases.items() if lease[:2] == (host, port)), None)
        if lifetime == 0:
            if known is not None:
                self._unmap(known)
            return self._head(opcode, _SUCCESS) + _MAPPED.pack(port, 0, 0)
        outer = known or next(
            port for port in (wish or port, *range(40000, 65536)) if port not in self._leases
        )
        self._leases[outer] = (host, port, time.monotonic() + lifetime)
        self._forward(outer, (host, port))
        return self._head(opcode, _SUCCESS) + _MAPPED.pack(port, outer, lifetime)

    def _head(self, opcode: int, result: int) -> bytes:
        return _ANSWER.pack(0, 128 + opcode, result, int(time.monotonic() - self._started))

    def _unmap(self, outer: int) -> None:
        del self._leases[outer]
        self._forward(outer, None)
