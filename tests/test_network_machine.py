"""Which changes of a machine's network count, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netlink_support import ETH0, HOME, LOOPBACK, RUNNING, WLAN0, address, device, route, snapshot

from ntcpsock._traversal.network.machine import (
    DARK_GRACE,
    LONGEST_BURST,
    RETRY,
    SETTLE,
    SHORTEST_SLEEP,
    NetworkChange,
    NetworkMachine,
)
from ntcpsock._traversal.network.message import IFF_UP, Message, Route, RuleChanged
from ntcpsock._traversal.network.snapshot import Relevance, Snapshot, make_relevance

TEMPORARY, DAD_FAILED, DEPRECATED, TENTATIVE = 0x01, 0x08, 0x20, 0x40
DARK = replace(ETH0, flags=IFF_UP)
DOCKER = (device(7, "docker0", kind="bridge"), address("172.17.0.1", 7))
VETH = device(8, "veth1", kind="veth")


def changes(before: Snapshot, after: Snapshot) -> list[NetworkChange]:
    machine = NetworkMachine(before, 100.0)
    machine.noticed(100.0)
    machine.take_snapshot(after, 100.0 + SETTLE)
    return machine.changes()


def change(*table: Message, before: tuple[Message, ...] = HOME) -> NetworkChange | None:
    """What is told when `before` has become `table`."""
    found = changes(snapshot(*before), snapshot(*table))
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("table", "gone", "new", "route_changed"),
    [
        ((LOOPBACK, ETH0, address("10.0.0.3"), route("10.0.0.1")), {"10.0.0.2"}, {"10.0.0.3"}, False),
        ((LOOPBACK, ETH0, address("192.168.1.5"), route("192.168.1.1")), {"10.0.0.2"}, {"192.168.1.5"}, True),
        ((LOOPBACK,), {"10.0.0.2"}, set(), True),
        # The same address in another network: the gateway tells, or that the link was down.
        ((LOOPBACK, ETH0, address("10.0.0.2"), route("10.0.0.254")), set(), set(), True),
        ((LOOPBACK, replace(ETH0, carriers=2), address("10.0.0.2"), route("10.0.0.1")), set(), set(), True),
        # A second uplink, of less importance and of more.
        (
            (*HOME, WLAN0, address("10.9.0.2", 3), route("10.9.0.1", 3, metric=600)),
            set(),
            {"10.9.0.2"},
            False,
        ),
        (
            (*HOME[:-1], route("10.0.0.1", metric=9), WLAN0, address("10.9.0.2", 3), route("10.9.0.1", 3)),
            set(),
            {"10.9.0.2"},
            True,
        ),
        # A network without a router is one, too.
        ((*HOME, WLAN0, address("10.9.0.2", 3)), set(), {"10.9.0.2"}, False),
        # A tunnel that takes all there is, in two halves, as a VPN does.
        (
            (
                *HOME,
                device(9, "tun0", kind="tun"),
                address("10.8.0.2", 9),
                route("10.8.0.1", 9, length=1),
                route("10.8.0.1", 9, destination="128.0.0.0", length=1),
            ),
            set(),
            {"10.8.0.2"},
            True,
        ),
        # The second address of its network, which IPv4's flags call so with the bit for "temporary".
        ((*HOME, address("10.0.0.3", flags=0x81)), set(), {"10.0.0.3"}, False),
        ((*HOME, address("2001:db8::5")), set(), {"2001:db8::5"}, False),
        # Only a temporary address of the Internet, beside a lasting one of the site.
        (
            (*HOME, address("fd00::5"), address("2001:db8::7", flags=TEMPORARY)),
            set(),
            {"fd00::5", "2001:db8::7"},
            False,
        ),
    ],
)
def test_what_matters(table: tuple[Message, ...], gone: set[str], new: set[str], route_changed: bool) -> None:
    found = change(*table)
    assert found == NetworkChange(frozenset(gone), frozenset(new), route_changed, False, 100.0 + SETTLE)
    assert found.moved


@pytest.mark.parametrize(
    "table",
    [
        HOME,
        (*HOME, *DOCKER, VETH),
        (*HOME, device(7, "dummy0", kind="dummy"), address("10.7.0.1", 7)),
        (*HOME, address("fe80::1")),
        (*HOME, address("127.0.0.2", 1), address("::1", 1)),
        (*HOME, address("2001:db8::5", flags=TENTATIVE)),
        (*HOME, address("2001:db8::5", flags=DAD_FAILED)),
        (*HOME, replace(WLAN0, flags=0), address("10.9.0.2", 3)),
        # Routes that lead nowhere, or not to the Internet.
        (*HOME, route("10.0.0.7", destination="10.50.0.0", length=16)),
        (*HOME, Route(False, True, 254, 7, "", 0, 2**32 - 1, ((1, ""),), "")),
        (*HOME, route("10.0.0.9", metric=1000)),
    ],
)
def test_what_does_not(table: tuple[Message, ...]) -> None:
    assert change(*table) is None
    assert change(*HOME, before=table) is None


def test_temporary_addresses_come_and_go() -> None:
    lasting = (*HOME, address("2001:db8::5"))
    first = (*lasting, address("2001:db8::71", flags=TEMPORARY))
    second = (*lasting, address("2001:db8::72", flags=TEMPORARY))
    assert change(*first, before=lasting) is None
    assert change(*second, before=first) is None
    # Nor does the system's own choice of one among them count as another way.
    ways = [route("fe80::1", source=f"2001:db8::7{number}") for number in (1, 2)]
    assert changes(snapshot(*first, way=ways[0]), snapshot(*second, way=ways[1])) == []


def test_an_address_that_fades_is_not_gone_before_it_is() -> None:
    usable, fading = address("2001:db8::5"), address("2001:db8::5", flags=DEPRECATED)
    assert change(*HOME, fading, before=(*HOME, usable)) is None
    assert change(*HOME, fading) is None
    found = change(*HOME, before=(*HOME, fading))
    assert found is not None
    assert found.gone == {"2001:db8::5"}
    found = change(*HOME, usable, before=(*HOME, fading))
    assert found is not None
    assert found.new == {"2001:db8::5"}


def test_a_bridge_that_is_the_way_out_counts() -> None:
    bridge = device(7, "br0", kind="bridge")
    found = change(LOOPBACK, bridge, address("10.0.0.3", 7), route("10.0.0.1", 7))
    assert found is not None
    assert found.new == {"10.0.0.3"}
    # As in a container, where eth0 itself is one end of a veth.
    inside = (LOOPBACK, device(2, "eth0", kind="veth"), address("172.17.0.2"), route("172.17.0.1"))
    found = change(*inside, before=(LOOPBACK,))
    assert found is not None
    assert found.new == {"172.17.0.2"}


def test_the_way_to_the_broker_counts_though_all_else_stays() -> None:
    """As with rules for routing, which the main table does not show."""
    before = snapshot(*HOME, way=route("10.0.0.1", source="10.0.0.2"))
    after = snapshot(*HOME, way=route("10.0.0.7", source="10.0.0.2"))
    (found,) = changes(before, after)
    assert (found.gone, found.new, found.route_changed) == (frozenset(), frozenset(), True)
    (found,) = changes(before, snapshot(*HOME))
    assert found.route_changed


def test_a_burst_is_waited_for_but_not_for_ever() -> None:
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    assert machine.next_timer() == float("inf")
    machine.noticed(10.0)
    assert machine.next_timer() == 10.0 + SETTLE
    now = 10.0
    while machine.next_timer() > now:
        machine.noticed(now)
        now += SETTLE / 2
    assert now == pytest.approx(10.0 + LONGEST_BURST, abs=SETTLE)
    assert machine.wants_snapshot(now)
    machine.take_snapshot(snapshot(LOOPBACK), now)
    assert len(machine.changes()) == 1
    assert machine.changes() == []
    assert not machine.wants_snapshot(now + 1e6)


def test_an_address_that_comes_back_within_a_burst_was_never_gone() -> None:
    """A DHCP client that replaces an address by itself."""
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    machine.noticed(1.0)
    machine.noticed(1.05)
    assert not machine.wants_snapshot(1.1)
    machine.take_snapshot(snapshot(*HOME), 1.2)
    assert machine.changes() == []


def test_a_look_that_failed_is_repeated() -> None:
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    machine.noticed(1.0)
    machine.look_failed(1.1)
    assert machine.next_timer() == 1.1 + RETRY


def test_polling() -> None:
    machine = NetworkMachine(snapshot(*HOME), 0.0, poll_interval=3.0)
    for look in (3.0, 6.0):
        assert machine.next_timer() == look
        machine.take_snapshot(snapshot(*HOME), look)
    machine.poll_every(60.0)
    assert machine.next_timer() == 66.0


def test_a_link_that_is_dark_for_a_moment() -> None:
    """A station between two access points: nothing is gone, but it may be another network."""
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    machine.take_snapshot(snapshot(LOOPBACK, DARK, *HOME[3:]), 10.0)
    assert machine.changes() == []
    assert machine.next_timer() == 10.0 + DARK_GRACE
    machine.take_snapshot(snapshot(LOOPBACK, replace(ETH0, carriers=2), *HOME[3:]), 10.4)
    (found,) = machine.changes()
    assert (found.gone, found.new, found.route_changed) == (frozenset(), frozenset(), True)
    assert machine.next_timer() == float("inf")


def test_a_cable_that_is_pulled() -> None:
    dark = snapshot(LOOPBACK, DARK, *HOME[3:])
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    machine.take_snapshot(dark, 10.0)
    machine.take_snapshot(dark, 10.0 + DARK_GRACE)
    (found,) = machine.changes()
    assert found.gone == {"10.0.0.2"}
    assert machine.next_timer() == float("inf")
    machine.take_snapshot(dark, 20.0)
    assert machine.changes() == []
    machine.take_snapshot(snapshot(LOOPBACK, replace(ETH0, carriers=2), *HOME[3:]), 30.0)
    (found,) = machine.changes()
    assert found.new == {"10.0.0.2"}
    assert found.route_changed


def test_a_cable_that_is_not_there_at_first() -> None:
    dark = snapshot(LOOPBACK, DARK, *HOME[3:])
    machine = NetworkMachine(dark, 0.0)
    machine.take_snapshot(dark, 5.0)
    assert machine.changes() == []
    machine.take_snapshot(snapshot(*HOME), 6.0)
    (found,) = machine.changes()
    assert found.new == {"10.0.0.2"}


def test_sleep() -> None:
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    machine.take_clocks(1000.0, 5000.0, 0.0)
    machine.take_clocks(1010.0, 5010.0 + SHORTEST_SLEEP - 0.5, 10.0)
    assert machine.next_timer() == float("inf")
    machine.take_clocks(1020.0, 5020.0 + 3600.0, 20.0)
    assert machine.wants_snapshot(20.0)
    machine.take_snapshot(snapshot(*HOME), 20.0)
    (found,) = machine.changes()
    assert found == NetworkChange(frozenset(), frozenset(), False, True, 20.0)
    assert not found.moved
    # Once; and a wall clock that is set back is no sleep.
    machine.take_clocks(1030.0, 5030.0, 30.0)
    machine.take_clocks(1040.0, 5040.0, 40.0)
    assert machine.next_timer() == float("inf")


def test_waking_up_elsewhere_is_one_change() -> None:
    machine = NetworkMachine(snapshot(*HOME), 0.0)
    machine.take_clocks(0.0, 0.0, 0.0)
    machine.noticed(1.0)
    machine.take_clocks(1.0, 7200.0, 1.0)
    machine.take_snapshot(snapshot(LOOPBACK, ETH0, address("10.0.0.3"), route("10.0.0.1")), 1.0)
    (found,) = machine.changes()
    assert found.slept
    assert found.gone == {"10.0.0.2"}
    assert found.new == {"10.0.0.3"}


TABLES = st.sets(
    st.sampled_from(
        [
            ETH0,
            WLAN0,
            *DOCKER,
            address("10.0.0.2"),
            address("10.0.0.3"),
            address("10.9.0.2", 3),
            address("2001:db8::5"),
            address("2001:db8::6", flags=TEMPORARY),
            route("10.0.0.1"),
            route("10.9.0.1", 3, metric=600),
        ]
    )
)


@given(st.lists(TABLES, max_size=8))
def test_changes_add_up(tables: list[set[Message]]) -> None:
    """Whoever applies each change to what there was at first has what there is."""
    machine = NetworkMachine(Snapshot(), 0.0)
    known: frozenset[str] = frozenset()
    for number, table in enumerate(tables, 1):
        now = 10.0 * number
        machine.noticed(now)
        machine.take_snapshot(snapshot(LOOPBACK, *table), now + SETTLE)
        for found in machine.changes():
            assert found.gone <= known
            assert not found.new & known
            known = known - found.gone | found.new
        assert known == snapshot(LOOPBACK, *table).addresses


def test_news_that_may_be_passed_over() -> None:
    table = (*HOME, *DOCKER, VETH, WLAN0)
    relevance = make_relevance(table, snapshot(*table))
    for boring in (
        DOCKER[0],
        VETH,
        LOOPBACK,
        device(99, "veth99", kind="veth"),
        address("fe80::1"),
        address("2001:db8::5", flags=TENTATIVE),
        route("", 7, destination="172.17.0.0", length=16),
        Route(False, True, 255, 5, "ff00::", 8, 256, ((2, ""),), ""),
    ):
        assert not relevance.may_matter(boring), boring
    for news in (
        ETH0,
        WLAN0,
        device(98, "usb0"),
        address("10.0.0.9"),
        address("10.0.0.9", 98),
        route("10.0.0.1"),
        route("172.17.0.9", 7),
        Route(True, False, 254, 1, "", 0, 0, (), ""),
        RuleChanged(),
    ):
        assert relevance.may_matter(news), news
        assert Relevance().may_matter(news)
    # A bridge that is the way out is one of the uplinks.
    bridge = device(7, "br0", kind="bridge", flags=RUNNING)
    own = (LOOPBACK, bridge, address("10.0.0.3", 7), route("10.0.0.1", 7))
    assert make_relevance(own, snapshot(*own)).may_matter(bridge)
