"""The one configuration: from keywords, `NTCP_*` environment variables, or a TOML file.

Precedence, highest first: keyword arguments, environment, the file that `NTCP_CONFIG` names, defaults.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ntcpsock._address import decode_node_id, normalize_name, parse_broker, parse_host_port, parse_turn
from ntcpsock._errors import ConfigurationError

TECHNIQUES = (
    "public",
    "lan",
    "ipv6",
    "port-mapped",
    "tcp-open",
    "tcp-predict",
    "tcp-stunt2",
    "tcp-natblaster",
    "tcp-stunt1",
    "udp-punch",
    "udp-predict",
    "udp-birthday",
    "relay",
    "turn",
)

#: Those over UDP. Streams over them are QUIC, which encrypts: with `encryption="off"` they are for datagrams only.
UDP_TECHNIQUES = ("udp-punch", "udp-predict", "udp-birthday")

Prefer = Literal["tcp", "udp", "first"]
PREFERS: tuple[Prefer, ...] = ("tcp", "udp", "first")

Encryption = Literal["tls", "off"]
ENCRYPTIONS: tuple[Encryption, ...] = ("tls", "off")

PortMapping = Literal["auto", "off"]
PORT_MAPPINGS: tuple[PortMapping, ...] = ("auto", "off")

Relay = Literal["auto", "never", "only"]
RELAYS: tuple[Relay, ...] = ("auto", "never", "only")

KeepAlive = Literal["auto", "fixed", "lazy"]
KEEP_ALIVES: tuple[KeepAlive, ...] = ("auto", "fixed", "lazy")

Outcomes = Literal["tell", "off"]
OUTCOMES: tuple[Outcomes, ...] = ("tell", "off")

# Home routers have room for some thousand entries, and take some hundred new ones a second.
MAX_BIRTHDAY_SOCKETS = 1024
MAX_BIRTHDAY_RATE = 1000.0

# A day: whoever waits for longer wants something else than a connection.
MAX_LINGER = 86400.0

# The allow list travels in one registration datagram.
MAX_ALLOWED = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one node. Immutable; every field can be given by keyword, environment or file."""

    #: The broker: `ntcp://HOST[:6060][?key=KEY]`, or `wss://HOST[:443][?key=KEY]` over TLS alone; several hosts of a
    #: cluster with commas between them (`ntcp://HOST,HOST:6060`). Without a key the
    #: first one seen is pinned.
    broker: str | None = None
    #: The token that the broker's operator gave out, where it takes nodes or names by token.
    broker_token: str | None = field(default=None, repr=False)
    #: "tell": the broker hears how each dial has ended: by what technique and kind of path, between which kinds of
    #: NATs, after how long; no address and no name of anybody. "off": it hears nothing.
    outcomes: Outcomes = "tell"
    #: PEM file of the authorities that sign the certificates of `wss://` brokers and `turns:` servers. None: the
    #: system's.
    ca_file: Path | None = None
    #: STUN servers `HOST[:3478]`, asked over TCP and UDP. Empty: those that the broker names.
    stun: tuple[str, ...] = ()
    #: TURN servers (RFC 8656), best first: `turn:HOST[:3478][?transport=udp|tcp]` or `turns:HOST[:5349]`.
    turn: tuple[str, ...] = ()
    #: User and password at them; or the secret that time-limited ones are made from (`turn_user` may be left out then).
    turn_user: str | None = field(default=None, repr=False)
    turn_password: str | None = field(default=None, repr=False)
    turn_secret: str | None = field(default=None, repr=False)
    #: This node's own name. It makes the node's key permanent.
    name: str | None = None
    #: File of the node's private key. Default: `node.key` in the state directory.
    identity: Path | None = None
    #: Directory of the key and of what was pinned. Default: `$XDG_STATE_HOME/ntcpsock`.
    state_dir: Path = field(default_factory=lambda: default_state_dir())
    #: Who may connect to this node's listeners: names and node ids. None: whoever proves a key.
    allow: tuple[str, ...] | None = None
    #: The techniques that may be tried, by name.
    techniques: tuple[str, ...] = TECHNIQUES
    #: "tls", or "off": connections are authenticated when they begin and plain TCP from there on, so that
    #: everybody on the way can read and change them. Both ends have to say so.
    encryption: Encryption = "tls"
    #: "auto": ask the router for a port by UPnP-IGD, NAT-PMP or PCP where that helps; "off": never ask it.
    port_mapping: PortMapping = "auto"
    #: "auto": a relay of the broker's, or a TURN server, carries what cannot be connected directly. "never". "only":
    #: everything goes over it, and nobody but the broker and the relay learns where this node is. A relay sees
    #: ciphertext, so connections with `encryption="off"` do not go over one, and "only" cannot be had with it.
    relay: Relay = "auto"
    #: Which of a stream's two kinds of direct paths wins where both can connect: "tcp", whose bytes the kernel moves,
    #: or "udp" (QUIC), which connects a round trip earlier. The other one wins where the preferred is not there soon.
    #: "first": whichever connects first wins, most often UDP, and the stream moves to TCP when that is there as well; it
    #: costs both ends a second dial.
    prefer: Prefer = "tcp"
    #: Sockets that `udp-birthday` opens where this side's NAT draws ports at random, each an entry in that NAT; 0: it
    #: is never tried.
    birthday_sockets: int = 256
    #: Ports a second that it tries where the other side's NAT draws them; each is an entry in this side's NAT.
    birthday_rate: float = 250.0
    #: Seconds for which a connection whose path is lost waits for another one, at both ends, before it fails; 0: it
    #: fails at once, as plain TCP does. Connections with `encryption="off"` never wait: they are the path.
    linger: float = 60.0
    #: Seconds for a connect that brings no time-out of its own.
    connect_timeout: float = 10.0
    #: Seconds to wait for the broker's first answer.
    broker_timeout: float = 5.0
    #: "auto": keep-alives as often as the NAT needs them, if `ntcp doctor --lifetime` has measured it here, else every
    #: `keep_alive_interval`. "fixed": every `keep_alive_interval`. "lazy": none at all, and no warm ports: such a node
    #: can dial at any time, but is reached only as long as NAT and broker remember it.
    keep_alive: KeepAlive = "auto"
    #: Seconds between keep-alives to the broker: real NATs forget a UDP mapping after 30 s.
    keep_alive_interval: float = 20.0
    #: Warm TCP ports kept ready for dialling.
    warm_ports: int = 2

    def __post_init__(self) -> None:
        if self.broker is not None:
            parse_broker(self.broker)
        if self.name is not None:
            object.__setattr__(self, "name", normalize_name(self.name))
        for server in self.stun:
            parse_host_port(server, 3478)
        for uri in self.turn:
            parse_turn(uri)
        if self.turn and bool(self.turn_password) == bool(self.turn_secret):
            raise ConfigurationError("turn: give either turn_password, with turn_user, or turn_secret")
        if self.turn_password and not self.turn_user:
            raise ConfigurationError("turn_password: it needs a turn_user")
        if self.allow is not None:
            if len(self.allow) > MAX_ALLOWED:
                raise ConfigurationError(f"allow: at most {MAX_ALLOWED} entries")
            object.__setattr__(self, "allow", tuple(_allowed(entry) for entry in self.allow))
        unknown = sorted(set(self.techniques) - set(TECHNIQUES))
        if unknown:
            raise ConfigurationError(
                f"techniques: unknown {', '.join(unknown)}; known are {', '.join(TECHNIQUES)}"
            )
        if self.encryption not in ENCRYPTIONS:
            raise ConfigurationError(f'encryption: must be "tls" or "off", not {self.encryption!r}')
        if self.port_mapping not in PORT_MAPPINGS:
            raise ConfigurationError(f'port_mapping: must be "auto" or "off", not {self.port_mapping!r}')
        if self.keep_alive not in KEEP_ALIVES:
            choices = ", ".join(f'"{choice}"' for choice in KEEP_ALIVES)
            raise ConfigurationError(f"keep_alive: must be one of {choices}, not {self.keep_alive!r}")
        if self.outcomes not in OUTCOMES:
            raise ConfigurationError(f'outcomes: must be "tell" or "off", not {self.outcomes!r}')
        if self.prefer not in PREFERS:
            raise ConfigurationError(f'prefer: must be "tcp", "udp" or "first", not {self.prefer!r}')
        if self.relay not in RELAYS:
            raise ConfigurationError(f'relay: must be "auto", "never" or "only", not {self.relay!r}')
        if self.relay == "only" and self.encryption == "off":
            raise ConfigurationError(
                'relay="only" with encryption="off": the relay would read everything; drop one of the two'
            )
        for name in ("connect_timeout", "broker_timeout", "keep_alive_interval"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name}: must be a number of seconds above 0")
        if not 0 <= self.linger <= MAX_LINGER:
            raise ConfigurationError(f"linger: must be 0 to {MAX_LINGER:g} seconds")
        if not 0 <= self.birthday_sockets <= MAX_BIRTHDAY_SOCKETS:
            raise ConfigurationError(f"birthday_sockets: must be 0 to {MAX_BIRTHDAY_SOCKETS}")
        if not 0 < self.birthday_rate <= MAX_BIRTHDAY_RATE:
            raise ConfigurationError(f"birthday_rate: must be above 0 and at most {MAX_BIRTHDAY_RATE:g}")
        if not 0 <= self.warm_ports <= 64:
            raise ConfigurationError("warm_ports: must be 0 to 64")

    @property
    def usable_techniques(self) -> tuple[str, ...]:
        """Those of `techniques` that `relay` and `encryption` leave."""
        if self.relay == "only":
            return ("relay", "turn")
        unusable = {"relay", "turn"} if self.relay == "never" or self.encryption == "off" else set()
        if self.encryption == "off":
            unusable.update(UDP_TECHNIQUES)
        if not self.birthday_sockets:
            unusable.add("udp-birthday")
        return tuple(name for name in self.techniques if name not in unusable)

    @property
    def datagram_techniques(self) -> tuple[str, ...]:
        """Those for datagrams: without encryption a UDP path as it is, else whatever can carry them."""
        if self.encryption == "off":
            unusable = () if self.birthday_sockets else ("udp-birthday",)
            return tuple(name for name in self.techniques if name in UDP_TECHNIQUES and name not in unusable)
        return self.usable_techniques

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Merge file, environment and keywords (None means "not given"). Raises ConfigurationError."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        path = environ.get("NTCP_CONFIG")
        if path:
            values |= read_file(Path(path))
        values |= read_environment(environ)
        values |= {key: value for key, value in overrides.items() if value is not None}
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigurationError(str(error)) from error


def default_state_dir() -> Path:
    """`NTCP_STATE`, else `ntcpsock` under XDG_STATE_HOME, else `~/.local/state/ntcpsock`."""
    given = os.environ.get("NTCP_STATE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "ntcpsock"


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, checked by name and type. Raises ConfigurationError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    known = {entry.name for entry in fields(Config)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise ConfigurationError(f"{path}: unknown setting {', '.join(unknown)}")
    return {key: _convert(f"{path}: {key}", key, value) for key, value in document.items()}


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that NTCP_* variables give; lists are separated by commas."""
    values: dict[str, Any] = {}
    for entry in fields(Config):
        variable = _VARIABLES.get(entry.name, f"NTCP_{entry.name.upper()}")
        text = environ.get(variable)
        if not text:
            continue
        value: Any = text
        if entry.name in _LISTS:
            value = [part.strip() for part in text.split(",") if part.strip()]
        elif entry.name in _NUMBERS:
            try:
                value = _NUMBERS[entry.name](text)
            except ValueError:
                raise ConfigurationError(f"{variable}: {text!r} is not a number") from None
        values[entry.name] = _convert(variable, entry.name, value)
    return values


_VARIABLES = {"state_dir": "NTCP_STATE"}
_LISTS = frozenset({"stun", "turn", "allow", "techniques"})
_PATHS = frozenset({"ca_file", "identity", "state_dir"})
_NUMBERS: dict[str, type[int] | type[float]] = {
    "connect_timeout": float,
    "broker_timeout": float,
    "keep_alive_interval": float,
    "linger": float,
    "warm_ports": int,
    "birthday_sockets": int,
    "birthday_rate": float,
}


def _convert(where: str, name: str, value: Any) -> Any:
    if name in _LISTS:
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise ConfigurationError(f"{where}: expected a list of strings")
        return tuple(value)
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigurationError(f"{where}: expected a number")
        return _NUMBERS[name](value)
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}: expected a string")
    return Path(value).expanduser() if name in _PATHS else value


def _allowed(entry: str) -> str:
    """A node id stays as it is, a name loses its suffix."""
    text = entry.lower().removesuffix(".ntcp")
    return text if decode_node_id(text) is not None else normalize_name(text)
