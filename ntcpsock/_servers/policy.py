"""Who may use a broker, and which names are whose: what an operator says about it, as a pure function of a request."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from ntcpsock._address import decode_node_id, normalize_name
from ntcpsock._errors import ConfigurationError
from ntcpsock._traversal.broker.message import Reason
from ntcpsock._traversal.broker.token import token_proof

NamePolicy = Literal["open", "token", "list"]
#: Each costs a hash, whenever a node shows a token: 83 us for all.
MAX_TOKENS: Final = 100
SHORTEST_TOKEN: Final = 8


@dataclass(frozen=True, slots=True)
class Policy:
    """names: "open", first come; "token", for holders of a token; "list", those of `reserved` alone.

    reserved: names that are for one key, whatever `names` says. private: only keys of `admitted` and holders of a token
    get a session at all. tokens: the texts.
    """

    names: NamePolicy = "open"
    reserved: Mapping[str, bytes] = field(default_factory=dict)
    private: bool = False
    admitted: frozenset[bytes] = frozenset()
    tokens: Sequence[str] = ()

    def refuses(self, key: bytes, proof: bytes, broker_key: bytes) -> Reason | None:
        """Why a node gets no session; None: it does. proof: of its token, or empty."""
        if not self.private or key in self.admitted or key in self.reserved.values():
            return None
        return self._token_missing(key, proof, broker_key, Reason.NOT_ADMITTED)

    def refuses_names(
        self, names: Collection[str], key: bytes, proof: bytes, broker_key: bytes
    ) -> tuple[Reason, str] | None:
        """Why a node may not have one of `names`, and which."""
        for name in names:
            owner = self.reserved.get(name)
            if owner == key:
                continue
            if owner is not None or self.names == "list":
                return Reason.NAME_NOT_YOURS, name
            if self.names == "token" and key not in self.admitted:
                reason = self._token_missing(key, proof, broker_key, Reason.TOKEN_NEEDED)
                if reason is not None:
                    return reason, name
        return None

    def _token_missing(self, key: bytes, proof: bytes, broker_key: bytes, without: Reason) -> Reason | None:
        if not proof:
            return without
        # All are compared, so that the time says nothing of which one it was.
        good = [hmac.compare_digest(proof, token_proof(token, broker_key, key)) for token in self.tokens]
        return None if any(good) else Reason.BAD_TOKEN


def read_policy(settings: Mapping[str, Any]) -> Policy:
    """What `names`, `reserve`, `private`, `admit` and `token` of the settings say. Raises ConfigurationError."""
    names = settings.get("names") or "open"
    if names not in ("open", "token", "list"):
        raise ConfigurationError(f"names: must be open, token or list, not {names!r}")
    tokens = tuple(settings.get("token") or ())
    if len(tokens) > MAX_TOKENS:
        raise ConfigurationError(f"token: at most {MAX_TOKENS}")
    if any(len(token) < SHORTEST_TOKEN for token in tokens):
        raise ConfigurationError(
            f"token: at least {SHORTEST_TOKEN} characters, so that nobody guesses it: `openssl rand -hex 16` makes one"
        )
    private = bool(settings.get("private"))
    admitted = frozenset(_key("admit", entry) for entry in settings.get("admit") or ())
    if names == "token" and not tokens and not admitted:
        raise ConfigurationError('names = "token": give at least one token, or nobody can register a name')
    reserved = dict(_reservation(entry) for entry in settings.get("reserve") or ())
    if private and not (tokens or admitted or reserved):
        raise ConfigurationError("private: name the nodes with admit, or give a token; else nobody can come")
    return Policy(cast(NamePolicy, names), reserved, private, admitted, tokens)


def _reservation(entry: str) -> tuple[str, bytes]:
    name, separator, node_id = entry.partition("=")
    if not separator:
        raise ConfigurationError(f"reserve: {entry!r}: expected NAME=NODE_ID (`ntcp id` prints a node's)")
    return normalize_name(name.strip()), _key("reserve", node_id.strip())


def _key(where: str, node_id: str) -> bytes:
    key = decode_node_id(node_id.lower().removesuffix(".ntcp"))
    if key is None:
        raise ConfigurationError(
            f"{where}: {node_id!r} is no node id (`ntcp id` prints a node's, 52 characters)"
        )
    return key
