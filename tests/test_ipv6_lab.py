"""connect() over IPv6, and to hosts with public addresses, in the lab: 25 ms links, a path RTT of 100 ms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_programs as programs
import pytest
from lab_stage import Stage, start_servers, ways

from ntcpsock._address import BrokerAddress, parse_broker
from ntcpsock._config import Config
from ntcpsock._traversal.plan import IPV6_HEAD_START_RTTS
from ntcpsock.cli.stage import open_stage
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATH_RTT = 0.1


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(nat_lab: NatLabFactory, tmp_path: Path) -> MakeStage:
    def make(nat_a: str, nat_b: str, **topology: Any) -> Stage:
        return start_servers(nat_lab(nat_a, nat_b, delay=PATH_RTT / 4, **topology), tmp_path)

    return make


@pytest.mark.parametrize(
    ("ipv6", "listener"),
    [
        pytest.param("open", {}, marks=pytest.mark.slow),
        ("firewall", {}),
        ("reject", {}),
        ("reject", {"allow": ("carol",)}),
        pytest.param(("open", "reject"), {}, marks=pytest.mark.slow),
        pytest.param(("reject", "firewall"), {"ipv6": True}, marks=pytest.mark.slow),
    ],
)
def test_ipv6_where_no_ipv4_nat_can_be_punched(
    stage: MakeStage, ipv6: str | tuple[str, str], listener: dict[str, Any]
) -> None:
    made = stage("fully-random", "fully-random", ipv6=ipv6)
    made.listen(**listener)
    dials = made.dial(5, "carol")
    assert ways(dials) == {("ipv6", "ipv6", "ipv6")}
    assert len(dials) == 5


# The first SYN of each port gets lost between the sites.
LOSES_FIRST_SYNS = """
table ip6 losing {
  set seen { type inet_service; flags dynamic; }
  chain forward {
    type filter hook forward priority 0;
    ip6 daddr { 2001:db8:33::/64, 2001:db8:44::/64 } ip6 saddr { 2001:db8:33::/64, 2001:db8:44::/64 } \
      tcp flags & (syn | ack) == syn tcp sport != @seen add @seen { tcp sport } drop
  }
}
"""


def test_the_address_of_the_other_family_is_proved_so_that_more_than_one_syn_is_sent_there(
    stage: MakeStage,
) -> None:
    """Both are seen by the broker over IPv4. A mere claim of an IPv6 address gets one SYN, which is lost here. UDP
    would be there first, so it is left out."""
    made = stage("fully-random", "fully-random", ipv6="reject")
    made.lab.public.run(["nft", "-f", "-"], input=LOSES_FIRST_SYNS, text=True, check=True)
    made.listen()
    techniques = ("public", "lan", "ipv6", "tcp-open")
    assert ways(made.dial(2, techniques=techniques)) == {("ipv6", "ipv6", "ipv6")}


def test_no_nat_is_filled_where_ipv6_will_do(stage: MakeStage) -> None:
    made = stage("random", "default", ipv6="firewall")
    made.listen()
    (dialled,) = made.dial(1)
    starts = dict(reversed(dialled.attempts))
    # On a machine that is slower than that, the other technique may have begun.
    assert starts.get("tcp-predict", math.inf) - starts["ipv6"] > 0.9 * IPV6_HEAD_START_RTTS * PATH_RTT


def test_without_ipv6_on_one_side_nothing_is_tried_there(stage: MakeStage) -> None:
    made = stage("default", "default", ipv6=("none", "firewall"))
    made.listen(ipv6=True)
    dials = made.dial(2)
    assert ways(dials) == {("tcp", "tcp-open", "tcp-open")}
    assert "ipv6" not in {technique for dialled in dials for technique, _ in dialled.attempts}


def test_a_host_without_ipv4(stage: MakeStage) -> None:
    made = stage("default", "default", ipv6="firewall")
    made.lab.host_a.run(["ip", "-4", "address", "flush", "dev", "eth0"], check=True)
    made.listen()
    assert ways(made.dial(2, ipv6=True)) == {("ipv6", "ipv6", "ipv6")}


@pytest.mark.slow
def test_one_lan_is_a_lan_in_either_family(stage: MakeStage) -> None:
    made = stage("default", "default", ipv6="firewall", same_nat=True)
    made.listen()
    assert ways(made.dial(3)) == {("lan", "lan", "lan")}


@pytest.mark.slow
def test_a_temporary_address_is_neither_offered_nor_used(stage: MakeStage) -> None:
    """The system would send from it (RFC 6724 section 5, rule 7), and the firewall's hole would be another one."""
    made = stage("fully-random", "fully-random", ipv6="firewall")
    host, address = made.lab.host_a, made.lab.host_a.addresses6[0]
    add = f"ip address del {address}/64 dev eth0; ip address add {address}/64 dev eth0 nodad mngtmpaddr"
    host.run(["sh", "-c", f"echo 2 > /proc/sys/net/ipv6/conf/eth0/use_tempaddr; {add}"], check=True)
    assert host.call(programs.wait_for_source_other_than, address, made.lab.server_addresses6[0])
    made.listen()
    dials = made.dial(2)
    assert ways(dials) == {("ipv6", "ipv6", "ipv6")}
    assert {dialled.local for dialled in dials} == {address}


def test_servers_on_all_addresses_answer_from_the_one_that_was_asked(
    nat_lab: NatLabFactory, tmp_path: Path
) -> None:
    lab = nat_lab("default", "default", ipv6="firewall", delay=PATH_RTT / 4)
    with open_stage(lab.server) as opened:
        told = parse_broker(opened.broker)
        assert (told.host, told.port) == (lab.server_addresses[0], programs.BROKER_PORT)
        for number, host in enumerate(lab.server_addresses + lab.server_addresses6):
            broker = str(BrokerAddress(host, told.port, told.key))
            config = Config(broker=broker, state_dir=tmp_path / str(number))
            servers = lab.host_a.call(programs.stun_servers, config)
            # At the address that was asked, and at one of the other family, which the broker told.
            assert [server.port for server in servers] == [3478, 3479] * 2
            hosts = [server.host for server in servers[::2]]
            assert hosts[number >= 2] == host
            assert {hosts[0]} < set(lab.server_addresses)
            assert {hosts[1]} < set(lab.server_addresses6)


@pytest.mark.parametrize("broken", ["at the provider", pytest.param("at home", marks=pytest.mark.slow)])
def test_ipv6_that_leads_nowhere_holds_nothing_up(stage: MakeStage, broken: str) -> None:
    """Addresses on both sides; the provider drops all that is sent, or there is no route at all."""
    made = stage("default", "default", ipv6="open")
    if broken == "at home":
        for host in (made.lab.host_a, made.lab.host_b):
            host.run(["ip", "-6", "route", "delete", "default"], check=True)
    else:
        for network in ("2001:db8:33::/64", "2001:db8:44::/64"):
            made.lab.public.run(["ip", "-6", "route", "replace", "blackhole", network], check=True)
    made.listen()
    dials = made.dial(3)
    assert ways(dials) == {("tcp", "tcp-open", "tcp-open")}
    for dialled in dials:
        # The punch over IPv4 did not wait for the other: both started in the same instant.
        starts = dict(reversed(dialled.attempts))
        assert abs(starts["tcp-open"] - starts["ipv6"]) < PATH_RTT


@pytest.mark.parametrize(
    "private", [pytest.param(False, marks=pytest.mark.slow), True], ids=["public card", "private card"]
)
@pytest.mark.parametrize(
    ("nat_a", "nat_b"),
    [
        ("fully-random", "none"),
        ("none", "fully-random"),  # reversed: the listener connects to the dialer
        pytest.param("firewall", "reject", marks=pytest.mark.slow),
        pytest.param("default", "firewall", marks=pytest.mark.slow),
    ],
)
def test_one_public_side_is_enough(stage: MakeStage, nat_a: str, nat_b: str, private: bool) -> None:
    made = stage(nat_a, nat_b)
    allow: dict[str, Any] = {"allow": ("carol",)} if private else {}
    made.listen(**allow)
    assert ways(made.dial(3, "carol")) == {("tcp", "public", "public")}
