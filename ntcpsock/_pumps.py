"""The pumps of all connections of a process, each in the shape that suits its stream. In the engine's thread."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

import trio

from ntcpsock import _forwarding
from ntcpsock._pump import Pump, Stream, close_ends, is_closed
from ntcpsock._pump_loop import LoopPump, PumpLoop, suits_loop
from ntcpsock.trio import PlainStream

log = logging.getLogger("ntcpsock")

# How often pumps that do not read are asked whether their application was reset, in seconds.
CHECK_INTERVAL = 1.0


class Pumps:
    """Runs pumps; the thread of `PumpLoop` starts with the first connection that it can carry."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._pumps: set[Pump | LoopPump] = set()
        self._loop: PumpLoop | None = None
        self._checking = False
        self._finishing = False
        self._keep_hops = False

    def __len__(self) -> int:
        return len(self._pumps)

    async def run(self, hop: socket.socket, stream: Stream) -> None:
        """Carry one connection to its end."""
        while await self._run_pump(self._new_pump(hop, stream), hop, stream):
            if not await self._is_usable(hop, stream):
                break

    async def _run_pump(self, pump: Pump | LoopPump, hop: socket.socket, stream: Stream) -> bool:
        self._pumps.add(pump)
        if self._finishing:
            pump.finish(keep_hop=self._keep_hops)
        if not self._checking:
            self._checking = True
            self._nursery.start_soon(self._check)
        ends = _forwarding.begin(pump, stream)
        try:
            return await pump.run()
        except Exception as error:  # one connection's fault must not end the others
            log.error("a connection with %s failed", stream.peer, exc_info=error)
            return False
        finally:
            _forwarding.end(ends, hop)
            self._pumps.discard(pump)

    async def _is_usable(self, hop: socket.socket, stream: Stream) -> bool:
        """Whether a stream that has lost its carrier goes on over another one. If not, both ends are closed."""
        goes_on = False
        try:
            while not self._finishing and not is_closed(hop):
                with trio.move_on_after(CHECK_INTERVAL):
                    goes_on = await stream.wait_usable()
                    break
        finally:
            if not goes_on:
                failure = stream.failure
                await close_ends(hop, stream, clean=False, keep_hop=self._keep_hops, failure=failure)
        return goes_on

    def _new_pump(self, hop: socket.socket, stream: Stream) -> Pump | LoopPump:
        if not suits_loop(stream):
            return Pump(hop, stream)
        if self._loop is None:
            self._loop = PumpLoop()
            self._nursery.start_soon(self._keep_loop, self._loop)
        return LoopPump(hop, stream, self._loop)

    async def _keep_loop(self, loop: PumpLoop) -> None:
        try:
            await trio.sleep_forever()
        finally:
            loop.stop()

    async def _check(self) -> None:
        while self._pumps:
            await trio.sleep(CHECK_INTERVAL)
            for pump in tuple(self._pumps):
                pump.check()
                if isinstance(pump, Pump) and suits_loop(pump.stream):
                    pump.leave()  # the stream has moved to a path that the faster one can carry
        self._checking = False

    def finish(self, *, keep_hops: bool) -> None:
        """Bring out what programs have written, now and of connections that come yet. Does not wait."""
        self._finishing = True
        self._keep_hops = keep_hops
        for pump in tuple(self._pumps):
            pump.finish(keep_hop=keep_hops)

    def close_copies(self) -> None:
        """In a forked child: close its copies of the carriers and of the loop's descriptors."""
        carriers: list[socket.socket] = [
            pump.carrier.socket for pump in self._pumps if isinstance(pump, LoopPump)
        ]
        streams = [pump.stream for pump in self._pumps if isinstance(pump, Pump)]
        carriers += [stream.kernel_socket for stream in streams if isinstance(stream, PlainStream)]
        paths = (getattr(getattr(stream, "carrier", None), "kernel_socket", None) for stream in streams)
        carriers += [path for path in paths if isinstance(path, socket.socket)]  # of QUIC
        if self._loop is not None:
            self._loop.close()
        for carrier in carriers:
            with suppress(OSError):
                carrier.close()
