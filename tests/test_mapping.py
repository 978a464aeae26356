"""A mapping's life: found, held, renewed, lost and given back; with routers that exist in memory only."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from ntcpsock._address import Endpoint
from ntcpsock._traversal import mapping
from ntcpsock._traversal.mapping import DialMapping, Mapping, NoMapping, PortMapper
from ntcpsock._traversal.portmap.driver import Grant, MappingRefused, RouterProtocol

PORT = 20001
EXTERNAL = Endpoint("192.0.2.1", PORT)


class Router:
    """One protocol of a router. delay: of its answers in seconds, None for none; lifetime: what it grants."""

    def __init__(self, name: str, delay: float | None = 0.01, lifetime: float = 1200) -> None:
        self.name = name
        self.dropped = 0
        self.delay = delay
        self.lifetime = lifetime
        self.refuses = False
        self.intact = True
        self.loses_answers = False
        self.external = EXTERNAL
        self.table: set[int] = set()
        self.log: list[tuple[float, str]] = []

    def times(self, what: str) -> list[float]:
        return [when for when, entry in self.log if entry == what]

    async def _answer(self, what: str, deadline: float) -> None:
        self.log.append((round(trio.current_time(), 1), what))
        await trio.sleep(deadline if self.delay is None else self.delay)
        if self.delay is None:
            raise TimeoutError(errno.ETIMEDOUT, "no answer")

    async def probe(self) -> str | None:
        await self._answer("probe", 1.0)
        return None

    async def map(self, port: int, external_port: int, lifetime: int) -> Grant:
        await self._answer("map", 4.0)
        if self.refuses:
            raise MappingRefused("not authorized")
        self.table.add(port)
        if self.loses_answers:
            await trio.sleep(4.0)
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        return Grant(self.external, self.lifetime)

    async def check(self, port: int) -> bool:
        await self._answer("check", 4.0)
        return self.intact

    async def unmap(self, port: int) -> None:
        await self._answer("unmap", 4.0)
        self.table.discard(port)


def mapper_of(*routers: Router) -> PortMapper:
    def find() -> Sequence[RouterProtocol]:
        return routers

    return PortMapper(find)


class Heard:
    """What `changed` was told, with the times."""

    def __init__(self) -> None:
        self.words: list[tuple[float, Mapping | None]] = []

    async def __call__(self, mapping: Mapping | None) -> None:
        self.words.append((round(trio.current_time(), 1), mapping))

    @property
    def mappings(self) -> list[Mapping | None]:
        return [mapping for _, mapping in self.words]


async def keep(mapper: PortMapper, seconds: float, heard: Heard) -> None:
    with trio.move_on_after(seconds):
        await mapper.keep(PORT, heard)


async def test_the_first_that_maps_is_used_and_no_other_is_asked_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow, fast, silent = Router("upnp", 0.5), Router("pcp", 0.01), Router("nat-pmp", None)
    heard = Heard()
    await keep(mapper_of(slow, fast, silent), 5.0, heard)
    assert heard.words == [(0.0, Mapping("pcp", EXTERNAL))]
    assert [len(router.times("map")) for router in (slow, fast, silent)] == [0, 1, 0]
    # Cancelled, it gives back what it has.
    assert fast.table == set()
    assert fast.times("unmap") == [5.0]


async def test_one_that_answers_when_another_has_just_mapped_is_not_asked_to() -> None:
    mapped = trio.Event()

    class Quick(Router):
        async def map(self, port: int, external_port: int, lifetime: int) -> Grant:
            grant = await super().map(port, external_port, lifetime)
            mapped.set()
            return grant

    class AtThatMoment(Router):
        async def probe(self) -> str | None:
            await mapped.wait()
            return None

    quick, other = Quick("pcp"), AtThatMoment("upnp")
    mapper, heard = mapper_of(quick, other), Heard()
    with trio.CancelScope() as scope:

        async def changed(mapping: Mapping | None) -> None:
            await heard(mapping)
            scope.cancel()

        await mapper.keep(PORT, changed)
    assert heard.mappings == [Mapping("pcp", EXTERNAL)]
    assert other.times("map") == []
    assert quick.table == set()


async def test_the_next_is_asked_where_the_first_refuses(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Router("pcp", 0.01), Router("upnp", 0.5)
    first.refuses = True
    heard = Heard()
    await keep(mapper_of(first, second), 5.0, heard)
    assert heard.mappings == [Mapping("upnp", EXTERNAL)]
    assert second.table == set()


async def test_nothing_is_known_within_a_second_and_asked_again_ever_more_rarely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    silent, refusing = Router("upnp", None), Router("pcp")
    refusing.refuses = True
    mapper, heard = mapper_of(silent, refusing), Heard()
    await keep(mapper, 2000.0, heard)
    assert heard.words == []
    assert silent.times("probe") == [0.0, 11.0, 72.0, 673.0, 1274.0, 1875.0]
    assert mapper.refusal() == "pcp: not authorized; upnp: no answer"


async def test_a_dial_does_not_ask_again_what_was_just_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    silent = Router("upnp", None)
    mapper = mapper_of(silent)
    for _ in range(3):
        with pytest.raises(NoMapping, match="upnp: no answer"):
            await mapper.hold(PORT, Heard())
    assert silent.times("probe") == [0.0]


async def test_no_gateway_is_a_reason(autojump_clock: trio.testing.MockClock) -> None:
    def find() -> Sequence[RouterProtocol]:
        raise OSError("no default route through a gateway")

    with pytest.raises(NoMapping, match="no default route"):
        await PortMapper(find).hold(PORT, Heard())


async def test_renewals(autojump_clock: trio.testing.MockClock) -> None:
    router, heard = Router("pcp", lifetime=40), Heard()
    await keep(mapper_of(router), 90.0, heard)
    assert router.times("map") == [0.0, 20.0, 40.0, 60.0, 80.0]
    assert heard.mappings == [Mapping("pcp", EXTERNAL)]


async def test_a_mapping_that_moves_is_told(autojump_clock: trio.testing.MockClock) -> None:
    router, heard = Router("pcp", lifetime=40), Heard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, mapper_of(router), 50.0, heard)
        await trio.sleep(10)
        router.external = Endpoint("192.0.2.2", 4000)
    assert [mapping and mapping.external for mapping in heard.mappings] == [
        EXTERNAL,
        Endpoint("192.0.2.2", 4000),
    ]


async def test_a_router_that_forgets_is_asked_anew(autojump_clock: trio.testing.MockClock) -> None:
    router, heard = Router("pcp"), Heard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, mapper_of(router), 130.0, heard)
        await trio.sleep(30)
        router.intact = False
        await trio.sleep(31)
        router.intact = True
    assert router.times("check") == [60.0, 120.0]
    assert router.times("map") == [0.0, 60.0]


async def test_a_router_that_falls_silent_loses_the_mapping_and_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    router, heard = Router("pcp", lifetime=40), Heard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, mapper_of(router), 200.0, heard)
        await trio.sleep(10)
        router.delay = None
        await trio.sleep(40)
        router.delay = 0.01
    assert heard.mappings == [Mapping("pcp", EXTERNAL), None, Mapping("pcp", EXTERNAL)]
    lost = heard.words[1][0]
    assert 40.0 <= lost <= 44.1


async def test_an_answer_that_was_lost_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    router = Router("pcp")
    router.loses_answers = True
    with pytest.raises(NoMapping, match="pcp: no answer"):
        await mapper_of(router).hold(PORT, Heard())
    assert router.table == set()


@pytest.mark.parametrize(
    "external",
    [
        Endpoint("", PORT),
        Endpoint("nowhere", PORT),
        Endpoint("0.0.0.0", PORT),
        Endpoint("127.0.0.1", PORT),
        Endpoint("224.0.0.1", PORT),
        Endpoint("2001:db8::1", PORT),
        Endpoint("192.0.2.1", 0),
    ],
)
async def test_an_address_that_nobody_can_reach_is_not_passed_on(
    external: Endpoint, autojump_clock: trio.testing.MockClock
) -> None:
    router, heard = Router("upnp"), Heard()
    router.external = external
    await keep(mapper_of(router), 5.0, heard)
    assert heard.words == []
    assert router.table == set()


@pytest.mark.parametrize("moment", [0.005, 0.015, 0.5, 3.0])
async def test_cancelling_at_any_moment_leaves_nothing(
    moment: float, autojump_clock: trio.testing.MockClock
) -> None:
    router, late = Router("pcp"), Router("upnp", 2.0)
    await keep(mapper_of(router, late), moment, Heard())
    assert router.table == late.table == set()


async def test_giving_back_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    router = Router("pcp")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, mapper_of(router), 10.0, Heard())
        await trio.sleep(5)
        router.delay = None
    assert trio.current_time() == pytest.approx(10.0 + mapping.REMOVAL_DEADLINE)


# Dials.


class Sock:
    """Something that is open or closed."""

    def __init__(self) -> None:
        self.number = 5

    def fileno(self) -> int:
        return self.number


async def test_a_dial_gives_its_port_back(autojump_clock: trio.testing.MockClock) -> None:
    router = Router("pcp")
    async with trio.open_nursery() as nursery:
        held = DialMapping(mapper_of(router), PORT, nursery)
        assert await held.wait() == Mapping("pcp", EXTERNAL)
        assert router.table == {PORT}
        held.release()
    assert router.table == set()


async def test_a_connection_keeps_the_mapping_that_it_came_by(autojump_clock: trio.testing.MockClock) -> None:
    router, sock = Router("pcp"), Sock()
    async with trio.open_nursery() as nursery:
        held = DialMapping(mapper_of(router), PORT, nursery)
        await held.wait()
        held.release(sock)
        await trio.sleep(1000)
        assert router.table == {PORT}
        sock.number = -1
    assert router.table == set()
    assert trio.current_time() <= 1000 + 2 * mapping.LOOK_INTERVAL


async def test_a_dial_hears_why_there_is_none(autojump_clock: trio.testing.MockClock) -> None:
    router = Router("pcp")
    router.refuses = True
    async with trio.open_nursery() as nursery:
        with pytest.raises(NoMapping, match="pcp: not authorized"):
            await DialMapping(mapper_of(router), PORT, nursery).wait()
