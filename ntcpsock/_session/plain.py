"""Connections without encryption: the kernel's TCP socket itself, authenticated when it begins.

After HELLO, WELCOME and NOMINATE (`hello`) there is nothing of ours on the wire: the end of the stream is
TCP's FIN, its reset is TCP's RST, and the descriptor may be handed to anybody.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._report import PathInfo, PeerInfo, Report
from ntcpsock._session import hello
from ntcpsock._session.stream import LARGEST_RECEIVE_SIZE, NTCPStream
from ntcpsock._traversal.punch.given import GivenSocket


class PlainCarrier:
    """A TCP connection whose other end has proved the token. `socket` is non-blocking; it is not read ahead.

    dialer: the dialer's part of the handshake, until it nominates; lent: where the socket is the application's.
    """

    def __init__(self, sock: socket.socket, dialer: hello.Dialer | None = None) -> None:
        self.socket = sock
        self.dialer = dialer
        self.lent: GivenSocket | None = None
        self.local = Endpoint(*sock.getsockname()[:2])
        self.remote = Endpoint(*sock.getpeername()[:2])

    def close(self, *, abort: bool = False) -> None:
        """Close at once; with `abort` the other end sees a reset, as always where the socket goes back to the
        application unused."""
        if self.lent is not None:
            self.lent.withdraw()
        if self.socket.fileno() < 0:
            return
        with suppress(RuntimeError):  # outside trio nobody waits
            trio.lowlevel.notify_closing(self.socket)
        if abort:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


async def greet(sock: socket.socket, dial_id: bytes, token: bytes) -> PlainCarrier:
    """The dialer's HELLO and the listener's WELCOME over the connected, non-blocking `sock`.

    Raises ConnectionAbortedError where the other end does not know the token, or another OSError. The caller
    sets the deadline, and closes the socket after any failure.
    """
    dialer = hello.Dialer(dial_id, token)
    await _send(sock, dialer.hello())
    try:
        dialer.take_welcome(await _receive(sock, hello.WELCOME_LENGTH))
    except BadMessage as error:
        raise ConnectionAbortedError(errno.ECONNABORTED, f"not the peer: {error}") from error
    return PlainCarrier(sock, dialer)


async def greet_over(
    sock: trio.socket.SocketType | GivenSocket, dial_id: bytes, token: bytes
) -> PlainCarrier:
    """`greet` over a connected socket that is the carrier's from here on: closed (a given one: disconnected)
    after any failure, cancellation included."""
    if isinstance(sock, GivenSocket):
        try:
            carrier = await greet(sock.socket, dial_id, token)
        except BaseException:
            sock.disconnect()
            raise
        carrier.lent = sock
        return carrier
    plain = to_plain(sock)
    try:
        return await greet(plain, dial_id, token)
    except BaseException:
        plain.close()
        raise


def to_plain(sock: trio.socket.SocketType) -> socket.socket:
    """The kernel socket of a trio one, which counts as closed."""
    plain = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    plain.setblocking(False)
    return plain


async def nominate(carrier: PlainCarrier) -> None:
    """The dialer's last word before the application's first. Raises OSError."""
    assert carrier.dialer is not None, "the listener does not nominate"
    await _send(carrier.socket, carrier.dialer.nominate())
    carrier.dialer = None


async def receive_greeting(
    sock: socket.socket, token_of: Callable[[bytes], Awaitable[bytes | None]]
) -> tuple[PlainCarrier, bytes]:
    """The listener's side over the connected, non-blocking `sock`, up to NOMINATE: the carrier and the dial id.

    token_of: tells the token of a dial, or None. Raises BadMessage, OSError. The caller sets the deadline, and
    closes the socket after any failure.
    """
    listener = hello.Listener(await _receive(sock, hello.HELLO_LENGTH))
    token = await token_of(listener.dial_id)
    if token is None:
        raise BadMessage("HELLO for a dial that is not under way")
    await _send(sock, listener.welcome(token))
    listener.take_nominate(token, await _receive(sock, hello.NOMINATE_LENGTH))
    return PlainCarrier(sock), listener.dial_id


async def _send(sock: socket.socket, data: bytes) -> None:
    await trio.lowlevel.checkpoint()
    while data:
        try:
            data = data[sock.send(data) :]
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_writable(sock)


async def _receive(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes: what follows is not ours to read."""
    await trio.lowlevel.checkpoint()
    data = b""
    while len(data) < count:
        try:
            part = sock.recv(count - len(data))
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_readable(sock)
            continue
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "the other end went away before it proved itself")
        data += part
    return data


class PlainStream(NTCPStream):
    """A connection with `encryption="off"`: authenticated when it began, then plain TCP.

    As `NTCPStream`, with the kernel's own semantics, those of `trio.SocketStream`: `aclose` does not wait for
    the peer, b"" may come from anybody on the way, and nothing is hidden from them.
    """

    def __init__(
        self,
        carrier: PlainCarrier,
        *,
        peer: PeerInfo,
        path: PathInfo,
        report: Report,
    ) -> None:
        self.peer = peer
        self.path = path
        self.report = report
        self._plain = carrier
        self._stream: trio.SocketStream | None = None

    @property
    def carrier(self) -> PlainCarrier:  # type: ignore[override]
        """Like a session's carrier it has a socket and an end of each side; it takes no frames."""
        return self._plain

    @property
    def failure(self) -> OSError | None:
        """None: its kernel says what the connection broke with, to whoever uses it."""
        return None

    async def wait_usable(self) -> bool:
        """True: it never waits for another path."""
        await trio.lowlevel.checkpoint()
        return True

    async def wait_moved(self) -> PathInfo:
        """Raises OSError (EOPNOTSUPP): such a connection is one TCP connection of the kernel's, and dies with it."""
        raise OSError(errno.EOPNOTSUPP, 'a connection with encryption="off" does not move to another path')

    def confirm(self) -> None:
        """Nothing: there are no frames."""

    async def wait_confirmed(self) -> None:
        """Nothing: there are no frames."""
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        state = "closed" if self._plain.socket.fileno() < 0 else "open"
        return f"<PlainStream {state} to {self.peer.name or self.peer.node_id}:{self.peer.port}>"

    @property
    def is_given(self) -> bool:
        """Whether this is the very socket whose descriptor was given to `Node.open_stream`."""
        return self._plain.lent is not None

    @property
    def kernel_socket(self) -> socket.socket:
        """The connected, non-blocking TCP socket."""
        return self._plain.socket

    @property
    def _socket_stream(self) -> trio.SocketStream:
        """Made at first use: it sets socket options, which are nobody's business where the socket is released."""
        if self._stream is None:
            if self._plain.socket.fileno() < 0:
                raise trio.ClosedResourceError("this stream was closed")
            sock = self._plain.socket
            self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        return self._stream

    def keep_given(self) -> None:
        """The application goes on with its own descriptor. The stream counts as closed."""
        assert self._plain.lent is not None
        self._plain.lent.keep()

    def release(self) -> int:
        """The descriptor, non-blocking, which is the caller's to close from now on. The stream counts as closed."""
        sock = self._plain.socket
        if sock.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")
        trio.lowlevel.notify_closing(sock)
        self._stream = None
        return sock.detach()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, in order; it returns when the kernel has taken it."""
        await self._socket_stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes data again."""
        await self._socket_stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Shut the sending direction down: the peer reads b"" after what was sent before."""
        await self._socket_stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """1 to `max_bytes` bytes (262,144 by default); b"" after the peer's FIN."""
        limit = LARGEST_RECEIVE_SIZE if max_bytes is None else max_bytes
        return bytes(await self._socket_stream.receive_some(limit))

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Like `receive_some` into the front of `buffer`: how many bytes, 0 after FIN."""
        view = memoryview(buffer).cast("B")
        if not view:
            raise ValueError("receive_into() needs room for at least 1 byte")
        data = await self.receive_some(len(view))
        view[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        """Close. The kernel goes on to deliver what was sent."""
        self._plain.close()
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = 0) -> None:
        """Close with a reset (RST), dropping what is under way. TCP carries no `code`."""
        self._plain.close(abort=True)
