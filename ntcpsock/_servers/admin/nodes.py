"""What an operator sees of the nodes of a broker, and does to them."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from typing import Any, Final

import trio

from ntcpsock._address import decode_node_id, encode_node_id, normalize_name
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.bans import Network
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.node_record import NodeRecord
from ntcpsock._servers.sources import Connection

# Nodes that are looked at before others get their turn: some 10 ms.
_CHUNK: Final = 2000


async def all_nodes(core: BrokerCore) -> AsyncIterator[NodeRecord]:
    """Those of this moment, but for what changes meanwhile. A record is good until the next one is asked for."""
    for number, place in enumerate(core.registry.newest(), 1):
        for node in core.registry.living_at(place, trio.current_time()):
            yield node
        if not number % _CHUNK:
            await trio.lowlevel.checkpoint()


def describe(core: BrokerCore, node: NodeRecord, now: float) -> dict[str, Any]:
    """A row of the list."""
    source = node.source
    return {
        "node_id": encode_node_id(node.key),
        "names": list(core.registry.names.names_of(node.key)),
        "host": source.host,
        "port": source.port,
        "transport": "tcp" if isinstance(source, Connection) else "udp",
        "registered": node.registered,
        "ports": list(node.ports),
        "private": node.allow is not None,
        "hidden": node.hidden,
        "seconds_left": round(node.expires - now, 1),
    }


def details(core: BrokerCore, node: NodeRecord, now: float) -> dict[str, Any]:
    """An instance, as `show` tells it."""
    card = node.card
    return describe(core, node, now) | {
        "instance": node.instance.hex(),
        "keep_alive_within_seconds": node.ttl,
        "also_at": [host for host, until in node.proved if until > now],
        "card_bytes": 0 if card is None else len(card),
        "frames_sent": node.sent,
    }


def key_of(core: BrokerCore, who: str) -> bytes:
    """The key of a name or a node id. Raises ConfigurationError."""
    text = who.lower().removesuffix(".ntcp")
    key = decode_node_id(text)
    if key is not None:
        return key
    record = core.registry.names.get(normalize_name(text))
    if record is None:
        raise ConfigurationError(f"{who}: nobody has this name; `ntcp admin names list` shows all")
    return record.key


def network_of(who: str) -> Network | None:
    """An address or a network; None for what is none."""
    try:
        return ipaddress.ip_network(who, strict=False)
    except ValueError:
        return None


async def end_sessions_in(core: BrokerCore, network: Network) -> int:
    """Of all nodes there; how many those were."""
    ended = 0
    async for node in all_nodes(core):
        address = ipaddress.ip_address(node.host.partition("%")[0])
        if address.version == network.version and address in network:
            core.registry.remove(node)
            ended += 1
    return ended


async def end_banned(core: BrokerCore) -> int:
    """End the sessions of those who are banned."""
    ended = 0
    bans = core.gate.bans
    async for node in all_nodes(core):
        if bans.has_key(node.key) or (bans.has_networks and bans.has_host(node.host)):
            core.registry.remove(node)
            ended += 1
    return ended


def end_sessions_of(core: BrokerCore, key: bytes) -> int:
    """Of all instances of a node."""
    nodes = core.registry.instances(key, trio.current_time())
    for node in nodes:
        core.registry.remove(node)
    return len(nodes)
