"""The TURN machine's peers: permissions, channels, and what strangers send."""

from __future__ import annotations

import errno

from turn_machine_support import allocated, defaults, methods, permitted, send
from turn_support import PEER, FakeServer, data_indication

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.message import Message, encode_message
from ntcpsock._traversal.turn.events import PeerPermitted, PeerRefused
from ntcpsock._traversal.turn.message import TurnMethod, XorRelayedAddress, encode_channel_data
from ntcpsock._traversal.turn.peers import MAX_CHANNELS, MAX_HOSTS


def test_indications_first_and_a_channel_when_it_is_bound() -> None:
    both = permitted()
    send(both, b"one")
    assert both.machine.bind(PEER, both.now)
    send(both, b"two")
    both.exchange()
    send(both, b"three")
    assert both.server.to_peers == [(PEER, b"one", False), (PEER, b"two", False), (PEER, b"three", True)]
    both.give(both.server.from_peer(PEER, b"four"))
    assert both.received == [(PEER, b"four")]


def test_what_arrives_by_indication_has_its_source() -> None:
    both = permitted()
    other_port = PEER._replace(port=6000)
    both.give(both.server.from_peer(other_port, b"hello"))
    assert both.received == [(other_port, b"hello")]


def test_over_a_stream_channel_data_is_padded() -> None:
    both = permitted(reliable=True)
    both.machine.bind(PEER, both.now)
    both.exchange()
    unit = both.machine.encode(PEER, b"12345", both.now)
    assert unit == encode_channel_data(0x4000, b"12345", padded=True)
    assert len(unit) == 12


def test_a_peer_that_the_server_refuses() -> None:
    both = allocated(FakeServer(refusals=defaults(TurnMethod.CREATE_PERMISSION, 403)))
    both.machine.permit(PEER.host, 0.0)
    both.exchange()
    (event,) = both.events()
    assert isinstance(event, PeerRefused)
    assert event.refusal.errno == errno.EACCES
    assert both.machine.encode(PEER, b"x", 0.0) is None
    # It may be asked for again.
    both.machine.permit(PEER.host, 0.0)
    both.exchange()
    assert both.events() == [PeerPermitted(PEER.host)]


def test_a_refused_channel_leaves_the_indications() -> None:
    both = permitted(FakeServer(refusals=defaults(TurnMethod.CHANNEL_BIND, 508)))
    both.machine.bind(PEER, both.now)
    both.exchange()
    assert both.events() == []
    send(both, b"still")
    assert both.server.to_peers == [(PEER, b"still", False)]


def test_peers_are_bounded() -> None:
    both = allocated()
    hosts = [f"203.0.113.{number}" for number in range(MAX_HOSTS + 1)]
    assert [both.machine.permit(host, 0.0) for host in hosts] == [True] * MAX_HOSTS + [False]
    peers = [Endpoint(hosts[0], 1000 + number) for number in range(MAX_CHANNELS + 1)]
    assert [both.machine.bind(peer, 0.0) for peer in peers] == [True] * MAX_CHANNELS + [False]
    both.exchange()
    assert len(both.server.channels) == MAX_CHANNELS
    both.machine.forget(peers[0])
    assert not both.machine.bind(peers[-1], 0.0), "the server still knows it"
    both.run_until(700.0)
    assert both.machine.bind(peers[-1], both.now)


def test_a_peer_that_comes_back_has_its_channel_again() -> None:
    """A server refuses the peer another number, and goes on sending under the old one."""
    both = permitted()
    both.machine.bind(PEER, both.now)
    both.exchange()
    both.machine.forget(PEER)
    both.give(both.server.from_peer(PEER, b"late"))
    assert both.received == [(PEER, b"late")]
    both.run_until(500.0)
    assert both.machine.bind(PEER, both.now)
    both.exchange()
    send(both, b"again")
    assert both.server.to_peers == [(PEER, b"again", True)]
    assert list(both.server.channels) == [0x4000]
    both.run_until(2000.0)
    assert methods(both).count("CHANNEL_BIND") > 5


def test_foreign_units_are_dropped_and_counted() -> None:
    both = permitted()
    stranger = Endpoint("203.0.113.99", 1)
    units = [
        encode_channel_data(0x4001, b"unknown", padded=False),
        data_indication(stranger, b"not let in"),
        encode_message(Message(TurnMethod.DATA, MessageClass.INDICATION, bytes(12))),
        encode_message(Message(TurnMethod.SEND, MessageClass.INDICATION, bytes(12))),
        encode_message(Message(TurnMethod.ALLOCATE, MessageClass.SUCCESS_RESPONSE, bytes(12))),
        encode_message(Message(TurnMethod.ALLOCATE, MessageClass.REQUEST, bytes(12))),
        encode_message(
            Message(
                TurnMethod.REFRESH, MessageClass.SUCCESS_RESPONSE, bytes(12), (XorRelayedAddress(stranger),)
            )
        ),
        b"\x40\x00\x00\x09short",
        b"\x50\x00\x00\x00",
        b"\xff" * 40,
        b"",
    ]
    for unit in units * 100:
        both.give(unit)
    assert both.received == []
    assert both.events() == []
    assert both.machine.datagrams_to_send(both.now) == []
    assert sum(both.machine.dropped.values()) == 100 * len(units)
    assert len(both.machine.dropped) <= 6
    send(both, b"on it goes")
