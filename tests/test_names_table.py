"""Numbers for names: derived, unique, bounded."""

from __future__ import annotations

import ipaddress
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock import _names
from ntcpsock._names import NumberTable

NETWORK = ipaddress.ip_network("127.64.0.0/10")


@given(st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True))
def test_numbers_are_hosts_of_the_range(label: str) -> None:
    address = ipaddress.ip_address(NumberTable().number(label))
    assert address in NETWORK
    assert address not in (NETWORK.network_address, NETWORK.broadcast_address)


def test_a_number_is_the_same_in_every_process() -> None:
    program = "from ntcpsock._names import NumberTable; print(NumberTable().number('alice'))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == NumberTable().number("alice")


def test_the_table_knows_both_ways() -> None:
    table = NumberTable()
    assert table.label(table.number("alice")) == "alice"
    assert table.label("127.64.0.77") is None


def test_a_collision_is_settled_locally() -> None:
    table = NumberTable()
    # 20,000 names in 4 million numbers: about 48 pairs collide.
    numbers = {table.number(f"name{index}") for index in range(20000)}
    assert len(numbers) == 20000
    assert all(table.label(table.number(f"name{index}")) == f"name{index}" for index in range(0, 20000, 97))


def test_collisions_wrap_around_at_the_end_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_names, "_hash", lambda label: (1 << 22) - 2)
    table = NumberTable()
    assert table.number("a") == "127.127.255.254"
    assert table.number("b") == "127.64.0.1"


def test_a_full_table_forgets_what_was_not_used() -> None:
    table = NumberTable(limit=3)
    first = table.number("a")
    second = table.number("b")
    table.number("c")
    table.number("a")
    table.number("d")
    assert table.label(second) is None
    assert table.label(first) == "a"
