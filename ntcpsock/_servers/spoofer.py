"""Sending the SYN-ACKs that the broker's rules (`spoofing.py`) let through."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import trio

from ntcpsock._errors import ConfigurationError
from ntcpsock._raw.inject import Injector
from ntcpsock._raw.packet import build_syn_ack
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._servers.spoofing import SynAck

_logger = logging.getLogger("ntcpsock.broker")

# Segments that wait to be built and sent.
_MAX_SYN_ACKS = 256


class Spoofer:
    """Sends what the core's rules let through. Raises ConfigurationError where this process may not."""

    def __init__(self) -> None:
        if lack := missing_for_raw(capturing=False):
            raise ConfigurationError(f"--allow-spoofing lacks {lack}")
        self._injector = Injector()
        self._send, self._receive = trio.open_memory_channel[SynAck](_MAX_SYN_ACKS)

    def put(self, segments: list[SynAck]) -> None:
        """Never waits: what finds no room is lost as if on the way, and asked for again."""
        for segment in segments:
            with suppress(trio.WouldBlock):
                self._send.send_nowait(segment)
        segments.clear()

    async def run(self) -> None:
        async for segment in self._receive:
            make = partial(build_syn_ack, segment.source, segment.target, segment.ours, segment.theirs)
            try:
                await self._injector.send(make, segment.target.host)
            except OSError as error:
                _logger.warning("cannot send a SYN-ACK to %s: %s", segment.target, error)
            else:
                _logger.info("sent a SYN-ACK of %s to %s", segment.source, segment.target)

    def close(self) -> None:
        self._injector.close()
