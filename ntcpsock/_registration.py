"""What the broker knows of a node: its names and ports, who may come, and its card."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from ntcpsock._address import decode_node_id, normalize_name
from ntcpsock._config import Config, Encryption
from ntcpsock._datagram_socket import NTCPDatagramSocket
from ntcpsock._errors import ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._listener import NTCPListener
from ntcpsock._traversal.broker.driver import BrokerSession
from ntcpsock._traversal.broker.fields import MAX_CARD
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.message import MAX_CANDIDATES, MAX_CARD_PORTS, Card, encode_card_within
from ntcpsock._traversal.turn.credentials import TurnServer

# Ports that one registration names; further ones are not looked at by the broker.
_MOST_PORTS = 64


class CardContext(Protocol):
    """What a card says of its node."""

    @property
    def fingerprint(self) -> bytes | None: ...
    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def encryption(self) -> Encryption: ...
    @property
    def broker_rtt(self) -> float: ...
    @property
    def offers_raw(self) -> bool: ...
    @property
    def turn_servers(self) -> Sequence[TurnServer]: ...
    @property
    def listening_port(self) -> WarmPort | None: ...


class Registration:
    """One node's. Whoever changes `listeners` or `names` says `send` afterwards."""

    def __init__(self, node: CardContext, config: Config, identity: Identity, session: BrokerSession) -> None:
        self._node = node
        self._config = config
        self._identity = identity
        self._session = session
        self.listeners: dict[int, NTCPListener] = {}
        #: Datagram sockets to which others may send first.
        self.datagram_sockets: dict[int, NTCPDatagramSocket] = {}
        self.names: tuple[str, ...] = () if config.name is None else (config.name,)

    def own_label(self, name: str | None) -> str | None:
        """The label that a listener asks for; None for the node id. Raises ConfigurationError."""
        label = self._config.name if name is None else normalize_name(name)
        node_id = self._identity.node_id
        if label is None or label == node_id:
            return None
        if decode_node_id(label) is not None:
            raise ConfigurationError(f"{label} is another node's id; this node is {node_id}")
        if self._config.name is None and self._config.identity is None:
            raise ConfigurationError(
                f"a node without a name has a key that is gone tomorrow, and {label!r} with it: "
                f"open the node with name={label!r}, or set NTCP_NAME={label}"
            )
        return label

    async def add(self, listener: NTCPListener, label: str | None) -> None:
        """Register a further listener, under `label` where it has one. Raises NameTaken, BrokerUnreachable."""
        self.listeners[listener.port] = listener
        try:
            await self._send_with(label)
        except BaseException:
            self.listeners.pop(listener.port, None)
            raise

    async def add_datagram_socket(self, sock: NTCPDatagramSocket, label: str | None) -> None:
        """As `add`."""
        self.datagram_sockets[sock.port] = sock
        try:
            await self._send_with(label)
        except BaseException:
            self.datagram_sockets.pop(sock.port, None)
            raise

    async def _send_with(self, label: str | None) -> None:
        try:
            if label is not None and label not in self.names:
                self.names += (label,)
            await self.send()
        except BaseException:
            if label != self._config.name:
                self.names = tuple(known for known in self.names if known != label)
            raise

    async def send(self) -> None:
        """Tell the broker how things are now. Raises NameTaken, BrokerUnreachable."""
        await self._session.set_registration(self.names, self._ports()[:_MOST_PORTS], self.card(), self.allow)

    def _ports(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*self.listeners, *self.datagram_sockets)))

    async def send_quietly(self) -> None:
        """As `send`; the session repeats the registration itself when the broker is back."""
        with suppress(OSError):
            await self.send()

    async def card_changed(self) -> None:
        """Where there is a card, the broker gets the new one."""
        if self._ports():
            await self.send_quietly()

    def card(self) -> bytes | None:
        """The signed card; None where there is none to be given to everybody."""
        node = self._node
        warm, fingerprint = node.listening_port, node.fingerprint
        if warm is None or fingerprint is None or self.is_private or not self._ports():
            return None
        open_to_all = [port for port, listener in self.listeners.items() if listener.allow is None]
        card = Card(
            fingerprint,
            warm.offered[:MAX_CANDIDATES],
            tuple(open_to_all[:MAX_CARD_PORTS]),
            warm.profile,
            node.broker_rtt,
            node.encryption,
            node.offers_raw,
            "relay" in node.techniques,
            warm.udp_profile,
            bool(node.turn_servers),
        )
        return encode_card_within(MAX_CARD, card, self._identity)

    @property
    def is_private(self) -> bool:
        """Whether every listener admits only those on its list: then there is no card at the broker."""
        return self.allow is not None

    @property
    def allow(self) -> tuple[str, ...] | None:
        """Who may connect to any listener: names and node ids; None for everybody."""
        lists = [listener.allow for listener in self.listeners.values()]
        lists += [sock.allow for sock in self.datagram_sockets.values()]
        lists = lists or [self._config.allow]
        entries: dict[str, None] = {}
        for allow in lists:
            if allow is None:
                return None
            entries.update(dict.fromkeys(allow))
        return tuple(entries)
