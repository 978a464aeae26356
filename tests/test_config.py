"""Configuration from keywords, environment and file; each mistake named."""

from pathlib import Path

import pytest

from ntcpsock._config import MAX_ALLOWED, Config
from ntcpsock._errors import ConfigurationError


def test_precedence(tmp_path: Path) -> None:
    path = tmp_path / "ntcp.toml"
    path.write_text('broker = "ntcp://file:1"\nname = "file"\nstun = ["a", "b:5"]\n')
    environ = {
        "NTCP_CONFIG": str(path),
        "NTCP_NAME": "Env.ntcp",
        "NTCP_CONNECT_TIMEOUT": "3.5",
        "NTCP_STATE": "/s",
    }
    config = Config.load(environ, techniques=("lan",), broker=None)
    assert config.broker == "ntcp://file:1"
    assert config.name == "env"
    assert config.stun == ("a", "b:5")
    assert config.connect_timeout == 3.5
    assert config.state_dir == Path("/s")
    assert config.techniques == ("lan",)


def test_lists_in_the_environment() -> None:
    config = Config.load({"NTCP_ALLOW": "Alice, bob.ntcp,", "NTCP_TECHNIQUES": "lan,public"})
    assert config.allow == ("alice", "bob")
    assert config.techniques == ("lan", "public")


@pytest.mark.parametrize(
    "environ",
    [
        {"NTCP_BROKER": "http://x"},
        {"NTCP_NAME": "a b"},
        {"NTCP_TECHNIQUES": "magic"},
        {"NTCP_CONNECT_TIMEOUT": "soon"},
        {"NTCP_CONNECT_TIMEOUT": "0"},
        {"NTCP_KEEP_ALIVE": "sometimes"},
        {"NTCP_WARM_PORTS": "65"},
        {"NTCP_PORT_MAPPING": "on"},
        {"NTCP_CONFIG": "/nonexistent/ntcp.toml"},
    ],
)
def test_mistakes_in_the_environment(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Config.load(environ)


@pytest.mark.parametrize(
    "text", ["broker = 5", "unknown = 1", "stun = 'x'", "connect_timeout = true", "not toml", "name = ["]
)
def test_mistakes_in_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ntcp.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"ntcp\.toml"):
        Config.load({"NTCP_CONFIG": str(path)})


def test_unknown_keyword() -> None:
    with pytest.raises(ConfigurationError, match="brokr"):
        Config.load({}, brokr="x")


def test_allow_list_is_bounded() -> None:
    with pytest.raises(ConfigurationError, match=str(MAX_ALLOWED)):
        Config(allow=tuple(f"n{number}" for number in range(MAX_ALLOWED + 1)))
