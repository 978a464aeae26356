"""A seat at a relay: the raw connection to the other side of its session."""

from __future__ import annotations

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.http.driver import ask, open_connection, open_tls
from ntcpsock._traversal.http.message import upgrade_request
from ntcpsock._traversal.http.proxy import find_proxy
from ntcpsock._traversal.relay.message import TICKET_HEADER, UPGRADE, to_header
from ntcpsock._traversal.relay.tunnel import TlsRelay

PATH = "/relay"


async def take_seat(relay: Endpoint, ticket: bytes) -> trio.socket.SocketType:
    """Present `ticket` at `relay`, in TLS where it is a TlsRelay. From then on the socket is as good as one to the
    other side, once that has come as well; where it does not come, the socket ends.

    Raises OSError; the caller sets the deadline. Cancelled, the connection is closed.
    """
    proxy = find_proxy(relay.host)
    request = upgrade_request(str(relay), PATH, UPGRADE, {TICKET_HEADER: to_header(ticket).decode()})
    if isinstance(relay, TlsRelay):
        outer = await open_tls(relay.host, relay.port, proxy, relay.context)
        try:
            await ask(outer, request, f"the relay {relay}")
            return await relay.tunnels.carry(outer)
        except BaseException:
            outer.close()
            raise
    sock = await open_connection(relay.host, relay.port, proxy)
    try:
        await ask(sock, request, f"the relay {relay}")
        return sock
    except BaseException:
        sock.close()
        raise
