"""The broker's rules for SYN-ACKs under other addresses: each case in which it must send none, and the one in which it
does."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from broker_support import SimulatedNetwork, SimulatedNode, make_identity
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._raw.packet import Syn
from ntcpsock._servers import spoofing
from ntcpsock._servers.spoofing import MAX_SENDS, MAX_WAITING, SpoofingDesk, SynAck
from ntcpsock._traversal.broker.message import Spoof, Spoofed, SpoofOutcome

DIAL = b"d" * 16
A, B, EVE = (make_identity(number).public_key for number in (1, 2, 3))
HOST_A, HOST_B, VICTIM = "203.0.113.1", "203.0.113.2", "198.51.100.77"
END_A, END_B = Endpoint(HOST_A, 23001), Endpoint(HOST_B, 23002)
SYN_A, SYN_B = Syn(1000, 64240, 1460, 7, True, 5), Syn(2000, 64240, 1400, 8, True, 6)
FROM_A = Spoof(DIAL, B, END_A, END_B, SYN_A)
FROM_B = Spoof(DIAL, A, END_B, END_A, SYN_B)
NOW = 100.0

BOTH = {SynAck(END_B, END_A, SYN_B, SYN_A), SynAck(END_A, END_B, SYN_A, SYN_B)}


def changed(request: Spoof, **fields: object) -> Spoof:
    return msgspec.structs.replace(request, **fields)


@dataclass
class Desk:
    """A desk and what it lets out."""

    desk: SpoofingDesk
    sent: list[SynAck]

    def ask(self, key: bytes, host: str, request: Spoof, now: float = NOW) -> SpoofOutcome:
        outcome, segments = self.desk.ask(key, host, request, now)
        assert (outcome is SpoofOutcome.SENT) == bool(segments)
        self.sent += segments
        return outcome


@pytest.fixture
def desk() -> Desk:
    return Desk(SpoofingDesk(), [])


def test_when_both_have_asked_each_gets_the_others_syn_ack(desk: Desk) -> None:
    assert desk.ask(A, HOST_A, FROM_A) is SpoofOutcome.WAITING
    assert desk.ask(B, HOST_B, FROM_B, NOW + 1) is SpoofOutcome.SENT
    assert set(desk.sent) == BOTH


def test_one_alone_gets_nothing_however_often_it_asks(desk: Desk) -> None:
    for _ in range(5):
        assert desk.ask(A, HOST_A, FROM_A) is SpoofOutcome.WAITING
    assert desk.sent == []


# Each side's request with one field changed, so that both do not want the same.
DIFFERENT = [
    changed(FROM_B, dial_id=b"e" * 16),
    changed(FROM_B, peer=EVE),
    changed(FROM_B, local=END_B._replace(port=23003)),
    changed(FROM_B, remote=END_A._replace(port=23003)),
    changed(FROM_B, remote=Endpoint(VICTIM, 23001)),
]


@pytest.mark.parametrize("request_of_b", DIFFERENT)
def test_both_must_want_the_same(desk: Desk, request_of_b: Spoof) -> None:
    assert desk.ask(A, HOST_A, FROM_A) is SpoofOutcome.WAITING
    assert desk.ask(B, HOST_B, request_of_b) is SpoofOutcome.WAITING
    assert desk.sent == []


def test_a_third_node_cannot_answer_for_the_peer(desk: Desk) -> None:
    desk.ask(A, HOST_A, FROM_A)
    assert desk.ask(EVE, HOST_B, FROM_B) is SpoofOutcome.WAITING
    assert desk.sent == []


FORBIDDEN = {
    "another's address": (A, HOST_A, changed(FROM_A, local=Endpoint(VICTIM, 23001))),
    "seen elsewhere": (A, "203.0.113.99", FROM_A),
    "one host to itself": (A, HOST_A, changed(FROM_A, remote=END_A._replace(port=9000))),
    "its own peer": (A, HOST_A, changed(FROM_A, peer=A)),
    "a service's port": (A, HOST_A, changed(FROM_A, local=Endpoint(HOST_A, 443))),
    "a service's port there": (A, HOST_A, changed(FROM_A, remote=Endpoint(HOST_B, 22))),
    "loopback": (A, "127.0.0.1", changed(FROM_A, local=Endpoint("127.0.0.1", 23001))),
    "loopback there": (A, HOST_A, changed(FROM_A, remote=Endpoint("127.0.0.1", 23001))),
    "multicast": (A, HOST_A, changed(FROM_A, remote=Endpoint("224.0.0.1", 23001))),
    "broadcast": (A, HOST_A, changed(FROM_A, remote=Endpoint("255.255.255.255", 23001))),
    "IPv6": (A, "2001:db8::1", changed(FROM_A, local=Endpoint("2001:db8::1", 23001))),
}


@pytest.mark.parametrize("case", list(FORBIDDEN))
def test_forbidden(desk: Desk, case: str) -> None:
    key, host, request = FORBIDDEN[case]
    assert desk.ask(key, host, request) is SpoofOutcome.FORBIDDEN
    # Nothing was kept that another request could complete.
    mirrored = Spoof(DIAL, key, request.remote, request.local, SYN_B)
    desk.ask(request.peer, request.remote.host, mirrored)
    assert desk.sent == []


def test_the_other_half_must_come_soon(desk: Desk) -> None:
    desk.ask(A, HOST_A, FROM_A)
    assert desk.ask(B, HOST_B, FROM_B, NOW + spoofing.LIFETIME) is SpoofOutcome.WAITING
    assert desk.sent == []


def test_one_dial_gets_some_segments_and_no_more(desk: Desk) -> None:
    desk.ask(A, HOST_A, FROM_A)
    outcomes = [desk.ask(B, HOST_B, FROM_B) for _ in range(MAX_SENDS + 3)]
    # Other numbers, or the other side, begin no new count.
    outcomes.append(desk.ask(B, HOST_B, changed(FROM_B, syn=SYN_A)))
    outcomes.append(desk.ask(A, HOST_A, FROM_A))
    assert outcomes == [SpoofOutcome.SENT] * MAX_SENDS + [SpoofOutcome.BUSY] * 5
    assert len(desk.sent) == 2 * MAX_SENDS


def test_one_address_is_limited(desk: Desk) -> None:
    burst = int(spoofing.BURST)
    outcomes = [desk.ask(A, HOST_A, changed(FROM_A, dial_id=bytes([n]) * 16)) for n in range(burst + 5)]
    assert outcomes == [SpoofOutcome.WAITING] * burst + [SpoofOutcome.BUSY] * 5
    assert desk.ask(B, HOST_B, FROM_B) is SpoofOutcome.WAITING
    assert desk.ask(A, HOST_A, FROM_A, NOW + 1 / spoofing.RATE) is SpoofOutcome.SENT


def test_all_together_are_limited(desk: Desk) -> None:
    hosts = [f"192.0.2.{n % 250 + 1}" for n in range(int(spoofing.TOTAL_BURST) + 50)]
    outcomes = [
        desk.ask(A, host, changed(FROM_A, local=Endpoint(host, 23001), dial_id=n.to_bytes(16, "big")))
        for n, host in enumerate(hosts)
    ]
    assert outcomes.count(SpoofOutcome.BUSY) == 50


def test_what_waits_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoofing, "TOTAL_BURST", 1e9)
    full = Desk(SpoofingDesk(), [])
    asked = 0
    for n in range(MAX_WAITING + 100):
        host = f"192.{n // 250}.2.{n % 250 + 1}"
        request = changed(FROM_A, local=Endpoint(host, 23001), dial_id=n.to_bytes(16, "big"))
        asked += full.ask(A, host, request) is SpoofOutcome.WAITING
    assert asked == MAX_WAITING
    # What has expired makes room.
    assert full.ask(A, HOST_A, FROM_A, NOW + spoofing.LIFETIME) is SpoofOutcome.WAITING


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(A, HOST_A), (B, HOST_B), (EVE, VICTIM)]),
            st.sampled_from([b"1" * 16, b"2" * 16]),
            st.sampled_from([A, B, EVE]),
            st.sampled_from([END_A, END_B, Endpoint(VICTIM, 23003)]),
            st.sampled_from([END_A, END_B, Endpoint(VICTIM, 23003)]),
        ),
        max_size=30,
    )
)
def test_nobody_gets_a_segment_without_having_asked_for_it(
    asked: list[tuple[tuple[bytes, str], bytes, bytes, Endpoint, Endpoint]],
) -> None:
    desk = SpoofingDesk()
    wanted: set[tuple[str, Endpoint, Endpoint]] = set()
    for (key, host), dial, peer, local, remote in asked:
        wanted.add((host, local, remote))
        _, segments = desk.ask(key, host, Spoof(dial, peer, local, remote, SYN_A), NOW)
        for segment in segments:
            # Target and source have both asked, from where the segment goes to and claims to come from.
            assert (segment.target.host, segment.target, segment.source) in wanted
            assert (segment.source.host, segment.source, segment.target) in wanted


# The same over the wire.


def from_node(node: SimulatedNode, other: SimulatedNode, syn: Syn) -> Spoof:
    local, remote = (Endpoint(each.address.host, 23000) for each in (node, other))
    return Spoof(DIAL, other.identity.public_key, local, remote, syn)


def test_a_broker_does_not_spoof_unless_told_so() -> None:
    network = SimulatedNetwork()
    one, other = network.add(1), network.add(2)
    assert not one.welcomes[0].spoofs
    for node, peer in ((one, other), (other, one)):
        assert node.ask(from_node(node, peer, SYN_A)) == Spoofed(SpoofOutcome.OFF)
    assert network.core.syn_acks == []


def test_a_broker_that_may_tells_its_nodes_and_does() -> None:
    network = SimulatedNetwork(allow_spoofing=True)
    one, other = network.add(1), network.add(2)
    assert one.welcomes[0].spoofs
    assert one.ask(from_node(one, other, SYN_A)) == Spoofed(SpoofOutcome.WAITING)
    assert network.core.syn_acks == []
    assert other.ask(from_node(other, one, SYN_B)) == Spoofed(SpoofOutcome.SENT)
    assert {segment.target.host for segment in network.core.syn_acks} == {
        one.address.host,
        other.address.host,
    }


def test_a_broker_goes_by_where_it_sees_a_node_not_by_what_that_says() -> None:
    network = SimulatedNetwork(allow_spoofing=True)
    one, other, third = network.add(1), network.add(2), network.add(3)
    lie = changed(from_node(one, other, SYN_A), local=Endpoint(third.address.host, 23000))
    assert one.ask(lie) == Spoofed(SpoofOutcome.FORBIDDEN)
    assert network.core.syn_acks == []


def test_who_has_not_proved_its_address_is_not_listened_to() -> None:
    network = SimulatedNetwork(allow_spoofing=True)
    one, other = network.add(1), network.add(2)
    other.ask(from_node(other, one, SYN_B))
    one.machine.request(from_node(one, other, SYN_A), network.now)
    (datagram,) = one.machine.datagrams_to_send()
    network.replay(datagram, Endpoint(VICTIM, 4000))
    assert network.core.syn_acks == []
    network.replay(datagram, one.address)
    assert len(network.core.syn_acks) == 2
    network.replay(datagram, one.address)
    assert len(network.core.syn_acks) == 2
