"""A broker of two that ends is replaced within a keep-alive, whenever in it that happens, on virtual time."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from broker_support import make_identity

from ntcpsock._address import BrokerAddress, Endpoint
from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.names import NameStore
from ntcpsock._traversal.broker.events import Disconnected, Event
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.link import Link
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import Register
from ntcpsock._traversal.broker.transport import Destination

INTERVAL = 20.0
NODE = Endpoint("203.0.113.1", 4000)
BROKER = make_identity(999)


@dataclass
class Host:
    """A broker of the two. refuses: its host is there, and says so, when it has ended."""

    address: str
    core: BrokerCore
    refuses: bool
    is_up: bool = True


class Way:
    """A transport whose datagrams take a while; see `Transport`."""

    name = "udp"
    sockets = 1

    def __init__(self, there: Host, latency: float, nursery: trio.Nursery) -> None:
        self.there, self.latency, self.nursery = there, latency, nursery
        self.host = there.address
        self.destination: Destination | None = (socket.AF_INET, (there.address, 6060))
        self._inbox: list[bytes | OSError] = []
        self._arrived = trio.Event()

    def send(self, frame: bytes) -> None:
        self.nursery.start_soon(self._go, frame)

    async def _go(self, frame: bytes) -> None:
        await trio.sleep(self.latency)
        answers: list[bytes | OSError] = []
        if self.there.is_up:
            answers += [answer for answer, _ in self.there.core.receive(frame, NODE, trio.current_time())]
        elif self.there.refuses:
            answers.append(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
        await trio.sleep(self.latency)
        self._inbox += answers
        self._arrived.set()

    async def run(
        self,
        receive: Callable[[bytes], None],
        failed: Callable[[OSError], None],
        renewed: Callable[[], None],
    ) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._inbox:
                word = self._inbox.pop(0)
                if isinstance(word, OSError):
                    failed(word)
                else:
                    receive(word)

    def is_stale(self) -> bool:
        return False

    def close(self) -> None:
        self._inbox.clear()


@pytest.mark.parametrize("refuses", [True, False], ids=["killed", "vanished"])
@pytest.mark.parametrize("latency", [0.001, 0.025, 0.075])
@pytest.mark.parametrize("moment", [0.0, 0.3, 0.6, 0.88, 0.92, 0.999])
async def test_within_a_keep_alive(
    refuses: bool, latency: float, moment: float, autojump_clock: trio.testing.MockClock
) -> None:
    """moment: of its end, as a part of the interval after the answer to a keep-alive."""
    names = NameStore(None)
    hosts = [Host(f"198.51.100.{number}", BrokerCore(BROKER, names), refuses) for number in (1, 2)]
    node = make_identity(1)

    def is_registered() -> bool:
        return any(
            record.registered
            for record in hosts[1].core.registry.instances(node.public_key, trio.current_time())
        )

    async with trio.open_nursery() as nursery:
        machine = ClientMachine(Sealer(node), BROKER.public_key, keep_alive_interval=INTERVAL)
        ways = [Way(host, latency, nursery) for host in hosts]
        link = Link(machine, BrokerAddress("broker.example", 6060, BROKER.public_key), ways)
        await link.greet()

        def handle(event: Event) -> None:
            # As `BrokerSession` does.
            if isinstance(event, Disconnected) and event.silent:
                link.reopen()

        nursery.start_soon(link.run, handle)
        machine.register(Register(("alice",), (80,), 60), trio.current_time())
        link.flush()
        # The last answer before the end comes now.
        await trio.sleep(2 * latency)
        await trio.sleep(moment * INTERVAL)
        hosts[0].is_up = False
        end = trio.current_time()
        while not is_registered():
            await trio.sleep(0.01)
        assert trio.current_time() - end <= INTERVAL
        await trio.sleep(5 * INTERVAL)
        assert machine.connected
        assert is_registered()
        nursery.cancel_scope.cancel()
    names.close()


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
@pytest.mark.parametrize("interlude", ["none", "away", "another key"])
@pytest.mark.parametrize("moment", [0.0, 0.5, 0.999])
async def test_the_same_broker_again_within_a_keep_alive(
    refuses: bool, interlude: str, moment: float, autojump_clock: trio.testing.MockClock
) -> None:
    """From when it is back: started again at once, after some minutes, or after some in which it had lost its key."""
    names = NameStore(None)
    host = Host("198.51.100.1", BrokerCore(BROKER, names), refuses)
    node, thief = make_identity(1), make_identity(66)

    def is_registered() -> bool:
        instances = host.core.registry.instances(node.public_key, trio.current_time())
        return any(record.registered for record in instances)

    async with trio.open_nursery() as nursery:
        machine = ClientMachine(Sealer(node), BROKER.public_key, keep_alive_interval=INTERVAL)
        link = Link(
            machine, BrokerAddress("broker.example", 6060, BROKER.public_key), [Way(host, 0.025, nursery)]
        )
        await link.greet()

        def handle(event: Event) -> None:
            if isinstance(event, Disconnected) and event.silent:
                link.reopen()

        nursery.start_soon(link.run, handle)
        machine.register(Register(("alice",), (80,), 60), trio.current_time())
        link.flush()
        await trio.sleep(0.1 + moment * INTERVAL)
        assert is_registered()
        if interlude != "none":
            host.is_up = interlude == "another key"
            host.core = BrokerCore(make_identity(998), names)
            await trio.sleep(10 * INTERVAL)
            assert not is_registered()
        # Whoever has a key may not have the name that another one has.
        assert names.claim(("alice",), thief.public_key, None) == ("taken", "alice")
        host.core, host.is_up = BrokerCore(BROKER, names), True
        back = trio.current_time()
        while not is_registered():
            await trio.sleep(0.01)
        assert trio.current_time() - back <= INTERVAL
        assert names.claim(("alice",), thief.public_key, None) == ("taken", "alice")
        nursery.cancel_scope.cancel()
    names.close()


async def test_nothing_is_said_more_often_than_a_tenth_before_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of a short interval it is a tenth, of a long one two seconds; none at all stays none."""
    for interval, pause in ((5.0, 4.5), (20.0, 18.0), (300.0, 298.0), (float("inf"), float("inf"))):
        machine = ClientMachine(Sealer(make_identity(1)), BROKER.public_key, keep_alive_interval=interval)
        assert machine._keep_alives.pause == pause
