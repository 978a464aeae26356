"""The ports that a NAT gave lately: how long they count, and how many."""

from __future__ import annotations

from ntcpsock._traversal.recent import KEPT_FOR, MOST, RecentMappings


def test_they_count_as_long_as_a_nat_may_keep_them() -> None:
    recent = RecentMappings()
    recent.note("udp", [5000, 5001], 10.0)
    recent.note("udp", [5001], 20.0)
    assert recent.ports("udp", 11.0) == [5000, 5001]
    assert recent.ports("udp", 15.0 + KEPT_FOR) == [5001]
    assert recent.ports("udp", 20.0 + KEPT_FOR) == []
    assert recent.ports("tcp", 11.0) == []


def test_the_newest_are_remembered() -> None:
    recent = RecentMappings()
    recent.note("tcp", range(1024, 1024 + MOST), 0.0)
    recent.note("tcp", [9], 1.0)
    assert len(recent.ports("tcp", 2.0)) == MOST
    assert 9 in recent.ports("tcp", 2.0)
    assert 1024 not in recent.ports("tcp", 2.0)


def test_another_network_has_other_ones() -> None:
    recent = RecentMappings()
    recent.note("tcp", [5000], 0.0)
    recent.forget()
    assert recent.ports("tcp", 1.0) == []
