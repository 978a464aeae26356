"""Many sessions at once, of which the first that is authenticated wins."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import trio
import trio.testing

from ntcpsock._address import Endpoint
from ntcpsock._report import Attempt
from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.driver import choose_port, open_punch_socket
from ntcpsock._traversal.strategies.base import MAX_TAKEN, AttemptContext, Authenticate, first_connection

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT"), reason="ports are shared by SO_REUSEPORT"
)

PATIENCE = 0.2


@dataclass
class FakeCarrier:
    """Stands for an authenticated connection."""

    sock: Any
    closed: bool = False

    def close(self, *, abort: bool = False) -> None:
        self.closed = abort
        self.sock.close()


@pytest.fixture
def answering() -> Iterator[Endpoint]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Endpoint(*server.getsockname()[:2])


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """A listener whose queue is full: the kernel drops further SYNs."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        socket.create_connection(server.getsockname()),
    ):
        yield Endpoint(*server.getsockname()[:2])


def context(authenticate: Any) -> AttemptContext:
    planned = PlannedAttempt("tcp-predict", Endpoint("127.0.0.1", 0), 0.0, 60.0)
    entry = Attempt("tcp-predict", None, None, 0.0)
    return AttemptContext(planned, 0, 0.01, cast(Authenticate, authenticate), entry)


async def test_what_has_met_in_time_is_authenticated_however_long_that_takes(
    answering: Endpoint, silent: Endpoint
) -> None:
    async def authenticate(sock: Any) -> Any:
        await trio.sleep(3 * PATIENCE)  # the other side is slow, and may have chosen this one already
        return FakeCarrier(sock)

    made = context(authenticate)
    sessions = [(choose_port(), silent), (choose_port(), answering)]
    with trio.fail_after(60):
        found = await first_connection(made, sessions, tries=1, pace=0.0, patience=PATIENCE)
    assert made.entry.tries == 2
    found.carrier.close(abort=True)


async def test_what_does_not_meet_is_given_up(silent: Endpoint) -> None:
    async def authenticate(sock: Any) -> Any:
        raise AssertionError("connected")

    sessions = [(choose_port(), silent) for _ in range(3)]
    with trio.fail_after(60), pytest.raises(TimeoutError, match="met none") as caught:
        await first_connection(context(authenticate), sessions, tries=1, pace=0.0, patience=PATIENCE)
    assert caught.value.errno == errno.ETIMEDOUT


async def test_what_comes_in_takes_part(silent: Endpoint) -> None:
    async def authenticate(sock: Any) -> Any:
        return FakeCarrier(sock)

    ours, theirs = choose_port(), choose_port()
    made = context(authenticate)

    async def connect() -> None:
        # From a port that nobody aimed at.
        sock = open_punch_socket(theirs)
        await trio.testing.wait_all_tasks_blocked()
        await sock.connect(("127.0.0.1", ours))
        accepted.append(sock)

    accepted: list[Any] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            found = await first_connection(
                made, [(ours, silent)], tries=1, pace=0.0, patience=50.0, listen=[ours]
            )
    (sock,) = accepted
    assert cast(FakeCarrier, found.carrier).sock.getpeername()[1] == theirs
    found.carrier.close(abort=True)
    sock.close()
    with pytest.raises(ConnectionRefusedError):  # nobody listens there any more
        socket.create_connection(("127.0.0.1", ours), timeout=10)


async def test_strangers_are_bounded(silent: Endpoint) -> None:
    waiting: list[Any] = []

    async def authenticate(sock: Any) -> Any:
        waiting.append(sock)
        try:
            await trio.sleep_forever()
        finally:
            sock.close()

    ours = choose_port()
    clients: list[socket.socket] = []
    with trio.move_on_after(60) as scope:
        async with trio.open_nursery() as nursery:

            async def crowd() -> None:
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(2 * MAX_TAKEN):
                    clients.append(socket.create_connection(("127.0.0.1", ours), timeout=10))
                # The last one was closed again: that ends the wait.
                clients[-1].setblocking(False)
                await trio.lowlevel.wait_readable(clients[-1])
                scope.cancel()

            nursery.start_soon(crowd)
            await first_connection(
                context(authenticate), [(ours, silent)], tries=1, pace=0.0, patience=50.0, listen=[ours]
            )
    assert len(waiting) == MAX_TAKEN
    for client in clients:
        client.close()


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_one_that_is_found_when_all_is_cancelled(answering: Endpoint, role: Role) -> None:
    """The leader's is closed. The follower's is in other hands since it was authenticated: the leader has chosen it."""
    made: list[FakeCarrier] = []

    async def authenticate(sock: Any) -> Any:
        made.append(FakeCarrier(sock))
        scope.cancel()
        return made[0]

    ours = choose_port()
    with trio.CancelScope() as scope:
        await first_connection(
            replace(context(authenticate), role=role),
            [(ours, answering)],
            tries=1,
            pace=0.0,
            patience=50.0,
            listen=[ours],
        )
    assert scope.cancelled_caught
    assert made[0].closed is (role == "leader")
    made[0].close()
