"""A datagram path over a UDP socket of our own: the punched one."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session import udp_batch
from ntcpsock._session.datagram_path import SAFE_DATAGRAM_SIZE

# Kernel memory for each direction; what the system allows may be less (net.core.rmem_max).
SOCKET_BUFFER: Final = 4 * 1024 * 1024
# System calls of one `try_receive`: a batch of segments each.
RECEIVE_CALLS: Final = 16
# ICMP's words about a place that packets do not reach. One may be forged or pass away: see `SocketPath.error`.
_UNREACHABLE: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EPROTO,
        errno.ECONNRESET,
    }
)

StunHandler = Callable[[bytes, Endpoint], object]


class SocketPath:
    """See `ntcpsock._session.datagram_path.DatagramPath`. Takes `sock` over: a bound UDP socket, connected or not.

    A connected socket hears of ICMP errors and nothing of strangers; one that is not can follow a peer whose
    address changes (`retarget`).

    on_stun: gets what is STUN on this socket, from anybody (RFC 7983, RFC 9443: first byte 0 to 3).
    on_stranger: gets what comes from another address than the peer's; None: it is dropped and counted.
    plain: everything else is the application's, whatever its first byte is. STUN is then told by its magic cookie,
        and by `on_stun`, which returns False for what is none.
    error: the last ICMP error since something came from the peer, or None.
    dropped: datagrams that were neither the peer's nor wanted; lost: those that the system did not send.
    """

    def __init__(
        self,
        sock: socket.socket,
        remote: Endpoint,
        *,
        max_datagram_size: int = SAFE_DATAGRAM_SIZE,
        on_stun: StunHandler | None = None,
        plain: bool = False,
    ) -> None:
        self.socket = sock
        self.max_datagram_size = max_datagram_size
        self.on_stun = on_stun
        self.on_stranger: Callable[[bytes, Endpoint], None] | None = None
        self.error: OSError | None = None
        self.dropped = 0
        self._plain = plain
        self._joins = udp_batch.prepare(sock, SOCKET_BUFFER)
        self._sender = udp_batch.Sender(sock)
        self._closed = False
        try:
            sock.getpeername()
            self._connected = True
        except OSError:
            self._connected = False
        self.remote = remote
        self._address = _kernel_address(sock, remote)
        self.local = _endpoint(sock.getsockname())

    @property
    def lost(self) -> int:
        return self._sender.lost

    def retarget(self, remote: Endpoint) -> None:
        """Send to `remote` from now on, and take what comes from there for the peer's."""
        self._check_open()
        address = _kernel_address(self.socket, remote)
        if self._connected:
            self.socket.connect(address)
        self.remote, self._address = remote, address
        self.error = None

    # -- sending

    def try_send(self, datagrams: Sequence[bytes | memoryview]) -> int:
        self._check_open()
        return self._send(datagrams, self._address)

    def try_send_to(self, datagram: bytes, remote: Endpoint) -> None:
        """One datagram to another address than the peer's, as far as the socket takes it now."""
        self._check_open()
        if not self._connected:
            self._send([datagram], _kernel_address(self.socket, remote))

    def _send(self, datagrams: Sequence[bytes | memoryview], address: udp_batch.Address) -> int:
        sent = 0
        while sent < len(datagrams):
            try:
                taken = self._sender.send(
                    datagrams[sent:] if sent else datagrams, None if self._connected else address
                )
            except OSError as error:
                # An error of an earlier datagram: the kernel has forgotten it by telling it, and has sent nothing.
                self._note(error)
                sent += 1
                continue
            return sent + taken
        return sent

    # -- receiving

    def try_receive(self) -> list[bytes]:
        return [
            data[start : start + size]
            for data, size in self.try_receive_batches()
            for start in range(0, len(data) or 1, size)
        ]

    def try_receive_batches(self) -> list[tuple[bytes, int]]:
        """As `try_receive`, uncut: buffers, and the size of each one's datagrams."""
        self._check_open()
        batches: list[tuple[bytes, int]] = []
        for _ in range(RECEIVE_CALLS):
            try:
                data, size, address = udp_batch.receive(self.socket, self._joins)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._note(error)
                continue
            if not data and not self._plain:
                self.dropped += 1
            elif self._is_wanted(data[::size]):
                self._take(data, size, address, batches)
            else:
                for start in range(0, len(data) or 1, size):
                    self._take_one(data[start : start + size], address, batches)
        return batches

    def _is_wanted(self, first_bytes: bytes) -> bool:
        """Whether each of these is the first byte of something for us: of a QUIC packet, or of anything but STUN."""
        if self._plain:
            return min(first_bytes, default=255) > 3
        return not first_bytes.strip(_QUIC)

    def _take_one(self, data: bytes, address: udp_batch.Address, batches: list[tuple[bytes, int]]) -> None:
        if data[:1] <= b"\x03" and data and (not self._plain or data[4:8] == _COOKIE):
            if self.on_stun is not None:
                answer = self.on_stun(data, _endpoint(address))
                if answer is not False:
                    return
            if not self._plain:
                self.dropped += 1
                return
        elif not self._plain and data[:1].strip(_QUIC):
            self.dropped += 1
            return
        self._take(data, len(data) or 1, address, batches)

    def _take(
        self, data: bytes, size: int, address: udp_batch.Address, batches: list[tuple[bytes, int]]
    ) -> None:
        if self._connected or address[:2] == self._address[:2]:
            self.error = None
            batches.append((data, size))
        elif self.on_stranger is None:
            self.dropped += -(-len(data) // size)
        else:
            remote = _endpoint(address)
            for start in range(0, len(data), size):
                self.on_stranger(data[start : start + size], remote)

    def _note(self, error: OSError) -> None:
        if error.errno == errno.EMSGSIZE:
            return  # ICMP's word about a size, which tells nothing of the path and may be anybody's
        if error.errno not in _UNREACHABLE:
            raise error
        self.error = error

    # -- waiting and ending

    async def wait_readable(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_readable(self.socket)

    async def wait_writable(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_writable(self.socket)

    def interrupt(self) -> None:
        if not self._closed:
            with suppress(RuntimeError):  # outside trio nobody waits
                trio.lowlevel.notify_closing(self.socket)

    def close(self) -> None:
        if not self._closed:
            self.interrupt()
            self._closed = True
            self.socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this path was closed")


_COOKIE: Final = b"\x21\x12\xa4\x42"  # RFC 8489 section 5
# RFC 9000 section 17: the fixed bit is set, in short headers and long ones.
_QUIC: Final = bytes(range(64, 128)) + bytes(range(192, 256))


def _kernel_address(sock: socket.socket, remote: Endpoint) -> udp_batch.Address:
    if sock.family == socket.AF_INET6:
        host = remote.host if remote.is_ipv6 else f"::ffff:{remote.host}"
        # An address on a link only ("fe80::1%eth0") has its link's number as fourth part.
        host, _, link = host.partition("%")
        return host, remote.port, 0, socket.if_nametoindex(link) if link else 0
    return remote.host, remote.port


def _endpoint(address: udp_batch.Address) -> Endpoint:
    host = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    return Endpoint(host, address[1])


def unreachable(error: int) -> OSError:
    """The error of a path whose peer ICMP called unreachable with the errno `error`."""
    return OSError(error, os.strerror(error))
