"""The way to a TURN server: UDP, TCP, or TLS over TCP. Whole messages go in and come out."""

from __future__ import annotations

import errno
import socket as stdlib_socket
import ssl
from typing import Final, Protocol

import trio

from ntcpsock._address import Endpoint, TurnAddress
from ntcpsock._errors import BadMessage, NTCPError
from ntcpsock._traversal.http.driver import open_connection
from ntcpsock._traversal.http.proxy import find_proxy
from ntcpsock._traversal.turn.framing import TurnSplitter

#: Datagrams taken from the kernel in one go, before other tasks get their turn.
BATCH: Final = 64

_LONGEST_DATAGRAM: Final = 65_535

#: Bytes that a stream's writer holds back; a datagram more is refused, as by a full socket. Some 20 ms at 100 Mbit/s:
#: what waits longer is late for whoever measures the path.
MOST_UNSENT: Final = 256 * 1024

#: Bytes that wait besides, for our own requests: a few, each with a deadline.
_ROOM_FOR_REQUESTS: Final = 64 * 1024

_READ_SIZE: Final = 65_536


class TurnError(NTCPError, ConnectionError):
    """The TURN server cannot be reached, refuses, or no longer knows us. `code` is its error code, or None."""

    default_errno = errno.ECONNRESET
    code: int | None = None


class Transport(Protocol):
    """One connection to a server. `reliable`: it repeats and orders by itself."""

    reliable: bool
    local: Endpoint
    remote: Endpoint

    def try_send(self, unit: bytes, *, request: bool = False) -> bool:
        """Send one message without blocking; False where there is no room. request: of our own, for which there is
        more room. Raises OSError where it is broken."""
        ...

    async def receive(self) -> list[bytes]:
        """The messages that are here; at least a checkpoint, perhaps none. Raises OSError where it is broken."""
        ...

    async def wait_writable(self) -> None:
        """Until `try_send` may get on. Cancelling is safe. Raises OSError where it is broken."""
        ...

    async def run(self) -> None:
        """What has to run beside it; returns or raises nothing before it is cancelled or broken."""
        ...

    def close(self) -> None: ...


async def open_transport(
    address: TurnAddress, ca_file: str | None = None, *, server_name: str | None = None
) -> Transport:
    """A connection to the server at `address`. server_name: what its certificate must name, if that is not its host.

    Raises OSError, TurnError among them where TLS fails. The caller sets the deadline. Cancelled, all is closed.
    """
    if address.transport == "udp":
        return await _open_udp(address)
    sock = await open_connection(address.host, address.port, find_proxy(address.host))
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    try:
        stream = trio.SocketStream(sock)
        endpoints = Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2])
        if address.transport == "tls":
            stream = trio.SSLStream(
                stream,
                _tls_context(ca_file),
                server_hostname=server_name or address.host,
                https_compatible=True,
            )
            await _do_handshake(stream, address)
    except BaseException:
        sock.close()
        raise
    return StreamTransport(stream, sock, *endpoints)


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _do_handshake(stream: trio.SSLStream[trio.SocketStream], address: TurnAddress) -> None:
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        reason = "the connection ended"
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"{cause.verify_message}; the setting ca_file names who may sign it"
        elif isinstance(cause, ssl.SSLError):
            reason = cause.reason or str(cause)
        raise TurnError(errno.ECONNABORTED, f"TLS with the TURN server {address}: {reason}") from error


async def _open_udp(address: TurnAddress) -> DatagramTransport:
    found = await trio.socket.getaddrinfo(
        address.host, address.port, type=stdlib_socket.SOCK_DGRAM, proto=stdlib_socket.IPPROTO_UDP
    )
    # connect() sends nothing over UDP; it fails where the machine has no way to that family.
    failure = OSError(errno.EADDRNOTAVAIL, f"{address.host} has no address")
    for family, kind, proto, _, target in found:
        sock = stdlib_socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            sock.connect(target)
            return DatagramTransport(sock)
        except OSError as error:
            sock.close()
            failure = error
    raise failure


class DatagramTransport:
    """UDP, the socket connected: the kernel drops what anybody else sends to it."""

    reliable = False

    def __init__(self, sock: stdlib_socket.socket) -> None:
        self._socket = sock
        self.local = Endpoint(*sock.getsockname()[:2])
        self.remote = Endpoint(*sock.getpeername()[:2])
        self._buffer = memoryview(bytearray(_LONGEST_DATAGRAM))

    def try_send(self, unit: bytes, *, request: bool = False) -> bool:
        try:
            self._socket.send(unit)
        except BlockingIOError:
            return False
        except OSError as error:
            # Longer than the way to the server takes: lost, as on any router.
            if error.errno != errno.EMSGSIZE:
                raise
        return True

    async def receive(self) -> list[bytes]:
        await trio.lowlevel.wait_readable(self._socket)
        units: list[bytes] = []
        while len(units) < BATCH:
            try:
                length = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                if units:
                    break  # what has come first counts first; a lasting fault comes again
                raise
            units.append(bytes(self._buffer[:length]))
        return units

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    async def run(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class StreamTransport:
    """TCP or TLS: a bounded buffer before it, which `run` empties."""

    reliable = True

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        sock: trio.socket.SocketType,
        local: Endpoint,
        remote: Endpoint,
    ) -> None:
        self._stream = stream
        self._socket = sock
        self.local, self.remote = local, remote
        self._splitter = TurnSplitter()
        self._unsent = bytearray()
        self._sending = 0
        self._filled = trio.Event()
        self._emptied = trio.Event()
        self._error: OSError | None = None

    def try_send(self, unit: bytes, *, request: bool = False) -> bool:
        if self._error is not None:
            raise self._error
        room = MOST_UNSENT + (_ROOM_FOR_REQUESTS if request else 0)
        if self._sending + len(self._unsent) + len(unit) > room:
            return False
        self._unsent += unit
        self._filled.set()
        return True

    async def receive(self) -> list[bytes]:
        try:
            data = await self._stream.receive_some(_READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from error
        if not data:
            raise _lost(None)
        try:
            return self._splitter.receive_data(bytes(data))
        except BadMessage as error:
            raise TurnError(errno.EPROTO, f"{self.remote} does not speak TURN: {error}") from error

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._error is None and self._sending + len(self._unsent) >= MOST_UNSENT // 2:
            await self._emptied.wait()
        if self._error is not None:
            raise self._error

    async def run(self) -> None:
        try:
            while True:
                while self._unsent:
                    data, self._unsent = bytes(self._unsent), bytearray()
                    self._sending = len(data)
                    await self._stream.send_all(data)
                    self._sending = 0
                    self._wake()
                self._filled = trio.Event()
                await self._filled.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._error = _lost(error)
            raise self._error from error
        finally:
            self._wake()

    def _wake(self) -> None:
        self._emptied.set()
        self._emptied = trio.Event()

    def close(self) -> None:
        self._error = self._error or _lost(None)
        self._wake()
        # Without TLS's good-bye: the allocation has been given back already, or the connection is broken.
        self._socket.close()


def _lost(error: BaseException | None) -> TurnError:
    cause = error.__cause__ if error is not None else None
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, ssl.SSLError):
        return TurnError(cause.errno, f"the connection to the TURN server broke: {cause.strerror}")
    return TurnError("the TURN server closed the connection")
