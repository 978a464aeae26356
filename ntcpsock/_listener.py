"""Where streams that arrive at one port of a node are queued until somebody accepts them."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.candidate import is_loopback


class NTCPListener(trio.abc.Listener[NTCPStream]):
    """Streams that arrive at one port of a node. `name` is the label of the node, or its node id."""

    def __init__(
        self, name: str, port: int, allow: tuple[str, ...] | None, backlog: int, on_close: Callable[[], None]
    ) -> None:
        self.name = name
        self.port = port
        self.allow = allow
        #: Whether being queued here is what a dialler waits for (see `ntcpsock._confirmation`).
        self.confirms = True
        self._sender, self._receiver = trio.open_memory_channel[NTCPStream](max(1, backlog))
        self._on_close = on_close

    async def accept(self) -> NTCPStream:
        """The next authenticated stream. Cancelling loses none. Raises ClosedResourceError after aclose()."""
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("this listener is closed") from None

    async def aclose(self) -> None:
        """Stop listening. Streams that nobody has accepted are reset."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As aclose(), without a checkpoint."""
        self._sender.close()
        while True:
            try:
                self._receiver.receive_nowait().reset()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._receiver.close()
        self._on_close()

    def offer(self, stream: NTCPStream) -> bool:
        """Queue an arrived stream. False when the backlog is full or the listener closed."""
        try:
            self._sender.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        if self.confirms and is_loopback(stream.carrier.remote.host):
            stream.confirm()
        return True
