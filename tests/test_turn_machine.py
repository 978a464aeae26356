"""The TURN machine against a server without sockets, at a clock that the test moves."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import replace

import pytest
from turn_support import CLIENT, PEER, RELAYED, FakeServer, Pair, data_indication

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.credentials import PasswordAlgorithm
from ntcpsock._traversal.stun.message import Message, encode_message
from ntcpsock._traversal.turn.credentials import TurnCredentials
from ntcpsock._traversal.turn.events import Allocated, Ended, PeerPermitted, PeerRefused, Redirected
from ntcpsock._traversal.turn.machine import KEEP_ALIVE, SUSPICIOUS_SILENCE, TurnMachine
from ntcpsock._traversal.turn.message import Lifetime, TurnMethod, XorRelayedAddress, encode_channel_data
from ntcpsock._traversal.turn.peers import MAX_CHANNELS, MAX_HOSTS
from ntcpsock._traversal.turn.requests import MAX_CHALLENGES

CREDENTIALS = TurnCredentials("u", "p")


def pair(server: FakeServer | None = None, *, reliable: bool = False) -> Pair:
    return Pair(TurnMachine(CREDENTIALS, now=0.0, reliable=reliable), server or FakeServer())


def allocated(server: FakeServer | None = None, *, reliable: bool = False) -> Pair:
    both = pair(server, reliable=reliable)
    both.exchange()
    (event,) = both.events()
    assert event == Allocated(RELAYED, CLIENT, both.server.lifetime, 0.0)
    return both


def permitted(server: FakeServer | None = None, *, reliable: bool = False) -> Pair:
    both = allocated(server, reliable=reliable)
    assert both.machine.permit(PEER.host, both.now)
    both.exchange()
    assert both.events() == [PeerPermitted(PEER.host)]
    return both


def ended(both: Pair) -> Ended:
    (event,) = both.events()
    assert isinstance(event, Ended)
    assert both.machine.next_timeout() is None
    return event


# --- allocation and credentials ----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        FakeServer(),
        FakeServer(needs_credentials=False),
        FakeServer(algorithms=((2, b""), (1, b""))),
        FakeServer(algorithms=((1, b""),)),
        FakeServer(anonymous=True),
        FakeServer(algorithms=((2, b""),), anonymous=True),
    ],
    ids=["MD5", "open", "SHA-256", "MD5 with SHA-256 integrity", "anonymous", "anonymous and SHA-256"],
)
@pytest.mark.parametrize("reliable", [False, True], ids=["UDP", "stream"])
def test_an_allocation(settings: FakeServer, reliable: bool) -> None:
    server = replace(settings, seen=[], requests=[])
    both = allocated(server, reliable=reliable)
    assert server.seen == ["ALLOCATE"]
    both.machine.close(both.now)
    both.exchange()
    assert ended(both).refusal is None
    assert not server.allocated


def test_a_password_algorithm_that_nobody_knows_is_passed_over() -> None:
    server = FakeServer(algorithms=((2, b""),))
    both = pair(server)
    (request,) = both.machine.datagrams_to_send(0.0)
    server.algorithms = ((77, b"?"), (2, b""))
    (challenge,) = server.handle(request)
    both.give(challenge)
    (again,) = both.machine.datagrams_to_send(0.0)
    server.algorithms = ((2, b""),)
    with pytest.raises(AssertionError):  # the list is said back as it came, and the server would compare it
        server.handle(again)
    assert server.requests[-1].get(PasswordAlgorithm) == PasswordAlgorithm(2)


def test_only_unknown_password_algorithms() -> None:
    both = pair()
    both.server.algorithms = ((2, b""),)
    (request,) = both.machine.datagrams_to_send(0.0)
    both.server.algorithms = ((77, b""),)
    both.give(both.server.handle(request)[0])
    refusal = ended(both).refusal
    assert refusal is not None
    assert "no password algorithm" in str(refusal)


def test_an_offer_of_algorithms_that_was_taken_out_is_noticed() -> None:
    class Attacked(FakeServer):
        @property
        def nonce(self) -> bytes:
            return b"obMatJos2gAAAnonce"

    both = pair(Attacked())
    both.exchange()
    refusal = ended(both).refusal
    assert refusal is not None
    assert refusal.errno == errno.EACCES
    assert "took the password algorithms out" in str(refusal)
    assert len(both.server.requests) == 1, "a request was made with the weaker algorithm"


def test_a_wrong_password() -> None:
    both = pair(FakeServer(password="other"))
    both.exchange()
    refusal = ended(both).refusal
    assert refusal is not None
    assert (refusal.code, refusal.errno) == (401, errno.EACCES)
    assert "turn_password" in str(refusal)
    assert len(both.server.requests) == 2


def test_a_server_that_challenges_for_ever() -> None:
    both = pair(FakeServer(refusals={3: deque([438] * 50)}))
    both.exchange()
    refusal = ended(both).refusal
    assert refusal is not None
    assert refusal.code == 438
    assert len(both.server.requests) == 1 + MAX_CHALLENGES


@pytest.mark.parametrize(
    ("code", "number", "says"),
    [
        (403, errno.EACCES, "does not allow"),
        (437, errno.ECONNRESET, "does not know the allocation"),
        (440, errno.EAFNOSUPPORT, "address family"),
        (441, errno.EACCES, "another user"),
        (442, errno.EPROTONOSUPPORT, "does not relay UDP"),
        (486, errno.EDQUOT, "as many allocations"),
        (500, errno.EPROTO, "fault of its own"),
        (508, errno.ENOBUFS, "no free port"),
        (599, errno.EPROTO, "refuses"),
    ],
)
def test_a_refused_allocation(code: int, number: int, says: str) -> None:
    both = pair(FakeServer(refusals=defaults(TurnMethod.ALLOCATE, code)))
    both.exchange()
    refusal = ended(both).refusal
    assert refusal is not None
    assert (refusal.code, refusal.errno) == (code, number)
    assert says in str(refusal)
    assert str(code) in str(refusal)


def defaults(method: int, *codes: int) -> dict[int, deque[int]]:
    return {**{number: deque() for number in range(16)}, method: deque(codes)}


def test_the_servers_words_are_not_trusted_with_the_terminal() -> None:
    class Rude(FakeServer):
        def _refuse(self, message: Message, code: int) -> bytes:
            return super()._refuse(message, code).replace(b"so it is", b"\x1b[2J hah")

    both = pair(Rude(needs_credentials=False, refusals=defaults(TurnMethod.ALLOCATE, 508)))
    both.exchange()
    refusal = ended(both).refusal
    assert "[2J hah" in str(refusal)
    assert "\x1b" not in str(refusal)


def test_try_alternate() -> None:
    server = FakeServer(refusals=defaults(TurnMethod.ALLOCATE, 300), alternate_domain="turn.example")
    both = pair(server)
    both.exchange()
    assert both.events() == [Redirected(server.alternate, "turn.example")]
    assert both.machine.next_timeout() is None


def test_no_answer_at_all() -> None:
    both = pair(FakeServer(mute=True))
    both.run_until(39.4)
    assert both.events() == []
    both.run_until(40.0)
    refusal = ended(both).refusal
    assert refusal is not None
    assert (refusal.code, refusal.errno) == (None, errno.ETIMEDOUT)
    assert len(both.server.requests) == 7


def test_a_lost_answer_is_asked_for_again() -> None:
    both = pair()
    (first,) = both.machine.datagrams_to_send(0.0)
    both.now = 0.5
    both.machine.handle_timeout(0.5)
    assert both.machine.datagrams_to_send(0.5) == [first]
    both.give(both.server.handle(first)[0])
    both.exchange()
    (event,) = both.events()
    assert isinstance(event, Allocated)


def test_a_relayed_address_of_the_wrong_family() -> None:
    both = Pair(TurnMachine(CREDENTIALS, now=0.0, ipv6=True), FakeServer())
    both.exchange()
    assert "family asked for" in str(ended(both).refusal)


# --- integrity ---------------------------------------------------------------------------------


def test_an_unsigned_success_counts_for_nothing_and_the_right_one_behind_it_does() -> None:
    both = pair()
    (request,) = both.machine.datagrams_to_send(0.0)
    both.give(both.server.handle(request)[0])
    (signed,) = both.machine.datagrams_to_send(0.0)
    both.server.forget_integrity = True
    forged = both.server.handle(signed)[0]
    both.give(forged)
    assert both.events() == []
    both.server.forget_integrity = False
    both.give(both.server.handle(signed)[0])
    (event,) = both.events()
    assert isinstance(event, Allocated)
    assert both.machine.dropped["wrong integrity"] == 1


def test_over_a_stream_an_unsigned_answer_ends_it() -> None:
    both = pair(FakeServer(forget_integrity=True), reliable=True)
    both.exchange()
    assert "not signed" in str(ended(both).refusal)


@pytest.mark.parametrize("algorithms", [(), ((2, b""),)], ids=["SHA-1", "SHA-256"])
def test_an_answer_under_another_key(algorithms: tuple[tuple[int, bytes], ...]) -> None:
    both = allocated(FakeServer(algorithms=algorithms))
    both.machine.permit(PEER.host, 0.0)
    (request,) = both.machine.datagrams_to_send(0.0)
    answer = both.server.handle(request)[0]
    both.give(answer[:-1] + bytes([answer[-1] ^ 1]))
    assert both.events() == []
    both.give(answer)
    assert both.events() == [PeerPermitted(PEER.host)]


def test_a_mismatch_that_nobody_signed_does_not_end_an_allocation() -> None:
    both = allocated(FakeServer(refusals=defaults(TurnMethod.CREATE_PERMISSION, 437)))
    both.server.forget_integrity = True
    both.machine.permit(PEER.host, 0.0)
    both.exchange()
    assert both.events() == []
    both.server.forget_integrity = False
    both.run_until(1.0)
    assert both.events() == [PeerPermitted(PEER.host)]


def test_an_answer_with_weaker_integrity_than_was_agreed() -> None:
    both = allocated(FakeServer(algorithms=((2, b""),)))
    both.machine.permit(PEER.host, 0.0)
    (request,) = both.machine.datagrams_to_send(0.0)
    answer = both.server.handle(request)[0]
    weaker = Message(TurnMethod.CREATE_PERMISSION, MessageClass.SUCCESS_RESPONSE, request[8:20])
    both.give(encode_message(weaker, integrity_key=both.server.key))
    assert both.events() == []
    both.give(answer)
    assert both.events() == [PeerPermitted(PEER.host)]


# --- peers -------------------------------------------------------------------------------------


def send(both: Pair, data: bytes) -> None:
    unit = both.machine.encode(PEER, data, both.now)
    assert unit is not None
    assert both.server.handle(unit) == []


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


# --- time --------------------------------------------------------------------------------------


def methods(both: Pair) -> list[str]:
    seen, both.server.seen = both.server.seen, []
    return seen


def test_permissions_are_refreshed_before_five_minutes_and_the_allocation_before_ten() -> None:
    both = permitted()
    methods(both)
    both.run_until(239.0)
    assert methods(both) == []
    both.run_until(241.0)
    assert methods(both) == ["CREATE_PERMISSION"]
    both.run_until(545.0)
    assert methods(both) == ["CREATE_PERMISSION", "REFRESH"]
    both.run_until(3600.0)
    assert both.machine.is_permitted(PEER.host, both.now)
    assert both.events() == []


def test_a_channel_is_refreshed() -> None:
    both = permitted()
    both.machine.bind(PEER, both.now)
    both.run_until(1.0)
    methods(both)
    both.run_until(3000.0)
    assert methods(both).count("CHANNEL_BIND") == 12
    send(both, b"late")
    assert both.server.to_peers[-1] == (PEER, b"late", True)


def test_a_short_lifetime_is_respected() -> None:
    both = allocated(FakeServer(lifetime=20))
    methods(both)
    both.run_until(100.0)
    assert methods(both) == ["REFRESH"] * 10


def test_a_lifetime_of_nothing_does_not_make_us_ask_all_the_time() -> None:
    both = pair(FakeServer(lifetime=0))
    both.run_until(10.0)
    assert len(both.server.requests) <= 12


def test_stale_nonces_are_replaced() -> None:
    both = permitted()
    both.server.nonce_number += 1
    both.run_until(2000.0)
    assert both.events() == []
    assert both.server.allocated


def test_an_idle_allocation_over_udp_keeps_its_mapping() -> None:
    both = allocated()
    both.run_until(KEEP_ALIVE * 10 + 1)
    assert both.server.indications == 10
    stream = allocated(reliable=True)
    stream.run_until(KEEP_ALIVE * 10 + 1)
    assert stream.server.indications == 0


def test_a_restarted_server_is_found_out_while_we_send() -> None:
    both = permitted()
    both.machine.bind(PEER, both.now)
    both.exchange()
    both.server.restart()
    assert both.machine.encode(PEER, b"lost", both.now) is not None
    both.run_until(both.now + SUSPICIOUS_SILENCE + 0.1)
    refusal = ended(both).refusal
    assert refusal is not None
    assert (refusal.code, refusal.errno) == (437, errno.ECONNRESET)


def test_a_server_that_has_gone_is_found_out_while_we_send() -> None:
    both = permitted()
    both.server.mute = True
    assert both.machine.encode(PEER, b"lost", both.now) is not None
    both.run_until(both.now + 20)
    refusal = ended(both).refusal
    assert refusal is not None
    assert refusal.errno == errno.ETIMEDOUT


def test_silence_of_a_peer_that_is_not_written_to_means_nothing() -> None:
    both = permitted()
    methods(both)
    both.run_until(60.0)
    assert methods(both) == []


def test_an_allocation_that_cannot_be_refreshed_expires() -> None:
    both = allocated()
    both.server.mute = True
    both.run_until(600.0)
    refusal = ended(both).refusal
    assert refusal is not None
    assert refusal.errno == errno.ETIMEDOUT


def test_close_gives_up_on_a_mute_server_and_says_no_more() -> None:
    both = permitted()
    both.server.mute = True
    both.machine.close(both.now)
    both.machine.close(both.now)
    both.exchange()
    assert both.server.requests[-1].get(Lifetime) == Lifetime(0)
    both.run_until(40.0)
    assert ended(both).refusal is None
    assert both.machine.encode(PEER, b"x", both.now) is None


def test_close_before_the_allocation() -> None:
    both = pair()
    both.machine.close(0.0)
    assert ended(both).refusal is None


def test_close_while_the_server_may_have_made_the_allocation() -> None:
    both = pair()
    (request,) = both.machine.datagrams_to_send(0.0)
    both.give(both.server.handle(request)[0])
    (signed,) = both.machine.datagrams_to_send(0.0)
    (answer,) = both.server.handle(signed)
    both.machine.close(0.0)
    assert both.events() == []
    both.give(answer)
    both.exchange()
    assert both.server.seen == ["ALLOCATE", "REFRESH"]
    assert not both.server.allocated
    assert ended(both).refusal is None


def test_close_while_the_server_refuses() -> None:
    both = pair(FakeServer(refusals=defaults(TurnMethod.ALLOCATE, 508)))
    (request,) = both.machine.datagrams_to_send(0.0)
    both.give(both.server.handle(request)[0])
    both.machine.close(0.0)
    both.exchange()
    assert ended(both).refusal is None


# --- what strangers send -----------------------------------------------------------------------


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
