"""The settings of servers: from flags, NTCP_SERVE_* variables and a TOML file, with one text for each.

Precedence, highest first: flags, environment, the file of `--config`, defaults. In the file and in variables a setting
has the name of its flag, with underscores; variables separate the entries of a list by commas.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ntcpsock._address import (
    DEFAULT_BROKER_PORT,
    DEFAULT_STUN_PORT,
    DEFAULT_TLS_PORT,
    Endpoint,
    decode_node_id,
    parse_host_port,
)
from ntcpsock._config import default_state_dir
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.operator_options import (
    ADMIN_OPTIONS,
    BAN_OPTIONS,
    POLICY_OPTIONS,
    REGISTER_OPTIONS,
    RELAY_OPTIONS,
)
from ntcpsock._servers.option import Option

if TYPE_CHECKING:
    from ntcpsock._traversal.broker.fields import RelayPlace

_PREFIX: Final = "NTCP_SERVE_"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def _table(*options: Option) -> dict[str, Option]:
    return {option.name: option for option in options}


OPTIONS: Final = _table(
    Option(
        "listen",
        "numeric address, IPv4 or IPv6; may be repeated (default: all; ::, too, means all)",
        "list",
        "ADDR",
    ),
    Option("port", "where to listen", "integer"),
    Option("state_dir", "of the broker's keys and the names (default: NTCP_STATE)", "path", "DIR"),
    Option(
        "stun",
        "a STUN server that nodes are told: numeric, or this host as 0.0.0.0 and as ::; may be repeated",
        "list",
        "HOST:PORT",
    ),
    Option(
        "relay",
        "a relay that nodes are told, in place of this port's own: HOST:PORT, or wss://HOST:PORT in TLS; it needs our "
        "relay.key (see relay.py); may be repeated",
        "list",
        "RELAY",
    ),
    Option(
        "store",
        "redis://HOST:PORT, or rediss:// in TLS, of the cluster that this broker is one of; all of its brokers share "
        "broker.key and relay.key",
        metavar="URL",
    ),
    Option(
        "turn",
        "a TURN server that nodes may use (URI of RFC 7065); it shares --turn-secret with us (coturn: "
        "use-auth-secret); may be repeated",
        "list",
        "URI",
    ),
    Option("turn_secret", "file with the secret that our TURN servers know", "path", "FILE"),
    Option(
        "allow_spoofing",
        "let two nodes that both ask for it have a SYN-ACK under each other's address (tcp-stunt1); "
        "needs CAP_NET_RAW",
        "switch",
        default=False,
    ),
    Option(
        "certificate",
        "PEM file of a certificate with its chain: TCP ports speak TLS, too, to whoever begins with it; SIGHUP reads "
        "it again",
        "path",
        "FILE",
    ),
    Option("key", "PEM file of the certificate's key, where it is not in the same one", "path", "FILE"),
    Option(
        "behind",
        "a reverse proxy before us (address or network), whose X-Forwarded-For is believed; may be repeated",
        "list",
        "ADDR",
    ),
    Option(
        "metrics_from",
        "who may read /metrics and the status page (address or network), beside this machine itself; may be repeated",
        "list",
        "ADDR",
    ),
    Option(
        "metrics",
        "a TCP port for /metrics, /healthz and /readyz, for a server that has none that speaks HTTP",
        metavar="ADDR:PORT",
    ),
    Option(
        "drain",
        "seconds that relayed connections get to end after SIGTERM; a second one ends at once",
        "number",
        "SECONDS",
        30.0,
    ),
    Option(
        "log", "what to write on stderr: text, or json, a line for each event", metavar="FORM", default="text"
    ),
    # The relay's.
    Option("relay_key", "what it shares with its broker (default: relay.key in NTCP_STATE)", "path", "FILE"),
    Option("sessions", "relayed connections at once", "integer", default=4096),
    Option("sessions_of_a_node", "of these, of one node", "integer", default=256),
    Option("rate", "bytes per second of one node (default: any)", "number", "BYTES"),
    # The STUN server's.
    Option(
        "other_address",
        "second address of this host, for behaviour discovery (RFC 5780); with one --listen of its family",
        metavar="ADDR2",
    ),
    Option(
        "link_key",
        "the second address is another host's, where this runs with the same key in this file, the same ports, and our "
        "address as its second one",
        "path",
        "FILE",
    ),
    Option(
        "processes",
        "serve with so many processes, for one processor each; /metrics is the first one's",
        "integer",
        "N",
        1,
    ),
    Option(
        "requests_of_an_address",
        "requests a second of one address (IPv6: of a /64) that are answered over UDP while more come than can be "
        "(0: all)",
        "number",
        "N",
        2000.0,
    ),
    Option("other_port", "second port (3479 beside --other-address)", "integer", "PORT2"),
    Option(
        "tls_port",
        "one more TCP port, for TLS, of a STUN server with a certificate (usually: 5349)",
        "integer",
    ),
    Option("connect_back", "connect to TCP clients that ask for it", "switch", default=True),
    *POLICY_OPTIONS,
    *RELAY_OPTIONS,
    *REGISTER_OPTIONS,
    *BAN_OPTIONS,
    *ADMIN_OPTIONS,
)

#: What all servers have.
COMMON: Final = ("log", *(option.name for option in ADMIN_OPTIONS))
#: What brokers have, and relays: who may do what there.
POLICY: Final = tuple(option.name for option in (*POLICY_OPTIONS, *BAN_OPTIONS))
RELAY_LIMITS: Final = ("sessions", "sessions_of_a_node", "rate")
RELAY_POLICY: Final = tuple(option.name for option in (*RELAY_OPTIONS, *BAN_OPTIONS))
REGISTER: Final = tuple(option.name for option in REGISTER_OPTIONS)
#: What all have that speak HTTP.
WEB: Final = ("certificate", "key", "behind", "metrics_from", "drain")


def parse_arguments(
    description: str, names: Sequence[str], argv: Sequence[str] | None = None, **defaults: object
) -> argparse.Namespace:
    """The settings of a script by name. defaults: those that differ from the table's. Raises ConfigurationError."""
    options = [OPTIONS[name] for name in (*names, *COMMON)]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with these settings; SIGHUP reads it again, and flags still come first",
    )
    for option in options:
        _add(parser, option, defaults.get(option.name, option.default))
    given = vars(parser.parse_args(argv))
    source = Source(options, given.pop("config", None), given, defaults)
    return argparse.Namespace(**source.read(), source=source)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings of a program come from, to be read again. path: the file; given: the flags; defaults: where
    they differ from the table's."""

    options: Sequence[Option]
    path: Path | None
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def read(self) -> dict[str, Any]:
        """All of them by name, as they are now. Raises ConfigurationError."""
        settled = {option.name: self.defaults.get(option.name, option.default) for option in self.options}
        return settled | read_settings(self.path, self.options) | dict(self.given)


def _add(parser: argparse.ArgumentParser, option: Option, default: object) -> None:
    dashed = option.name.replace("_", "-")
    text = option.help.replace("%", "%%")
    if option.kind == "switch":
        flag = f"--no-{dashed}" if default else f"--{dashed}"
        action = "store_false" if default else "store_true"
        text = f"do not {text}" if default else text
        parser.add_argument(flag, dest=option.name, action=action, default=argparse.SUPPRESS, help=text)
        return
    if default is not None and "(default" not in text:
        text += f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
    convert = {"integer": int, "number": float, "path": Path}.get(option.kind, str)
    parser.add_argument(
        f"--{dashed}",
        type=convert,
        action="append" if option.kind == "list" else "store",
        default=argparse.SUPPRESS,
        metavar=option.metavar,
        help=text,
    )


def read_settings(
    path: Path | None, options: Sequence[Option], environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What file and environment say. Raises ConfigurationError for what is none of `options`, or not of its kind."""
    environ = os.environ if environ is None else environ
    known = {option.name: option for option in options}
    values: dict[str, Any] = {}
    if path is not None:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: {error}") from error
        if unknown := sorted(set(document) - set(known)):
            raise ConfigurationError(
                f"{path}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        values = {name: _checked(f"{path}: {name}", known[name], value) for name, value in document.items()}
    for name, option in known.items():
        variable = _PREFIX + name.upper()
        if text := environ.get(variable):
            values[name] = _checked(variable, option, _from_text(option, text))
    return values


def _from_text(option: Option, text: str) -> object:
    if option.kind == "list":
        return [part.strip() for part in text.split(",") if part.strip()]
    if option.kind == "switch" and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    try:
        if option.kind == "integer":
            return int(text)
        if option.kind == "number":
            return float(text)
    except ValueError:
        pass  # said below
    return text


def _checked(where: str, option: Option, value: object) -> object:
    """`value` as the type of its kind. Raises ConfigurationError."""
    match option.kind:
        case "list":
            if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                return value
            expected = "a list of strings"
        case "switch":
            if isinstance(value, bool):
                return value
            expected = "true or false"
        case "integer" | "number":
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if option.kind == "number":
                    return float(value)
                if isinstance(value, int):
                    return value
            expected = "a number"
        case "path":
            if isinstance(value, str):
                return Path(value).expanduser()
            expected = "a path"
        case _:
            if isinstance(value, str):
                return value
            expected = "a string"
    raise ConfigurationError(f"{where}: expected {expected}")


def stun_endpoints(texts: Sequence[str] | None) -> list[Endpoint]:
    """`--stun`. Raises ConfigurationError."""
    return [Endpoint(*parse_host_port(text, DEFAULT_STUN_PORT)) for text in texts or ()]


def relay_places(texts: Sequence[str] | None) -> list[RelayPlace] | None:
    """`--relay`; None where none is given. Raises ConfigurationError."""
    from ntcpsock._traversal.broker.fields import RelayPlace

    if not texts:
        return None
    places = []
    for text in texts:
        bare = text.removeprefix("wss://")
        is_tls = bare != text
        host, port = parse_host_port(bare, DEFAULT_TLS_PORT if is_tls else DEFAULT_BROKER_PORT)
        places.append(RelayPlace(host, port, is_tls))
    return places


def keys_of(where: str, texts: Sequence[str] | None) -> frozenset[bytes]:
    """Node ids as keys. Raises ConfigurationError."""
    keys = set()
    for text in texts or ():
        key = decode_node_id(text.lower().removesuffix(".ntcp"))
        if key is None:
            raise ConfigurationError(f"{where}: {text!r} is no node id")
        keys.add(key)
    return frozenset(keys)


def state_dir(given: Path | None) -> Path:
    """`--state-dir`, or where nodes of this user keep theirs."""
    return given or default_state_dir()
