"""Options that several commands share, and what they make of the environment."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ntcpsock._address import parse_node_address
from ntcpsock._config import MAX_LINGER, Config
from ntcpsock._errors import ConfigurationError


class EncryptionChoice(StrEnum):
    """The values of `Config.encryption`."""

    TLS = "tls"
    OFF = "off"


Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URI",
        help="The broker, ntcp://HOST[:6060][?key=KEY] or wss://HOST[:443][?key=KEY]. Or: NTCP_BROKER.",
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="This node's own name. Or: NTCP_NAME.")
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="DIR", help="Where keys and pins are kept. Or: NTCP_STATE."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="WHO", help="Let only this name or node id in; repeatable. Or: NTCP_ALLOW."
    ),
]
Encryption = Annotated[
    EncryptionChoice | None,
    typer.Option(
        "--encryption",
        help='"off": plain TCP after an authenticated beginning, which ends with its path and does not move; both ends '
        "have to say so. Or: NTCP_ENCRYPTION.",
    ),
]
Linger = Annotated[
    float | None,
    typer.Option(
        "--linger",
        metavar="SECONDS",
        min=0,
        max=MAX_LINGER,
        help="A connection that has lost its path waits so long for another one (60 by default); 0: not at all. "
        "Or: NTCP_LINGER.",
    ),
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up after this time.")
]
Json = Annotated[bool, typer.Option("--json", help="Event lines as JSON on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens, on stderr.")]
MaxConnections = Annotated[
    int,
    typer.Option(
        "--max-connections",
        metavar="N",
        min=1,
        max=100_000,
        help="So many at once; more wait until one ends.",
    ),
]
NodeAddress = Annotated[str, typer.Argument(metavar="NAME:PORT", help="For example alice:8000.")]


def node_address(text: str) -> tuple[str, int]:
    """(label, port) of an argument; what is malformed is a usage error (exit 2)."""
    try:
        return parse_node_address(text)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="NAME:PORT") from None


def load_config(
    *,
    broker: str | None = None,
    name: str | None = None,
    state_dir: Path | None = None,
    allow: list[str] | None = None,
    timeout: float | None = None,
    encryption: EncryptionChoice | None = None,
    linger: float | None = None,
) -> Config:
    """The settings of a node command: options over environment over file. Raises ConfigurationError."""
    config = Config.load(
        broker=broker,
        name=name,
        state_dir=state_dir,
        allow=tuple(allow) if allow else None,
        connect_timeout=timeout,
        encryption=None if encryption is None else encryption.value,
        linger=linger,
    )
    if config.broker is None:
        raise ConfigurationError(
            "no broker: give --broker ntcp://HOST:6060 or set NTCP_BROKER. `ntcp serve` starts one"
        )
    return config
