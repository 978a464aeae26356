"""The registry of names and the rate limits."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
from broker_support import SimulatedNetwork, make_identity, registration

from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.limits import RateLimit
from ntcpsock._servers.names import NameRecord, NameStore
from ntcpsock._traversal.broker.message import Found, Reason, Refused, Registered, Unreachable

ALICE, BOB = make_identity(1).public_key, make_identity(2).public_key


def test_first_come_and_bound_to_the_key() -> None:
    names = NameStore(None)
    assert names.claim(("alice", "al"), ALICE, None) == ("kept", None)
    assert names.claim(("alice",), ALICE, None) == ("kept", None)
    assert names.claim(("bob", "al"), BOB, None) == ("taken", "al")
    # All or none.
    assert names.get("bob") is None
    assert names.get("alice") == NameRecord("alice", ALICE, None)
    assert names.names_of(ALICE) == ("al", "alice")
    assert names.names_of(BOB) == ()


def test_the_policy_is_kept_with_the_name() -> None:
    names = NameStore(None)
    names.claim(("alice", "front"), ALICE, None)
    names.claim(("alice",), ALICE, b"d" * 16)
    assert names.get("alice") == NameRecord("alice", ALICE, b"d" * 16)
    assert names.get("front") == NameRecord("front", ALICE, None)
    names.claim(("alice",), ALICE, b"")
    record = names.get("alice")
    assert record is not None
    # A list with nobody on it is not the same as no list.
    assert record.allow == b""


def test_bounds() -> None:
    names = NameStore(None, per_key=2, total=3)
    assert names.claim(("a", "b"), ALICE, None)[0] == "kept"
    assert names.claim(("c",), ALICE, None) == ("too many", "c")
    assert names.claim(("d",), BOB, None)[0] == "kept"
    assert names.claim(("e",), BOB, None) == ("full", "e")
    # What is kept can still be said again, and changed.
    assert names.claim(("a", "b"), ALICE, b"")[0] == "kept"


def test_names_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "names.sqlite"
    first = NameStore(path, total=2)
    first.claim(("alice",), ALICE, b"d" * 16)
    first.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = NameStore(path, total=2)
    assert second.get("alice") == NameRecord("alice", ALICE, b"d" * 16)
    assert second.claim(("alice",), BOB, None) == ("taken", "alice")
    assert second.claim(("b", "c"), BOB, None) == ("full", "b")
    second.close()


def test_two_stores_on_one_file(tmp_path: Path) -> None:
    one, two = NameStore(tmp_path / "names"), NameStore(tmp_path / "names")
    assert one.claim(("alice",), ALICE, None)[0] == "kept"
    assert two.claim(("alice",), BOB, None) == ("taken", "alice")
    one.close()
    two.close()


def test_an_unusable_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(b"certainly not a database" * 50)
    with pytest.raises(ConfigurationError, match="names"):
        NameStore(path)


def test_a_failing_disk_does_not_end_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SimulatedNetwork()
    node = network.add(1)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        patch.setattr(network.names, "claim", fail)
        assert node.ask(registration("alice")) == Refused(Reason.BUSY)
    assert network.core.unwritten == 1
    assert node.ask(registration("alice")) == Registered()


def test_registration_is_tried_again_while_a_restarted_broker_is_busy() -> None:
    network = SimulatedNetwork()
    node, other = network.add(1), network.add(2)
    assert node.ask(registration("alice")) == Registered()
    full = NameStore(None, total=0)
    network.names = full
    network.restart_broker()
    network.run(seconds=30)
    assert other.lookup("alice") == Unreachable(Reason.NOT_FOUND)
    assert other.ask(registration("bob")) == Refused(Reason.BUSY, "bob")
    network.names = NameStore(None)
    network.restart_broker()
    network.run(seconds=45)
    assert other.lookup("alice") == Found(node.identity.public_key)


def test_rate_limit_refills() -> None:
    limit = RateLimit(rate=2.0, burst=3.0)
    assert [limit.take("192.0.2.1", 0.0) for _ in range(4)] == [True, True, True, False]
    assert limit.take("192.0.2.2", 0.0)
    assert [limit.take("192.0.2.1", 0.5) for _ in range(2)] == [True, False]
    assert [limit.take("192.0.2.1", 100.0) for _ in range(4)] == [True, True, True, False]


def test_rate_limit_counts_an_ipv6_customer_once() -> None:
    limit = RateLimit(rate=1.0, burst=1.0)
    assert limit.take("2001:db8::1", 0.0)
    assert not limit.take("2001:db8:0:0:ffff::2", 0.0)
    assert limit.take("2001:db8:0:1::1", 0.0)


def test_rate_limit_table_is_bounded() -> None:
    limit = RateLimit(rate=0.0, burst=1.0, size=10)
    assert limit.take("192.0.2.200", 0.0)
    for number in range(100):
        limit.take(f"192.0.2.{number}", 0.0)
        # Touched again and again, it keeps its place, and its refusal.
        assert not limit.take("192.0.2.200", 0.0)
    assert len(limit._buckets) == 10
