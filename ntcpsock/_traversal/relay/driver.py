"""A seat at a relay: the raw connection to the other side of its session."""

from __future__ import annotations

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.http.driver import ask, open_connection
from ntcpsock._traversal.http.message import upgrade_request
from ntcpsock._traversal.http.proxy import find_proxy
from ntcpsock._traversal.relay.message import TICKET_HEADER, UPGRADE, to_header

PATH = "/relay"


async def take_seat(relay: Endpoint, ticket: bytes) -> trio.socket.SocketType:
    """Present `ticket` at `relay`. From then on the socket is as good as one to the other side, once that has come
    as well; where it does not come, the socket ends.

    Raises OSError; the caller sets the deadline. Cancelled, the connection is closed.
    """
    sock = await open_connection(relay.host, relay.port, find_proxy(relay.host))
    try:
        header = {TICKET_HEADER: to_header(ticket).decode()}
        await ask(sock, upgrade_request(str(relay), PATH, UPGRADE, header), f"the relay {relay}")
        return sock
    except BaseException:
        sock.close()
        raise
