"""The TURN machine at a clock that the test moves: refreshes, silence, ends."""

from __future__ import annotations

import errno

from turn_machine_support import allocated, defaults, ended, methods, pair, permitted, send
from turn_support import PEER, FakeServer

from ntcpsock._traversal.turn.machine import KEEP_ALIVE, SUSPICIOUS_SILENCE
from ntcpsock._traversal.turn.message import Lifetime, TurnMethod


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
