"""TURN servers that the broker's nodes may use (pure): which, and how to get in for a while.

The operator's coturn knows a secret (`use-auth-secret`), and so do we. A node gets a user and a password made out of
that, which are good for a day (draft-uberti-behave-turn-rest-00); the secret never leaves. The user bears the node's
id, so that the server's quotas and logs tell nodes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ntcpsock._address import encode_node_id, parse_turn
from ntcpsock._errors import ConfigurationError
from ntcpsock._traversal.broker.fields import MAX_TURN_SERVERS, MAX_TURN_URI
from ntcpsock._traversal.broker.message import TurnPlace, TurnPlaces
from ntcpsock._traversal.turn.credentials import TIME_LIMIT, time_limited_credentials

# Of the node's id: enough to tell nodes apart.
_ID_LENGTH: Final = 16


class TurnDesk:
    """servers: URIs of RFC 7065, best first; secret: what they share with us; seconds: for which credentials are good.

    Raises ConfigurationError.
    """

    def __init__(self, servers: Sequence[str], secret: str, seconds: int = TIME_LIMIT) -> None:
        if not secret:
            raise ConfigurationError("turn: the shared secret is empty")
        self.servers = tuple(str(parse_turn(uri)) for uri in servers)
        if not 0 < len(self.servers) <= MAX_TURN_SERVERS:
            raise ConfigurationError(f"turn: one to {MAX_TURN_SERVERS} servers can be told to nodes")
        for uri in self.servers:
            if len(uri) > MAX_TURN_URI:
                raise ConfigurationError(f"turn: {uri[:40]}... is too long")
        self._secret = secret
        self._seconds = seconds

    def places(self, key: bytes, unix_time: float) -> TurnPlaces:
        """For the node with this key."""
        node = encode_node_id(key)[:_ID_LENGTH]
        made = time_limited_credentials(self._secret, node, unix_time, self._seconds)
        return TurnPlaces(
            tuple(TurnPlace(uri, made.username, made.password) for uri in self.servers), self._seconds
        )


def turn_desk(servers: Sequence[str] | None, secret: Path | None) -> TurnDesk | None:
    """`--turn` and `--turn-secret`, a file; None where neither is given. Raises ConfigurationError."""
    if not servers and secret is None:
        return None
    if not servers or secret is None:
        raise ConfigurationError("turn and turn_secret: give both, or neither")
    try:
        return TurnDesk(servers, secret.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"turn_secret: {secret}: {error}") from error
