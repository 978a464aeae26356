"""What carries a machine's frames to a broker: UDP, or a WebSocket where a network lets no UDP out."""

from __future__ import annotations

import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.websocket import WebSocketMachine
from ntcpsock._traversal.http.driver import Connection, open_connection, open_tls, send_at_once
from ntcpsock._traversal.http.proxy import Proxy
from ntcpsock._traversal.http.tls import TlsConnection
from ntcpsock._traversal.interfaces import prefer_lasting_source, source_towards

#: Address family and socket address, as `getaddrinfo` gives them.
Destination = tuple[int, tuple[Any, ...]]

# Seconds for a connection with all its exchanges until frames can go.
OPEN_DEADLINE = 10.0
# Seconds until the next try after one that failed, and their bound; doubles each time.
_SHORTEST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
# Frames that wait for the connection: the newest, as with a network that loses the rest.
_MOST_WAITING = 16
_RECEIVE_SIZE = 4096


class Transport(Protocol):
    """One way to a broker. All but `run` return at once."""

    #: Where the broker was reached: what an unspecified host in a Welcome stands for.
    host: str
    #: Likewise, as a numeric address; None for a proxy.
    destination: Destination | None
    name: str

    def send(self, frame: bytes) -> None:
        """Send a frame, or lose it. Raises OSError where the network says that it is lost."""
        ...

    async def run(
        self,
        receive: Callable[[bytes], None],
        failed: Callable[[OSError], None],
        renewed: Callable[[], None],
    ) -> None:
        """Hand received frames and errors out until cancelled. renewed: to the broker we come from another place
        now. Cancelled, it can be run again."""
        ...

    @property
    def sockets(self) -> int:
        """How many sockets it has had: a new one is another place, to the broker."""
        ...

    def is_stale(self) -> bool:
        """Whether the socket's own address is another one than that from which this machine would send now."""
        ...

    def close(self) -> None:
        """Close what is open; the next `send` begins anew."""
        ...


class UdpTransport:
    """A connected UDP socket: the kernel drops what others send, and tells us of ICMP errors."""

    name = "udp"

    def __init__(self, destination: Destination) -> None:
        self.destination: Destination | None = destination
        self._family, self._address = destination
        self.host = str(self._address[0])
        self._socket: trio.socket.SocketType | None = None
        self._raw: socket.socket | None = None
        self._opened = trio.Event()
        self.sockets = 0

    def _open(self) -> socket.socket:
        """From whatever own address now leads to the broker."""
        raw = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            raw.setblocking(False)
            if self._family == socket.AF_INET6:
                prefer_lasting_source(raw)
            raw.connect(self._address)
        except BaseException:
            raw.close()
            raise
        self.sockets += 1
        self._raw = raw
        self._socket = trio.socket.from_stdlib_socket(raw)
        self._opened.set()
        return raw

    def send(self, frame: bytes) -> None:
        # Not through trio: `introduce` is on the critical path of every connect, and a UDP socket's buffer has room.
        # Where it has not, the datagram is lost like any other.
        (self._raw or self._open()).send(frame)

    async def run(
        self,
        receive: Callable[[bytes], None],
        failed: Callable[[OSError], None],
        renewed: Callable[[], None],
    ) -> None:
        while True:
            if self._socket is None:
                await self._opened.wait()
                continue
            try:
                frame = await self._socket.recv(MAX_DATAGRAM + 1)
            except trio.ClosedResourceError:
                continue  # `close` took it away
            except OSError as error:
                failed(error)
                continue
            receive(frame)

    def is_stale(self) -> bool:
        return self._raw is not None and _is_stale(self._raw)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._raw = None
        self._opened = trio.Event()


class WebSocketTransport:
    """`GET /signal` at the broker's TCP port, by way of a proxy where the environment names one.

    context: for TLS with `host`; None: without it.
    """

    name = "tcp"

    def __init__(
        self,
        host: str,
        port: int,
        proxy: Proxy | None,
        destination: Destination | None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.destination = destination
        self._port = port
        self._context = context
        self._proxy = proxy
        self._connection: _Connection | None = None
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._has_been_open = False
        self.sockets = 0

    def send(self, frame: bytes) -> None:
        if self._connection is None:
            self._waiting.append(frame)
        else:
            self._connection.send(frame)

    async def run(
        self,
        receive: Callable[[bytes], None],
        failed: Callable[[OSError], None],
        renewed: Callable[[], None],
    ) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            try:
                if self._connection is None:
                    with trio.fail_after(OPEN_DEADLINE):
                        self._connection = await self._open()
                    self.sockets += 1
                    if self._has_been_open:
                        # What waits was made for a session at the old connection.
                        self._waiting.clear()
                        renewed()
                    self._has_been_open = True
                    while self._waiting:
                        self._connection.send(self._waiting.popleft())
                pause = _SHORTEST_PAUSE
                await self._connection.run(receive)
            except trio.TooSlowError:
                failed(TimeoutError(errno.ETIMEDOUT, f"no answer from {self._where} over TCP"))
            except OSError as error:
                failed(error)
            self.close()
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _open(self) -> _Connection:
        if self._context is None:
            sock: Connection = await open_connection(self.host, self._port, self._proxy)
        else:
            sock = await open_tls(self.host, self._port, self._proxy, self._context)
        connection = _Connection(sock, WebSocketMachine.client(self._where))
        try:
            await connection.upgrade()
        except BaseException:
            connection.close()
            raise
        return connection

    def is_stale(self) -> bool:
        return self._connection is not None and self._connection.is_stale()

    @property
    def _where(self) -> str:
        return str(Endpoint(self.host, self._port))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class _Connection:
    """One WebSocket. Frames are written at once where the kernel has room, else by `run`."""

    def __init__(self, sock: Connection, machine: WebSocketMachine) -> None:
        self._socket = sock
        self._machine = machine
        self._unsent = bytearray()
        self._has_unsent = trio.Event()
        self._early: list[bytes] = []

    async def upgrade(self) -> None:
        """Raises OSError where the server has no WebSocket for us."""
        self._take(self._machine.data_to_send())
        await self._write_all()
        while not self._machine.is_open:
            # Frames may follow the answer at once.
            self._early += await self._receive()

    def send(self, frame: bytes) -> None:
        if self._machine.is_over or len(self._unsent) > _MOST_WAITING * MAX_DATAGRAM:
            return  # lost, like a datagram
        self._machine.send(frame)
        data = self._machine.data_to_send()
        is_unsent = True
        if not self._unsent:
            # At once where the kernel has room: nobody may run us again, as after a Bye.
            data, is_unsent = send_at_once(self._socket, data)
        if is_unsent:
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._unsent += data
        self._has_unsent.set()

    async def run(self, receive: Callable[[bytes], None]) -> None:
        """Until the broker ends the connection. Raises OSError."""
        while self._early:
            receive(self._early.pop(0))
        error: OSError | None = None

        async def write() -> None:
            nonlocal error
            while True:
                await self._has_unsent.wait()
                try:
                    await self._write_all()
                except OSError as failure:
                    error = failure
                    nursery.cancel_scope.cancel()
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            try:
                while not self._machine.is_over:
                    for frame in await self._receive():
                        receive(frame)
            except OSError as failure:
                error = failure
            nursery.cancel_scope.cancel()
        raise error or ConnectionResetError(errno.ECONNRESET, "the broker ended the connection")

    async def _receive(self) -> list[bytes]:
        try:
            data = await self._socket.recv(_RECEIVE_SIZE)
        except trio.ClosedResourceError:
            raise _closed() from None
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the connection to the broker ended")
        try:
            frames = self._machine.receive(data)
        except BadMessage as error:
            raise OSError(errno.EPROTO, "the broker's TCP port: " + ": ".join(error.args)) from error
        if answer := self._machine.data_to_send():
            self._take(answer)
        return frames

    async def _write_all(self) -> None:
        while True:
            try:
                count = await self._socket.send(self._unsent)
            except trio.ClosedResourceError:
                raise _closed() from None
            del self._unsent[:count]
            if not self._unsent:
                break
        self._has_unsent = trio.Event()

    def is_stale(self) -> bool:
        """See `Transport`."""
        sock = self._socket.socket if isinstance(self._socket, TlsConnection) else self._socket
        assert isinstance(sock, trio.socket.SocketType)
        return _is_stale(sock)

    def close(self) -> None:
        """Without a goodbye: the Bye inside the frames is the one that counts."""
        self._socket.close()


def _is_stale(sock: socket.socket | trio.socket.SocketType) -> bool:
    try:
        return bool(source_towards(sock.getpeername()[0]) != sock.getsockname()[0])
    except OSError:
        return True


def _closed() -> OSError:
    return OSError(errno.ECONNABORTED, "the connection to the broker was given up")
