"""Take the steps of `lifetime.py` with real sockets."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack

import trio

from ntcpsock._address import Endpoint
from ntcpsock._diagnosis import Lifetime
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.discovery.evidence import Probe
from ntcpsock._traversal.discovery.lifetime import Ladder
from ntcpsock._traversal.discovery.udp_driver import PATIENCE, ask_all, open_socket
from ntcpsock._traversal.stun.attributes import Software
from ntcpsock._traversal.stun.constants import TRANSACTION_ID_LENGTH, MessageClass
from ntcpsock._traversal.stun.message import binding_request, decode_message, encode_message
from ntcpsock._traversal.stun.usages import ResponsePort

# Seconds between the requests of one step, and how many of them.
_PAUSE, _REQUESTS = 0.4, 4
_RECEIVE_SIZE = 2048
# RESPONSE-PORT aims the answer, so a server gives none that is longer than the request.
_FILLING = Software("ntcpsock " + 40 * ".")


async def measure_lifetime(
    server: Endpoint, progress: Callable[[float, bool], None] | None = None
) -> Lifetime:
    """How long an idle UDP mapping towards `server` lives. Takes as long as that, 5 minutes at most.

    progress: called after each step with its seconds and whether the mapping was there. Raises OSError where there is
    no way out.
    """
    ladder = Ladder()
    with ExitStack() as stack:
        asking = stack.enter_context(await open_socket(server))
        mapped: dict[float, tuple[trio.socket.SocketType, Endpoint]] = {}
        made: dict[float, float] = {}

        async def make(step: float, sock: trio.socket.SocketType) -> None:
            outcome = (await ask_all(sock, [(Probe("reach", "udp", server), ())], PATIENCE))[0]
            if outcome.mapped is not None:
                mapped[step] = sock, outcome.mapped
                made[step] = trio.current_time()

        async with trio.open_nursery() as nursery:
            for each in ladder.steps:
                nursery.start_soon(make, each, stack.enter_context(await open_socket(server)))
        while (step := ladder.next_step()) is not None:
            if step not in mapped:
                return Lifetime(why="the server did not answer each time")
            await trio.sleep_until(made[step] + step)
            alive = await _is_alive(asking, server, *mapped[step])
            ladder.handle(alive)
            if progress is not None:
                progress(step, alive)
    return ladder.finding()


async def _is_alive(
    asking: trio.socket.SocketType, server: Endpoint, sock: trio.socket.SocketType, mapped: Endpoint
) -> bool:
    """Whether an answer that the server sends to `mapped`, at the word of another port, arrives at `sock`."""
    transaction_id = secrets.token_bytes(TRANSACTION_ID_LENGTH)
    request = encode_message(binding_request(transaction_id, ResponsePort(mapped.port), _FILLING))
    arrived = False

    async def listen() -> None:
        nonlocal arrived
        while True:
            data, source = await sock.recvfrom(_RECEIVE_SIZE)
            try:
                message = decode_message(data)
            except BadMessage:
                continue
            expected = message.transaction_id == transaction_id and Endpoint(*source[:2]) == server
            if expected and message.message_class == MessageClass.SUCCESS_RESPONSE:
                arrived = True
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for _ in range(_REQUESTS):
            await asking.sendto(request, tuple(server))
            await trio.sleep(_PAUSE)
        nursery.cancel_scope.cancel()
    return arrived
