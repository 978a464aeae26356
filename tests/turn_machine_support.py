"""A TURN machine with a server without sockets, as far along as a test wants it."""

from __future__ import annotations

from collections import deque

from turn_support import CLIENT, PEER, RELAYED, FakeServer, Pair

from ntcpsock._traversal.turn.credentials import TurnCredentials
from ntcpsock._traversal.turn.events import Allocated, Ended, PeerPermitted
from ntcpsock._traversal.turn.machine import TurnMachine

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


def defaults(method: int, *codes: int) -> dict[int, deque[int]]:
    return {**{number: deque() for number in range(16)}, method: deque(codes)}


def send(both: Pair, data: bytes) -> None:
    unit = both.machine.encode(PEER, data, both.now)
    assert unit is not None
    assert both.server.handle(unit) == []


def methods(both: Pair) -> list[str]:
    seen, both.server.seen = both.server.seen, []
    return seen
