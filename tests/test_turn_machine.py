"""The TURN machine against a server without sockets: allocation, credentials, integrity."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import replace

import pytest
from turn_machine_support import CREDENTIALS, allocated, defaults, ended, pair
from turn_support import PEER, FakeServer, Pair

from ntcpsock._traversal.stun.constants import MessageClass
from ntcpsock._traversal.stun.credentials import PasswordAlgorithm
from ntcpsock._traversal.stun.message import Message, encode_message
from ntcpsock._traversal.turn.events import Allocated, PeerPermitted, Redirected
from ntcpsock._traversal.turn.machine import TurnMachine
from ntcpsock._traversal.turn.message import TurnMethod
from ntcpsock._traversal.turn.requests import MAX_CHALLENGES


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
