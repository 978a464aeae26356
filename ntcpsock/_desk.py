"""Where other processes ask the engine who has arrived (see `_inquiry`)."""

from __future__ import annotations

import logging
import secrets
import socket
from contextlib import suppress
from typing import Any

import trio

from ntcpsock._arrivals import Arrivals
from ntcpsock._hop import PlainSocket, open_hops
from ntcpsock._inquiry import (
    ANSWER_DEADLINE,
    LARGEST_QUESTION,
    Inquiry,
    decode_question,
    encode_answer,
    new_inquiry,
)

log = logging.getLogger("ntcpsock")

# Askers that are served at a time; more wait in the kernel's queue.
_MOST_ASKERS = 64
_BACKLOG = 1024


class Desk:
    """One for an engine. An asker that shows no known secret, or nothing in time, gets no answer."""

    def __init__(self) -> None:
        self._arrivals: dict[bytes, Arrivals] = {}
        self._listener = PlainSocket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._address = b"\0ntcpsock-" + secrets.token_hex(16).encode()
        self._listener.bind(self._address)
        self._listener.listen(_BACKLOG)
        open_hops.add(self._listener)
        self._places = trio.CapacityLimiter(_MOST_ASKERS)

    def open(self, arrivals: Arrivals) -> Inquiry:
        """Let the arrivals of one listener be asked for."""
        inquiry = new_inquiry(self._address)
        self._arrivals[inquiry.token] = arrivals
        return inquiry

    def close(self, inquiry: Inquiry) -> None:
        self._arrivals.pop(inquiry.token, None)

    async def run(self) -> None:
        """Answer for ever."""
        with self._listener:
            async with trio.open_nursery() as nursery:
                while True:
                    token = object()
                    await self._places.acquire_on_behalf_of(token)
                    nursery.start_soon(self._serve, await self._accept(), token)

    async def _accept(self) -> socket.socket:
        plain: Any = self._listener
        while True:
            try:
                descriptor, _ = plain._accept()
                return PlainSocket(fileno=descriptor)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                await trio.lowlevel.wait_readable(self._listener)
            except OSError as error:
                log.warning("a process cannot ask who has arrived: %s", error)
                await trio.sleep(0.1)

    async def _serve(self, asker: socket.socket, token: object) -> None:
        open_hops.add(asker)
        try:
            with asker, suppress(OSError), trio.move_on_after(ANSWER_DEADLINE):
                asker.setblocking(False)
                await trio.lowlevel.wait_readable(asker)
                question = decode_question(asker.recv(LARGEST_QUESTION))
                if question is not None and question[0] in self._arrivals:
                    asker.send(encode_answer(self._arrivals[question[0]].take(question[1])))
        finally:
            self._places.release_on_behalf_of(token)
