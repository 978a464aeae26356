"""Who we are to a TURN server: user and password, or a secret that both sides make time-limited ones from."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Final

from ntcpsock._address import TurnAddress, parse_turn
from ntcpsock._config import Config
from ntcpsock._errors import ConfigurationError
from ntcpsock._traversal.stun.attributes import LONGEST_USERNAME
from ntcpsock._traversal.stun.credentials import hmac_sha1, opaque_string

#: Seconds that credentials made from a shared secret are good for: servers let in whoever comes with older ones no
#: more, and some look at each refresh.
TIME_LIMIT: Final = 86_400


@dataclass(frozen=True, slots=True)
class TurnCredentials:
    """A long-term credential (RFC 8489 section 9.2). Its repr keeps it to itself.

    Raises ConfigurationError for what RFC 8265's OpaqueString forbids.
    """

    username: str = field(repr=False)
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            opaque_string(self.username)
            opaque_string(self.password)
        except ValueError as error:
            raise ConfigurationError(f"TURN user or password: {error}") from None
        if len(self.username.encode()) > LONGEST_USERNAME:
            raise ConfigurationError(f"TURN user: at most {LONGEST_USERNAME} bytes")


def time_limited_credentials(
    secret: str, name: str, unix_time: float, seconds: int = TIME_LIMIT
) -> TurnCredentials:
    """What a server with the same `secret` takes until `unix_time` + `seconds` (draft-uberti-behave-turn-rest-00
    section 2.2): the user "expiry:name", and as its password the HMAC-SHA1 of that in base64."""
    username = f"{int(unix_time) + seconds}:{name}"
    return TurnCredentials(username, base64.b64encode(hmac_sha1(secret.encode(), username.encode())).decode())


@dataclass(frozen=True, slots=True)
class TurnServer:
    """One server and how to get in. Either `password` or `secret` is given; `user` may be "" with a secret.

    ca_file: of the certificates that may sign a `turns:` server's; None: those of the system.
    """

    address: TurnAddress
    user: str = field(default="", repr=False)
    password: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    def credentials(self, unix_time: float) -> TurnCredentials:
        """Those to come with at `unix_time`. Raises ConfigurationError."""
        if self.secret is not None:
            return time_limited_credentials(self.secret, self.user or "ntcp", unix_time)
        if self.password is None:
            raise ConfigurationError(f"{self.address}: set turn_password or turn_secret")
        return TurnCredentials(self.user, self.password)


def configured_servers(config: Config) -> tuple[TurnServer, ...]:
    """The TURN servers of a node's settings, in their order. Raises ConfigurationError."""
    return tuple(
        TurnServer(
            parse_turn(uri),
            config.turn_user or "",
            config.turn_password or None,
            config.turn_secret or None,
            str(config.ca_file) if config.ca_file is not None else None,
        )
        for uri in config.turn
    )
