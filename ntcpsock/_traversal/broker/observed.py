"""As what the broker has seen us, and whether that says that our network is another one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from ntcpsock._address import Endpoint

Difference = Literal["host", "port"]


class Observed:
    """Over UDP and TCP, and over both families, the world may see a node at different addresses, so each is compared
    with its like only."""

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, bool], str] = {}
        self._place: Hashable = None
        self._port = 0

    def forget(self) -> None:
        """We are elsewhere, and know it: what is seen next is how things are."""
        self._hosts.clear()
        self._place = None

    def take(self, transport: str, place: Hashable, seen: Endpoint) -> Difference | None:
        """What has changed since the broker saw us last: the address as which the world sees us, or only the port of
        one socket, whose mapping was lost then. None: nothing that we could not know. place: the socket."""
        kind = transport, seen.is_ipv6
        before = self._hosts.get(kind)
        difference: Difference | None = None
        if before is not None and before != seen.host:
            difference = "host"
        elif before is not None and place == self._place and seen.port != self._port:
            difference = "port"
        self._hosts[kind], self._place, self._port = seen.host, place, seen.port
        return difference
