"""The state directory: one key for the node, keys pinned at first use."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ntcpsock._errors import BadMessage, ConfigurationError, IdentityMismatch
from ntcpsock._identity import Identity, verify_untrusted
from ntcpsock._state import Pins, load_identity


def test_key_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    path = tmp_path / "state" / "node.key"
    first = load_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_identity(path).public_key == first.public_key
    assert [entry.name for entry in path.parent.iterdir()] == ["node.key"]


def test_two_processes_at_first_use_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: load_identity(tmp_path / "node.key").public_key, range(64)))
    assert len(keys) == 1


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    load_identity(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_identity(path)


@pytest.mark.parametrize("text", ["", "zz", "00" * 31])
def test_broken_key_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not a node key"):
        load_identity(path)


@pytest.mark.parametrize("in_memory", [True, False])
def test_first_key_is_pinned(tmp_path: Path, in_memory: bool) -> None:
    pins = Pins(None if in_memory else tmp_path)
    first, second = Identity.generate().public_key, Identity.generate().public_key
    assert pins.get("names", "alice") is None
    pins.check("names", "alice", first)
    pins.check("names", "alice", first)
    pins.check("brokers", "alice", second)
    with pytest.raises(IdentityMismatch, match="pinned"):
        pins.check("names", "alice", second)
    assert pins.get("names", "alice") == first
    pins.forget("names", "alice")
    pins.check("names", "alice", second)


def test_pins_of_several_writers_are_all_kept(tmp_path: Path) -> None:
    key = Identity.generate().public_key
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Pins(tmp_path).check("names", f"n{number}", key), range(64)))
    assert all(Pins(tmp_path).get("names", f"n{number}") == key for number in range(64))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".pins")]


@pytest.mark.parametrize("text", ["{", "[]", '{"names": 5}'])
def test_broken_pins_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "pins.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"pins\.json"):
        Pins(tmp_path).get("names", "alice")


def test_signatures() -> None:
    identity = Identity.generate()
    signature = identity.sign(b"words")
    verify_untrusted(identity.public_key, b"words", signature)
    for key, message, forged in [
        (identity.public_key, b"other", signature),
        (Identity.generate().public_key, b"words", signature),
        (identity.public_key, b"words", signature[:-1]),
        (b"short", b"words", signature),
    ]:
        with pytest.raises(BadMessage):
            verify_untrusted(key, message, forged)
