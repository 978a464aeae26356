"""The peers of one allocation: their permissions, their channels, and when both are to be refreshed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from ntcpsock._address import Endpoint
from ntcpsock._traversal.turn.message import FIRST_CHANNEL, LAST_CHANNEL

#: RFC 8656 section 9: seconds that a permission lasts; section 12: a channel. Binding one refreshes both.
PERMISSION_LIFETIME = 300.0
CHANNEL_LIFETIME = 600.0

#: Seconds after which both are asked for again: a request may take 40 s to get through.
REFRESH_AFTER = 240.0

#: Hosts that one allocation lets in, and peers that it binds channels to.
MAX_HOSTS = 64
MAX_CHANNELS = 128


@dataclass
class Permission:
    """Of one host. until: when the server forgets it; due: when to ask (again); None while a request is under way."""

    until: float | None = None
    due: float | None = None

    def is_in_force(self, now: float) -> bool:
        return self.until is not None and now < self.until


@dataclass
class Channel:
    """Of one peer. until, due: as of a permission; wanted: whether it is kept alive. Unwanted, it stays in force at the
    server, which lets the peer have no other number meanwhile."""

    number: int
    until: float | None = None
    due: float | None = None
    wanted: bool = True

    def is_in_force(self, now: float) -> bool:
        return self.until is not None and now < self.until


@dataclass
class Peers:
    """What was asked for and what is in force."""

    permissions: dict[str, Permission] = field(default_factory=dict)
    channels: dict[Endpoint, Channel] = field(default_factory=dict)
    by_number: dict[int, Endpoint] = field(default_factory=dict)
    _next_number: int = FIRST_CHANNEL

    def add_channel(self, peer: Endpoint, now: float) -> Channel | None:
        """The channel of `peer`, due at once; None where there are too many. A number means one peer for the life of
        an allocation, which is simpler than the five minutes of RFC 8656 section 12."""
        channel = self.channels.get(peer)
        if channel is None:
            if len(self.channels) >= MAX_CHANNELS:
                self._drop_over(now)
            if len(self.channels) >= MAX_CHANNELS or self._next_number > LAST_CHANNEL:
                return None
            channel = self.channels[peer] = Channel(self._next_number, due=now)
            self.by_number[channel.number] = peer
            self._next_number += 1
        elif not channel.wanted:
            channel.wanted, channel.due = True, now
        return channel

    def _drop_over(self, now: float) -> None:
        """Those that nobody wants and the server has forgotten."""
        for peer, channel in list(self.channels.items()):
            if not channel.wanted and not channel.is_in_force(now):
                self.drop_channel(peer)

    def retire_channel(self, peer: Endpoint) -> None:
        """Keep the channel of `peer` alive no more."""
        channel = self.channels.get(peer)
        if channel is not None:
            channel.wanted, channel.due = False, None

    def drop_channel(self, peer: Endpoint) -> None:
        """The server knows no channel of `peer`."""
        channel = self.channels.pop(peer, None)
        if channel is not None:
            del self.by_number[channel.number]

    def drop_host(self, host: str) -> None:
        """The server lets `host` in no more."""
        self.permissions.pop(host, None)
        for peer in [peer for peer in self.channels if peer.host == host]:
            self.drop_channel(peer)

    def take_channel(self, peer: Endpoint, now: float) -> None:
        """The server has bound the channel of `peer`, and the permission of its host with it."""
        channel = self.channels.get(peer)
        if channel is not None:
            channel.until = now + CHANNEL_LIFETIME
            channel.due = now + REFRESH_AFTER if channel.wanted else None

    def take_permission(self, host: str, now: float) -> bool:
        """The server lets `host` in. Whether that is news."""
        permission = self.permissions.get(host)
        if permission is None:
            return False
        was = permission.is_in_force(now)
        permission.until, permission.due = now + PERMISSION_LIFETIME, now + REFRESH_AFTER
        return not was

    def is_permitted(self, host: str, now: float) -> bool:
        permission = self.permissions.get(host)
        return permission is not None and permission.is_in_force(now)

    def next_due(self) -> float | None:
        """When the next request is due, None where none will be."""
        moments = [
            entry.due
            for entries in (self.permissions.values(), self.channels.values())
            for entry in entries
            if entry.due is not None
        ]
        return min(moments, default=None)
