"""Who may use a broker and have a name there: policies, tokens, bans, quotas; pure, and through the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broker_support import SimulatedNetwork, SimulatedNode, make_identity, registration

from ntcpsock._address import Endpoint
from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.bans import Ban, BanFile, BanList, normal_subject
from ntcpsock._servers.policy import Policy, read_policy
from ntcpsock._servers.quotas import Buckets, Quotas, read_quotas
from ntcpsock._traversal.broker.events import Rejected
from ntcpsock._traversal.broker.handshake import REJECTION_PAUSE
from ntcpsock._traversal.broker.message import Introduced, Reason, Refused, Registered
from ntcpsock._traversal.broker.token import token_proof

ALICE, BOB = make_identity(1), make_identity(2)
BROKER = bytes(32)
TOKEN = "a token of the tests"


def proof(token: str = TOKEN, node: bytes = ALICE.public_key, broker: bytes = BROKER) -> bytes:
    return token_proof(token, broker, node)


@pytest.mark.parametrize(
    ("policy", "shown", "expected"),
    [
        (Policy(), b"", None),
        (Policy(private=True, tokens=(TOKEN,)), b"", Reason.NOT_ADMITTED),
        (Policy(private=True, tokens=("another", TOKEN)), proof(), None),
        (Policy(private=True, tokens=(TOKEN,)), proof("guessed"), Reason.BAD_TOKEN),
        # Another node's proof, and one that was made for another broker, are worth nothing.
        (Policy(private=True, tokens=(TOKEN,)), proof(node=BOB.public_key), Reason.BAD_TOKEN),
        (Policy(private=True, tokens=(TOKEN,)), proof(broker=bytes([1] * 32)), Reason.BAD_TOKEN),
        (Policy(private=True, admitted=frozenset({ALICE.public_key})), b"", None),
        (Policy(private=True, admitted=frozenset({BOB.public_key})), b"", Reason.NOT_ADMITTED),
        (Policy(private=True, reserved={"alice": ALICE.public_key}), b"", None),
        (Policy(names="list"), b"", None),
    ],
)
def test_who_gets_a_session(policy: Policy, shown: bytes, expected: Reason | None) -> None:
    assert policy.refuses(ALICE.public_key, shown, BROKER) is expected


@pytest.mark.parametrize(
    ("policy", "names", "shown", "expected"),
    [
        (Policy(), ("alice",), b"", None),
        (Policy(names="token", tokens=(TOKEN,)), ("alice",), b"", (Reason.TOKEN_NEEDED, "alice")),
        (Policy(names="token", tokens=(TOKEN,)), ("alice",), proof(), None),
        (Policy(names="token", tokens=(TOKEN,)), ("alice",), proof("x"), (Reason.BAD_TOKEN, "alice")),
        (Policy(names="token", tokens=(TOKEN,)), (), b"", None),
        (Policy(names="token", admitted=frozenset({ALICE.public_key})), ("alice",), b"", None),
        (Policy(names="list"), ("alice",), proof(), (Reason.NAME_NOT_YOURS, "alice")),
        (Policy(names="list", reserved={"alice": ALICE.public_key}), ("alice",), b"", None),
        (
            Policy(names="list", reserved={"alice": ALICE.public_key}),
            ("alice", "other"),
            b"",
            (Reason.NAME_NOT_YOURS, "other"),
        ),
        # What is reserved is reserved, also where everything else is open.
        (Policy(reserved={"www": BOB.public_key}), ("alice", "www"), b"", (Reason.NAME_NOT_YOURS, "www")),
    ],
)
def test_who_gets_a_name(
    policy: Policy, names: tuple[str, ...], shown: bytes, expected: tuple[Reason, str] | None
) -> None:
    assert policy.refuses_names(names, ALICE.public_key, shown, BROKER) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"names": "closed"}, "open, token or list"),
        ({"names": "token"}, "at least one token"),
        ({"private": True}, "name the nodes"),
        ({"token": ["short"]}, "at least 8 characters"),
        ({"admit": ["alice"]}, "no node id"),
        ({"reserve": ["alice"]}, "NAME=NODE_ID"),
        ({"reserve": ["alice=bob"]}, "no node id"),
        ({"reserve": [f"al ice={ALICE.node_id}"]}, "al ice"),
        ({"token": [f"token {number:05}" for number in range(101)]}, "at most"),
    ],
)
def test_what_is_wrong_in_a_policy_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read_policy(settings)


def test_a_policy_from_settings() -> None:
    policy = read_policy(
        {
            "names": "list",
            "reserve": [f"Alice.ntcp = {ALICE.node_id}"],
            "private": True,
            "admit": [BOB.node_id.upper() + ".ntcp"],
            "token": [TOKEN],
        }
    )
    assert policy == Policy("list", {"alice": ALICE.public_key}, True, frozenset({BOB.public_key}), (TOKEN,))
    assert read_policy({}) == Policy()


def test_bans_by_key_address_and_network() -> None:
    bans = BanList()
    assert not bans.has_networks
    for text in (ALICE.node_id, "192.0.2.1", "198.51.100.0/24", "2001:db8:1::/48", "fe80::1"):
        bans.add(Ban(normal_subject(text)))
    assert bans.has_key(ALICE.public_key)
    assert not bans.has_key(BOB.public_key)
    for host, banned in {
        "192.0.2.1": True,
        "192.0.2.2": False,
        "198.51.100.255": True,
        "198.51.101.0": False,
        "2001:db8:1:ffff::1": True,
        "2001:db8:2::1": False,
        "fe80::1%2": True,
        "fe80::2%2": False,
    }.items():
        assert bans.has_host(host) is banned, host
        assert bans.has_host(host) is banned, "as remembered"
    assert bans.lift("198.51.100.0/24") is not None
    assert not bans.has_host("198.51.100.255")
    assert bans.lift("198.51.100.0/24") is None


def test_bans_of_the_settings_are_lifted_there_alone() -> None:
    bans = BanList()
    bans.add(Ban("192.0.2.1", why="by hand"))
    bans.set_from_settings(["192.0.2.7/24", ALICE.node_id])
    assert [ban.subject for ban in bans] == ["192.0.2.0/24", "192.0.2.1", ALICE.node_id]
    with pytest.raises(ConfigurationError, match="SIGHUP"):
        bans.lift("192.0.2.0/24")
    with pytest.raises(ConfigurationError, match="no node id"):
        bans.set_from_settings(["192.0.2.0/33"])
    assert len(bans) == 3
    bans.set_from_settings([])
    assert [ban.why for ban in bans] == ["by hand"]


def test_bans_end_and_outlive_the_process(tmp_path: Path) -> None:
    bans, file = BanList(), BanFile(tmp_path / "bans.json")
    bans.add(Ban("192.0.2.1", until=100.0))
    bans.add(Ban("192.0.2.2", why="floods"))
    bans.set_from_settings(["192.0.2.3"])
    file.save(bans)
    assert (tmp_path / "bans.json").stat().st_mode & 0o777 == 0o600
    again = BanList()
    file.load(again, 99.0)
    assert [(ban.subject, ban.until, ban.why) for ban in again] == [
        ("192.0.2.1", 100.0, ""),
        ("192.0.2.2", None, "floods"),
    ]
    assert not again.expire(99.0)
    assert again.expire(100.0)
    assert [ban.subject for ban in again] == ["192.0.2.2"]
    later = BanList()
    file.load(later, 101.0)
    assert len(later) == 1
    (tmp_path / "bans.json").write_text("nonsense")
    with pytest.raises(ConfigurationError, match="mend it"):
        file.load(later, 0.0)


def test_buckets_fill_again_and_are_bounded() -> None:
    buckets = Buckets(1.0, size=3)
    assert [buckets.take(b"a", 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert buckets.take(b"a", 1.0)
    assert not buckets.take(b"a", 1.0)
    for key in (b"b", b"c", b"d"):
        buckets.take(key, 1.0)
    assert len(buckets._buckets) == 3
    slow = Buckets(0.01)
    assert slow.take(b"a", 0.0)
    assert not slow.take(b"a", 99.0)
    assert slow.take(b"a", 200.0)


def test_quotas_from_settings() -> None:
    assert read_quotas({"introductions_of_a_node": 5.0}) == Quotas(introductions_of_a_node=5.0)
    with pytest.raises(ConfigurationError, match="above 0"):
        read_quotas({"registrations_of_an_address": 0.0})


# Through the core.


def rejections(node: SimulatedNode) -> list[Reason]:
    return [event.reason for event in node.received if isinstance(event, Rejected)]


def test_a_private_broker_says_who_may_come_and_changes_its_mind() -> None:
    network = SimulatedNetwork()
    network.core.gate.configure(Policy(private=True, tokens=(TOKEN,)), Quotas())
    stranger = network.add(1)
    friend = network.add(2, token=TOKEN)
    network.run(seconds=REJECTION_PAUSE + 10)
    assert [len(node.welcomes) for node in (stranger, friend)] == [0, 1]
    # It is asked again, but not all the time.
    assert rejections(stranger) == [Reason.NOT_ADMITTED] * 2
    assert network.core.counters.refused["not admitted"] == 2
    assert len(network.core) == 1
    network.core.gate.configure(Policy(), Quotas())
    network.run(seconds=REJECTION_PAUSE + 10)
    assert len(stranger.welcomes) == 1
    assert stranger.machine.rejection is None


def test_a_refusal_is_not_sent_to_an_unproved_address() -> None:
    """The first Hello gets its Challenge as from everybody, so that nobody has others flooded with refusals."""
    network = SimulatedNetwork()
    network.core.gate.configure(Policy(private=True, admitted=frozenset({bytes(32)})), Quotas())
    node = network.add(1)
    network.run(until=lambda: bool(rejections(node)), seconds=5)
    sent = [(len(data), source) for data, source, _ in network.log]
    challenge = next(size for size, source in sent if source != node.address)
    assert challenge <= next(size for size, source in sent if source == node.address)


def test_names_by_token_and_by_list_through_the_core() -> None:
    network = SimulatedNetwork()
    network.core.gate.configure(Policy(names="token", tokens=(TOKEN,)), Quotas())
    alice, bob = network.add(1, token=TOKEN), network.add(2)
    network.run(seconds=2)
    assert isinstance(alice.ask(registration("alice")), Registered)
    assert bob.ask(registration("bob")) == Refused(Reason.TOKEN_NEEDED, "bob")
    assert isinstance(bob.ask(registration()), Registered), "a node id is not a name"
    network.core.gate.configure(Policy(names="list", reserved={"bob": BOB.public_key}), Quotas())
    assert isinstance(bob.ask(registration("bob")), Registered)
    assert alice.ask(registration("alice")) == Refused(Reason.NAME_NOT_YOURS, "alice")


def test_a_banned_key_and_a_banned_address() -> None:
    network = SimulatedNetwork()
    network.core.gate.bans.add(Ban(ALICE.node_id))
    alice, bob = network.add(1), network.add(2)
    network.run(seconds=2)
    assert rejections(alice) == [Reason.BANNED]
    assert bob.machine.connected
    network.core.gate.bans.add(Ban(bob.address.host))
    before = len(network.log)
    assert bob.lookup("alice") is None
    answers = [data for data, _, destination in network.log[before:] if destination == bob.address]
    assert answers == []
    assert network.core.dropped["banned address"] > 0


def test_quotas_bound_one_node_and_one_address() -> None:
    network = SimulatedNetwork()
    network.core.gate.configure(
        Policy(), Quotas(registrations_of_a_node=0.1, introductions_of_an_address=0.1)
    )
    alice, bob = network.add(1), network.add(2)
    network.run(seconds=2)
    assert isinstance(alice.ask(registration("alice")), Registered)
    assert alice.ask(registration("alice", ports=(81,))) == Refused(Reason.OVER_QUOTA)
    assert isinstance(bob.ask(registration("bob")), Registered)
    assert isinstance(bob.introduce(ALICE.public_key), Introduced)
    # Dropped, so asked again, and let through when there is room.
    assert isinstance(bob.introduce(ALICE.public_key), Introduced) or network.core.dropped["over quota"]
    assert network.core.dropped["over quota"] > 0
    assert network.core.counters.refused["over quota"] == 1


def test_an_invented_ban_does_not_cost_a_lookup_each_time() -> None:
    bans = BanList()
    bans.add(Ban("192.0.2.0/24"))
    for number in range(20_000):
        bans.has_host(str(Endpoint(f"198.51.{number // 256}.{number % 256}", 1).host))
    assert len(bans._seen) <= 16384
