"""Offers that are repeated while their dial ends: a dialer must not bring a listening node down with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import trio
import trio.testing

from ntcpsock._traversal.accept import AcceptContext, Acceptor
from ntcpsock._traversal.aim import Standpoint
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.bursts import Bursts
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.driver import choose_port, open_punch_listener
from ntcpsock._traversal.punch.message import Candidate, DialKind, Offer

TICKS = 40  # more than a dial with one attempt needs to end
RUNS = 50  # trio runs the tasks of one tick in any order


def make_node(warm: WarmPort) -> AcceptContext:
    async def admits(port: int, delivery: Delivery, kind: DialKind) -> bool:
        return True

    return cast(
        AcceptContext,
        SimpleNamespace(
            techniques=("lan", "public"),
            encryption="tls",
            stun_servers=(),
            certificate=SimpleNamespace(fingerprint=bytes(32)),
            broker_rtt=0.0,
            surroundings=SimpleNamespace(standpoint=Standpoint("127.0.0.1"), late_techniques=()),
            offers_raw=False,
            relays=(),
            relay_times={},
            private=False,
            listening_port=warm,
            listens=lambda port, kind: True,
            turn_servers=(),
            admits=admits,
            mapped_ports=lambda transport: (),
            note_mapped=lambda transport, ports: None,
            bursts=Bursts(),
            introductions=SimpleNamespace(reply=lambda delivery, answer: None),
        ),
    )


async def test_offers_repeated_while_a_dial_ends(nursery: trio.Nursery) -> None:
    delivery: Any = SimpleNamespace(
        answer=None, sender=bytes(32), sender_name=None, observed_host="127.0.0.1", also_observed=()
    )
    port = choose_port()
    warm = WarmPort(port, (open_punch_listener(port),))
    # Nobody accepts there: the attempt is under way until it is cancelled.
    remote = Candidate("host", "tcp", "127.0.0.1", port)
    for run in range(RUNS):
        acceptor = Acceptor(make_node(warm))
        offer = Offer(run.to_bytes(16), bytes(32), 7000, 1, (remote,))
        nursery.start_soon(acceptor.offered, delivery, offer)
        await trio.testing.wait_all_tasks_blocked()
        acceptor.dials.under_way[offer.dial_id].scope.cancel()
        for tick in range(TICKS):
            # Each brings another endpoint, and so another attempt.
            news = (msgspec.structs.replace(remote, port=1 + tick),)
            await acceptor.offered(delivery, msgspec.structs.replace(offer, round=2 + tick, candidates=news))
            await trio.lowlevel.checkpoint()
        assert not acceptor.dials.under_way
    warm.close()
