"""One file a technique; `STRATEGIES` finds it by the name that configuration and reports use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ntcpsock._traversal.strategies import (
    ipv6,
    lan,
    port_mapped,
    public,
    relay,
    tcp_natblaster,
    tcp_open,
    tcp_predict,
    tcp_stunt1,
    tcp_stunt2,
    turn,
    udp_birthday,
    udp_predict,
    udp_punch,
)
from ntcpsock._traversal.strategies.base import AttemptContext, Connection

STRATEGIES: dict[str, Callable[[AttemptContext], Awaitable[Connection]]] = {
    "public": public.attempt,
    "lan": lan.attempt,
    "ipv6": ipv6.attempt,
    "port-mapped": port_mapped.attempt,
    "tcp-open": tcp_open.attempt,
    "tcp-predict": tcp_predict.attempt,
    "tcp-stunt2": tcp_stunt2.attempt,
    "tcp-natblaster": tcp_natblaster.attempt,
    "tcp-stunt1": tcp_stunt1.attempt,
    "udp-punch": udp_punch.attempt,
    "udp-predict": udp_predict.attempt,
    "udp-birthday": udp_birthday.attempt,
    "relay": relay.attempt,
    "turn": turn.attempt,
}
