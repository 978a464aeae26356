"""What the TCP port says to whoever looks at it: the list of servers for programs, and how it is.

`/healthz` says that the process works, `/readyz` whether new work may be sent here, `/metrics` what it counts; that
last one only to this machine and to those whom the operator names, since it tells how many nodes there are.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Collection, Sequence
from typing import Final

from ntcpsock._address import Endpoint, encode_node_id
from ntcpsock._servers.metrics import Sources, render
from ntcpsock._servers.networks import Networks
from ntcpsock._servers.visitor import Handler, Visitor
from ntcpsock._traversal.broker.fields import RelayPlace
from ntcpsock._version import __version__

WELL_KNOWN: Final = "/.well-known/ntcp"


class Readiness:
    """Whether new work may come; `reason` is None then."""

    def __init__(self) -> None:
        self.reason: str | None = None


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
        WELL_KNOWN: page(json.dumps(document) + "\n", "application/json"),
    }


def make_operator_pages(
    sources: Callable[[], Sources], readiness: Readiness, may_read: Callable[[Visitor], bool]
) -> dict[str, Handler]:
    """Handlers by path. may_read: who sees /metrics."""

    async def metrics(visitor: Visitor) -> None:
        if not may_read(visitor):
            await visitor.answer(403, "Not for you: see --metrics-from.\n")
            return
        await visitor.answer(200, *render(sources()))

    async def ready(visitor: Visitor) -> None:
        if readiness.reason is None:
            await visitor.answer(200, "ready\n")
        else:
            await visitor.answer(503, readiness.reason + "\n")

    return {"/metrics": metrics, "/healthz": page("ok\n"), "/readyz": ready}


def readers(metrics_from: Collection[str] = ()) -> Callable[[Visitor], bool]:
    """Who may see numbers: this machine, and those addresses and networks. Raises ValueError for what is neither."""
    networks = Networks(metrics_from)

    def may_read(visitor: Visitor) -> bool:
        host = visitor.source.host
        # Whom a proxy brings that we were not told of is a stranger, wherever the proxy is.
        is_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback and not visitor.is_forwarded
        return is_local or host in networks

    return may_read


def page(text: str, content_type: str = "text/plain; charset=utf-8") -> Handler:
    """One that always says the same."""

    async def answer(visitor: Visitor) -> None:
        await visitor.answer(200, text, content_type)

    return answer
