"""What the TCP port says to whoever looks at it: a line of text, and the list of servers for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._servers.visitor import Handler, Visitor
from ntcpsock._traversal.broker.message import RelayPlace
from ntcpsock._version import __version__

WELL_KNOWN = "/.well-known/ntcp"


def make_pages(key: bytes, stun: Sequence[Endpoint], relays: Sequence[RelayPlace]) -> dict[str, Handler]:
    """Handlers by path. In the lists the host 0.0.0.0 or ::, and the port 0, mean those at which this page
    was asked for."""
    document = {
        "version": __version__,
        "key": encode_node_id(key),
        "signal": "/signal",
        "stun": [str(server) for server in stun],
        "relays": [str(relay) for relay in relays],
    }
    return {
        WELL_KNOWN: _page(json.dumps(document) + "\n", "application/json"),
        "/": _page(f"An ntcpsock broker, key {encode_node_id(key)}.\n", "text/plain"),
    }


def _page(text: str, content_type: str) -> Handler:
    async def answer(visitor: Visitor) -> None:
        await visitor.answer(200, text, content_type)

    return answer
