"""Who may come to which port of a node."""

from __future__ import annotations

from typing import Protocol

from ntcpsock._address import decode_node_id, encode_node_id
from ntcpsock._datagram_socket import NTCPDatagramSocket
from ntcpsock._listener import NTCPListener
from ntcpsock._registration import Registration
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.punch.message import DialKind


class AdmissionContext(Protocol):
    """What admission needs of its node."""

    async def resolve(self, name: str) -> bytes: ...


class Admission:
    """registration: knows the listeners and sockets, each with its list."""

    def __init__(self, node: AdmissionContext, registration: Registration) -> None:
        self._node = node
        self._registration = registration

    def listens(self, port: int, kind: DialKind) -> bool:
        """Whether a listener has `port`, or a datagram socket that is bound to it."""
        registration = self._registration
        return port in (registration.listeners if kind == "stream" else registration.datagram_sockets)

    async def admits(self, port: int, delivery: Delivery, kind: DialKind) -> bool:
        """Whether the sender of an offer may connect to `port`."""
        registration = self._registration
        place: NTCPListener | NTCPDatagramSocket | None = registration.datagram_sockets.get(port)
        if kind == "stream":
            place = registration.listeners.get(port)
        allow = registration.allow if place is None else place.allow
        return await self.is_allowed(allow, delivery.sender, delivery.sender_name)

    async def is_allowed(self, allow: tuple[str, ...] | None, key: bytes, sender_name: str | None) -> bool:
        """Whether a key is on the list; names on it may have to be looked up."""
        if allow is None or encode_node_id(key) in allow:
            return True
        for name in allow:
            # The broker's word for the sender's name is only a hint which name to look up.
            if decode_node_id(name) is None and sender_name in (None, name):
                try:
                    if await self._node.resolve(name) == key:
                        return True
                except OSError:
                    continue
        return False
