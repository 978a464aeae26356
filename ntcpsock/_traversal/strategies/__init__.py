"""One file a technique; `STRATEGIES` finds it by the name that configuration and reports use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ntcpsock._traversal.strategies import lan, public, relay, tcp_open, tcp_predict
from ntcpsock._traversal.strategies.base import AttemptContext, Connection

STRATEGIES: dict[str, Callable[[AttemptContext], Awaitable[Connection]]] = {
    "public": public.attempt,
    "lan": lan.attempt,
    "tcp-open": tcp_open.attempt,
    "tcp-predict": tcp_predict.attempt,
    "relay": relay.attempt,
}
