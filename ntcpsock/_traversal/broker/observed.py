"""As what the broker has seen us, and whether that says that our network is another one."""

from __future__ import annotations

from collections.abc import Hashable

from ntcpsock._address import Endpoint


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

    def take(self, transport: str, place: Hashable, seen: Endpoint) -> bool:
        """Whether the way out has changed since the broker saw us last. place: the socket, which is seen in one place
        as long as its mapping lives."""
        kind = transport, seen.is_ipv6
        before = self._hosts.get(kind)
        changed = (before is not None and before != seen.host) or (
            place == self._place and before is not None and seen.port != self._port
        )
        self._hosts[kind], self._place, self._port = seen.host, place, seen.port
        return changed
