"""The settings of TURN: URIs of RFC 7065, credentials of both kinds, and that none of them shows."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ntcpsock import Config, ConfigurationError
from ntcpsock._address import TurnAddress, parse_turn
from ntcpsock._traversal.turn.credentials import (
    TurnCredentials,
    configured_servers,
    time_limited_credentials,
)

SECRET = "never to be seen"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("turn:turn.example", TurnAddress("turn.example", 3478, "udp")),
        ("turn:turn.example?transport=udp", TurnAddress("turn.example", 3478, "udp")),
        ("TURN:turn.example:80?transport=TCP", TurnAddress("turn.example", 80, "tcp")),
        ("turns:turn.example", TurnAddress("turn.example", 5349, "tls")),
        ("turns:turn.example:443?transport=tcp", TurnAddress("turn.example", 443, "tls")),
        ("turn:192.0.2.1:1", TurnAddress("192.0.2.1", 1, "udp")),
        ("turn:[2001:db8::1]:3479?transport=tcp", TurnAddress("2001:db8::1", 3479, "tcp")),
    ],
)
def test_uris(uri: str, address: TurnAddress) -> None:
    assert parse_turn(uri) == address
    assert parse_turn(str(address)) == address


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "turn:",
        "turn.example",
        "stun:turn.example",
        "turn://turn.example",
        "turn:turn.example:0",
        "turn:turn.example:99999",
        "turn:turn.example?transport=sctp",
        "turn:turn.example?transport=udp&x=y",
        "turns:turn.example?transport=udp",
    ],
)
def test_bad_uris(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="turn"):
        parse_turn(uri)


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="turn_password") as caught:
        Config(turn=(f"turn:user:{SECRET}@turn.example",), turn_secret="x")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"turn_user": "u"},
        {"turn_user": "u", "turn_password": SECRET, "turn_secret": SECRET},
        {"turn_password": SECRET},
    ],
    ids=["nothing", "no password", "both", "no user"],
)
def test_credentials_must_be_whole(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="turn") as caught:
        Config(turn=("turn:turn.example",), **settings)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ntcp.toml"
    file.write_text(
        'turn = ["turn:one.example"]\nturn_user = "u"\nturn_password = "p"\nca_file = "/ca.pem"\n'
    )
    config = Config.load({"NTCP_CONFIG": str(file), "NTCP_TURN": "turns:two.example, turn:three.example:1"})
    assert config.turn == ("turns:two.example", "turn:three.example:1")
    assert config.ca_file == Path("/ca.pem")
    first, second = configured_servers(config)
    assert first.address == TurnAddress("two.example", 5349, "tls")
    assert (first.user, first.password, first.ca_file) == ("u", "p", "/ca.pem")
    assert second.credentials(0.0) == TurnCredentials("u", "p")


def test_nothing_shows_them() -> None:
    config = Config(turn=("turn:turn.example",), turn_user="anna", turn_secret=SECRET)
    (server,) = configured_servers(config)
    for thing in (config, server, server.credentials(0.0), TurnCredentials("anna", SECRET)):
        assert SECRET not in f"{thing!r} {thing}"
        assert "anna" not in f"{thing!r} {thing}"
    assert pickle.loads(pickle.dumps(config)) == config


def test_time_limited_credentials() -> None:
    """The password: `printf 1700086400:anna | openssl dgst -sha1 -hmac north -binary | base64`."""
    credentials = time_limited_credentials("north", "anna", 1_700_000_000.9)
    assert credentials == TurnCredentials("1700086400:anna", "n/qja1Xb6Le5M6vS7asFEtevzJI=")


@pytest.mark.parametrize(("user", "password"), [("", "p"), ("u", ""), ("u", "a\nb"), ("u" * 509, "p")])
def test_credentials_that_no_server_takes(user: str, password: str) -> None:
    with pytest.raises(ConfigurationError, match="TURN user"):
        TurnCredentials(user, password)
