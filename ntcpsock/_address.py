"""Words for places: endpoints, `.ntcp` names, and `ntcp://` addresses."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ntcpsock._errors import ConfigurationError

SUFFIX = ".ntcp"
NODE_KEY_LENGTH = 32
NODE_ID_LENGTH = 52  # ceil(256 / 5) base32 characters
DEFAULT_BROKER_PORT = 6060
DEFAULT_STUN_PORT = 3478
DEFAULT_TURN_PORT = 3478
DEFAULT_TURNS_PORT = 5349
DEFAULT_TLS_PORT = 443

# LDH labels of RFC 1123 section 2.1, each up to 63 characters (RFC 1035 section 2.3.4).
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_LONGEST_NAME = 128


class Endpoint(NamedTuple):
    """A transport address: a numeric host (IPv4 or IPv6 text) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host


def is_ntcp_name(host: object) -> bool:
    """Whether `host` (str or bytes, any case, one trailing dot allowed) ends in `.ntcp`."""
    if isinstance(host, (bytes, bytearray)):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return False
    return isinstance(host, str) and host.lower().rstrip(".").endswith(SUFFIX)


def normalize_name(name: str) -> str:
    """The label(s) of a node without the suffix, in lower case: `Alice.ntcp` and `alice` give `alice`.

    Raises ConfigurationError for what cannot be a name.
    """
    label = name.lower().rstrip(".")
    label = label.removesuffix(SUFFIX)
    if len(label) > _LONGEST_NAME or not all(_LABEL.fullmatch(part) for part in label.split(".")):
        raise ConfigurationError(
            f"{name!r} is not a node name: use letters, digits, '-' and '_', up to 63 in a label"
        )
    return label


def full_name(label: str) -> str:
    """`alice` -> `alice.ntcp`."""
    return label + SUFFIX


def encode_node_id(key: bytes) -> str:
    """The 52 lower-case base32 characters (RFC 4648 section 6, unpadded) of a 32-byte public key."""
    return base64.b32encode(key).decode("ascii").rstrip("=").lower()


def decode_node_id(text: str) -> bytes | None:
    """The 32-byte public key that `text` spells, or None where it is not a node id."""
    if len(text) != NODE_ID_LENGTH:
        return None
    try:
        key = base64.b32decode(text.upper() + "====")
    except (binascii.Error, ValueError):
        return None
    # 52 characters hold 260 bits: only the spelling with zero spare bits is the id.
    return key if encode_node_id(key) == text.lower() else None


def check_port(port: object) -> int:
    """`port` as a number of 0 to 65535; TypeError and OverflowError as `socket` raises them."""
    if not isinstance(port, int):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    if not 0 <= port <= 65535:
        raise OverflowError("connect(): port must be 0-65535.")
    return port


def is_private_address(host: str) -> bool:
    """Whether `host` is an address that only a local network routes (RFC 1918, 4193, 6598, 3927).

    The documentation ranges are public here: labs use them (design, section 8).
    """
    address = ipaddress.ip_address(host)
    return any(address in network for network in _LOCAL_NETWORKS if network.version == address.version)


def is_link_local(host: str) -> bool:
    """Whether `host` means another machine on each link (RFC 3927, RFC 4291 section 2.5.6)."""
    return ipaddress.ip_address(host).is_link_local


def may_be_dialled(endpoint: Endpoint) -> bool:
    """Whether a peer may make us send to `endpoint`: a host of `is_dialable_host`, port > 0."""
    return 0 < endpoint.port <= 65535 and is_dialable_host(endpoint.host)


def is_dialable_host(host: str) -> bool:
    """Whether `host` is the numeric unicast address of another machine, and no second spelling of one.

    Not loopback, unspecified or multicast. Of IPv6 neither what is good on one link only (a peer cannot say which
    one of ours), nor IPv4 in disguise; of the translated prefixes only those that stand for a public IPv4 address.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return int(address) != 0xFFFFFFFF and int(address) >> 24 != 0
    if address.scope_id or any(address in network for network in _NEVER_DIALLED):
        return False
    return all(
        is_dialable_host(str(inner)) and not is_private_address(str(inner)) for inner in _embedded(address)
    )


def _embedded(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses to which a relay or a translator brings what is sent to `address`: 6to4 (RFC 3056),
    Teredo (RFC 4380 section 4: server and client), NAT64 (RFC 6052 section 2.1)."""
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def site_of(host: str) -> str:
    """The part of a numeric address that stands for one customer: an IPv4 address, or an IPv6 /64."""
    if ":" not in host:
        return host
    return str(int(ipaddress.IPv6Address(host)) >> 64)


_LOCAL_NETWORKS = [
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    )
]

# IPv4-compatible and IPv4-mapped (RFC 4291 section 2.5.5), NAT64 of a local network (RFC 8215), discard-only
# (RFC 6666), link-local, and the site-local of old (RFC 3879).
_NEVER_DIALLED = [
    ipaddress.IPv6Network(text)
    for text in ("::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "fe80::/10", "fec0::/10")
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, and its 32-byte public key where it is known. host: or several with commas between them, for
    the brokers of a cluster. tls: it is met over WebSockets in TLS, and no other way (`wss://`)."""

    host: str
    port: int
    key: bytes | None = None
    tls: bool = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """One, or those of a cluster."""
        return tuple(self.host.split(","))

    def __str__(self) -> str:
        host = ",".join(f"[{host}]" if ":" in host else host for host in self.hosts)
        uri = f"{'wss' if self.tls else 'ntcp'}://{host}:{self.port}"
        return f"{uri}?key={encode_node_id(self.key)}" if self.key else uri


def parse_broker(uri: str) -> BrokerAddress:
    """`ntcp://host[,host...][:6060][?key=KEY]`, or `wss://host[:443]` likewise, as a BrokerAddress. Raises
    ConfigurationError."""
    scheme, _, rest = (uri if "://" in uri else f"ntcp://{uri}").partition("://")
    end = next((at for at, char in enumerate(rest) if char in "/?#"), len(rest))
    *others, last = rest[:end].split(",")
    try:
        parts = urlsplit(f"{scheme}://{last}{rest[end:]}")
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"broker {uri!r}: {error}") from error
    hosts = [_bare_host(host) for host in others] + [parts.hostname or ""]
    if parts.scheme not in ("ntcp", "wss") or not all(hosts) or parts.path not in ("", "/"):
        raise ConfigurationError(
            f"broker {uri!r}: expected ntcp://HOST:PORT or wss://HOST:PORT, perhaps with ?key=KEY; of several hosts "
            "with commas between them the last one is followed by the port of all"
        )
    key = None
    query = parse_qs(parts.query)
    if "key" in query:
        key = decode_node_id(query["key"][-1])
        if key is None:
            raise ConfigurationError(f"broker {uri!r}: the key must be {NODE_ID_LENGTH} base32 characters")
    tls = parts.scheme == "wss"
    if port is None:
        port = DEFAULT_TLS_PORT if tls else DEFAULT_BROKER_PORT
    return BrokerAddress(",".join(hosts), port, key, tls)


def _bare_host(text: str) -> str:
    """Without the brackets of an IPv6 address; "" for what is no host alone."""
    is_bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if is_bracketed else text
    is_good = bool(host) and all(char.isalnum() or char in "-._:%" for char in host)
    return host.lower() if is_good and (":" in host) == is_bracketed else ""


TurnTransport = Literal["udp", "tcp", "tls"]


@dataclass(frozen=True, slots=True)
class TurnAddress:
    """Where a TURN server is, and over what it is spoken to."""

    host: str
    port: int
    transport: TurnTransport

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.transport == "tls":
            return f"turns:{host}:{self.port}?transport=tcp"
        return f"turn:{host}:{self.port}?transport={self.transport}"


def parse_turn(uri: str) -> TurnAddress:
    """A URI of RFC 7065: `turn:HOST[:3478][?transport=udp|tcp]`, over UDP unless it says otherwise, or
    `turns:HOST[:5349]`, which is TLS over TCP. Raises ConfigurationError."""
    if "@" in uri:
        # What stands before it is not for a message.
        raise ConfigurationError(
            "turn: a TURN URI holds no user and password; give turn_user and turn_password"
        )
    scheme, _, rest = uri.partition(":")
    authority, _, query = rest.partition("?")
    transport = {"": "", "transport=udp": "udp", "transport=tcp": "tcp"}.get(query.lower())
    if scheme.lower() not in ("turn", "turns") or not authority or "/" in authority or transport is None:
        raise ConfigurationError(
            f"turn {uri!r}: expected turn:HOST:PORT?transport=udp|tcp or turns:HOST:PORT"
        )
    secure = scheme.lower() == "turns"
    if secure and transport == "udp":
        raise ConfigurationError(f"turn {uri!r}: DTLS is not spoken here; use ?transport=tcp, which is TLS")
    host, port = parse_host_port(authority, DEFAULT_TURNS_PORT if secure else DEFAULT_TURN_PORT)
    if not port:
        raise ConfigurationError(f"turn {uri!r}: the port must be 1 to 65535")
    if secure:
        return TurnAddress(host, port, "tls")
    return TurnAddress(host, port, "tcp" if transport == "tcp" else "udp")


def parse_host_port(text: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port` or `[v6]:port`. Raises ConfigurationError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r}: {error}") from error
    if not host:
        raise ConfigurationError(f"{text!r}: expected HOST or HOST:PORT")
    return host, default_port if port is None else port


def parse_node_address(text: str) -> tuple[str, int]:
    """`NAME:PORT`, `NAME.ntcp:PORT` or `ntcp://NAME:PORT` as (label, port). Raises ConfigurationError."""
    body = text.removeprefix("ntcp://").rstrip("/")
    name, separator, port = body.rpartition(":")
    if not separator or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ConfigurationError(f"{text!r}: expected NAME:PORT, for example alice:8000")
    return normalize_name(name), int(port)
