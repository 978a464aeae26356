"""The road for the datagrams of all sockets of two nodes: a QUIC connection, the punched path itself, or a stream.

A road is authenticated before anybody has it. Over QUIC each datagram is encrypted, and proves its sender. On the bare
path (`encryption="off"` at both ends) only the token of the sealed offer, at the start, has proved anything: from then
on whoever can see or send the path's packets can read and forge them. Where no UDP comes through, a stream over TCP
carries the frames: late ones wait for lost ones then, as everything over TCP does.
"""

from __future__ import annotations

import errno
import hmac
import os
import struct
from typing import Final, Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_frames import MAX_PAYLOAD, decode_open_untrusted, encode_open, encode_opened
from ntcpsock._session.datagram_path import DatagramPath

# OPEN is repeated after so many seconds, doubled each time, until it is answered.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0

_LENGTH = struct.Struct("!H")
# What a stream may hold back of frames that it did not take at once. Full: the next one is dropped.
_MAX_UNSENT: Final = 262144
_READ_SIZE: Final = 65536
_MOST_AT_ONCE: Final = 256


class DatagramRoad(Protocol):
    """Frames of `datagram_frames` to and from one node. Errors of a broken road are OSErrors.

    After `close` every method but `close` raises trio.ClosedResourceError.
    """

    @property
    def local(self) -> Endpoint: ...

    @property
    def remote(self) -> Endpoint: ...

    @property
    def max_datagram_payload(self) -> int:
        """The largest frame in bytes; it may change as the path's MTU becomes known."""
        ...

    def try_send_datagram(self, data: bytes, *, more: bool = False) -> bool:
        """Send one frame without blocking; False where there is no room for it now. more: others follow at once, so
        that all may leave together, at the latest when `flush_datagrams` is called."""
        ...

    def flush_datagrams(self) -> None:
        """Send what has waited for more."""
        ...

    def try_receive_datagrams(self) -> list[bytes]:
        """The frames that are here now, a bounded batch of them, [] for none."""
        ...

    async def wait_datagram(self) -> None:
        """Until `try_receive_datagrams`, that returned [], may get on."""
        ...

    def close(self) -> None:
        """Close at once, and wake who waits."""
        ...


class BareRoad:
    """A DatagramRoad over a path as it is. answer: to the dialler's first word, where that is said again."""

    def __init__(self, path: DatagramPath, answer: bytes = b"") -> None:
        self.path = path
        self._answer = answer
        self._corked: list[bytes] = []

    @property
    def local(self) -> Endpoint:
        return self.path.local

    @property
    def remote(self) -> Endpoint:
        return self.path.remote

    @property
    def max_datagram_payload(self) -> int:
        return self.path.max_datagram_size

    def try_send_datagram(self, data: bytes, *, more: bool = False) -> bool:
        if more and len(self._corked) < _MOST_AT_ONCE:
            self._corked.append(data)
            return True
        self.flush_datagrams()
        return self.path.try_send((data,)) == 1

    def flush_datagrams(self) -> None:
        corked, self._corked = self._corked, []
        if corked:
            self.path.try_send(corked)  # what a full buffer does not take is lost

    def try_receive_datagrams(self) -> list[bytes]:
        received = []
        for data in self.path.try_receive():
            if decode_open_untrusted(data) is None:
                received.append(data)
            elif self._answer:
                self.path.try_send((self._answer,))
        return received

    async def wait_datagram(self) -> None:
        await self.path.wait_readable()

    def close(self, *, abort: bool = False) -> None:
        self.path.close()


async def open_bare_road(path: DatagramPath, dial_id: bytes, token: bytes) -> BareRoad:
    """The dialler's end of a path: choose it, and prove the dial's token. The caller sets the deadline.

    Raises OSError. The path is closed after any failure, cancellation included.
    """
    word = encode_open(dial_id, _proof(token, b"open", dial_id))
    expected = encode_opened(_proof(token, b"opened", dial_id))
    pause = _FIRST_PAUSE
    try:
        while True:
            path.try_send((word,))
            with trio.move_on_after(pause):
                while True:
                    if any(hmac.compare_digest(data, expected) for data in path.try_receive()):
                        return BareRoad(path)
                    await path.wait_readable()
            pause = min(2 * pause, _LONGEST_PAUSE)
    except BaseException:
        path.close()
        raise


async def accept_bare_road(path: DatagramPath, dial_id: bytes, token: bytes) -> BareRoad:
    """The listener's end: wait until the dialler has chosen the path. As `open_bare_road`; the answer goes out with
    the first `confirm_bare_road`, when the token has turned out to be unused."""
    expected = _proof(token, b"open", dial_id)
    try:
        while True:
            for data in path.try_receive():
                opening = decode_open_untrusted(data)
                if (
                    opening is not None
                    and hmac.compare_digest(opening[1], expected)
                    and opening[0] == dial_id
                ):
                    return BareRoad(path, encode_opened(_proof(token, b"opened", dial_id)))
            await path.wait_readable()
    except BaseException:
        path.close()
        raise


def confirm_bare_road(road: BareRoad) -> None:
    """Answer the dialler. Lost, it is sent again when the dialler repeats its word."""
    road.path.try_send((road._answer,))


def _proof(token: bytes, name: bytes, dial_id: bytes) -> bytes:
    return hmac.digest(token, b"ntcp datagrams 1\0" + name + b"\0" + dial_id, "sha256")


class StreamRoad:
    """A DatagramRoad over a carrier for a stream: each frame behind its length (2 bytes)."""

    def __init__(self, carrier: Carrier, received: bytes = b"") -> None:
        self.carrier = carrier
        self._received = bytearray(received)
        self._unsent = bytearray()
        self._scratch = bytearray(_READ_SIZE)

    @property
    def local(self) -> Endpoint:
        return self.carrier.local

    @property
    def remote(self) -> Endpoint:
        return self.carrier.remote

    @property
    def max_datagram_payload(self) -> int:
        return MAX_PAYLOAD + 5

    def try_send_datagram(self, data: bytes, *, more: bool = False) -> bool:
        if self._unsent and len(self._unsent) + len(data) > _MAX_UNSENT:
            self._flush()
        if self._unsent and len(self._unsent) + len(data) > _MAX_UNSENT:
            return False
        self._unsent += _LENGTH.pack(len(data)) + data
        if not more:
            self._flush()
        return True

    def flush_datagrams(self) -> None:
        self._flush()

    def _flush(self) -> None:
        carrier = self.carrier
        taken = carrier.try_send(bytes(self._unsent))
        del self._unsent[:taken]

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent) or self.carrier.has_unsent

    def try_receive_datagrams(self) -> list[bytes]:
        frames: list[bytes] = []
        while len(frames) < _MOST_AT_ONCE:
            while len(self._received) >= 2:
                (length,) = _LENGTH.unpack_from(self._received)
                if len(self._received) < 2 + length:
                    break
                frames.append(bytes(self._received[2 : 2 + length]))
                del self._received[: 2 + length]
            count = self.carrier.try_receive_into(memoryview(self._scratch))
            if count is None:
                break
            if count == 0:
                if frames:
                    break  # it is met again
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._received += self._scratch[:count]
        return frames

    async def wait_datagram(self) -> None:
        if not self.has_unsent:
            await self.carrier.wait_readable()
            return
        # One waits for both directions; whoever is ready first ends the other's wait, which loses nothing.
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                while self.has_unsent:
                    await self.carrier.wait_writable()
                    self._flush()

            async def read() -> None:
                await self.carrier.wait_readable()
                nursery.cancel_scope.cancel()

            nursery.start_soon(write)
            await read()

    def close(self) -> None:
        self.carrier.close()


async def drain(road: DatagramRoad) -> list[bytes]:
    """Wait for frames: at least one. Raises OSError for a broken road, ClosedResourceError for a closed one."""
    await trio.lowlevel.checkpoint()
    while not (frames := road.try_receive_datagrams()):
        await road.wait_datagram()
    return frames
