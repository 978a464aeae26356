"""The registry's tables against plain ones, and its sweeps."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._address import Endpoint
from ntcpsock._servers.key_index import KeyIndex
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.node_record import RECORD, Offered
from ntcpsock._servers.random_pool import RandomPool
from ntcpsock._servers.registry import MAX_INSTANCES, Registry

SOURCE = Endpoint("192.0.2.1", 7)


def key_of(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def add(registry: Registry, number: int, now: float, instance: bytes = bytes(8)) -> None:
    assert registry.add(key_of(number), bytes(32), instance, b"\xff" * 8, SOURCE, now) is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=300), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_index_is_a_dict(script: list[tuple[bool, int]], salt: int) -> None:
    keys = [random.Random(salt + number).randbytes(32) for number in range(61)]
    packed = bytearray()
    for key in keys:
        packed += key.ljust(RECORD.size, b"\0")
    index = KeyIndex(packed)
    # All in one table, so that rows are long and wrap.
    index._tables = [index._tables[0]] * len(index._tables)
    grown: list[int] = []

    def grow(which: int) -> None:
        grown.append(which)
        KeyIndex._grow(index, which)
        index._tables = [index._tables[which]] * len(index._tables)

    index._grow = grow  # type: ignore[method-assign]

    class One(list[int]):
        def __getitem__(self, at: object) -> int:  # type: ignore[override]
            return super().__getitem__(0)

        def __setitem__(self, at: object, value: int) -> None:  # type: ignore[override]
            super().__setitem__(0, value)

    index._counts = One([0])  # type: ignore[assignment]
    model: dict[bytes, int] = {}
    for put, number in script:
        if put:
            index[keys[number]] = model[keys[number]] = number
        elif keys[number] in model:
            del index[keys[number]], model[keys[number]]
        for place, key in enumerate(keys):
            assert index.get(key) == model.get(key)
            assert (key in index) == (key in model)
            assert place < len(keys)


def test_the_index_of_many() -> None:
    chance = random.Random(3)
    registry = Registry(NameStore(None), max_nodes=100_000)
    living: set[int] = set()
    for _ in range(12_000):
        number = chance.randrange(6000)
        if number in living:
            registry.remove(registry.instances(key_of(number), 0.0)[0])
            living.remove(number)
        else:
            add(registry, number, 0.0)
            living.add(number)
    assert len(registry) == len(living) == len(list(registry))
    for number in range(6000):
        assert registry.knows(key_of(number)) == (number in living)
    # Places were used again.
    assert len(registry.records.offered) < 6000 + 1024


def test_sweeps_forget_the_silent_and_nobody_else() -> None:
    registry = Registry(NameStore(None), max_nodes=1000)
    for number in range(500):
        add(registry, number, 0.0)
    now = 0.0
    while now < 200:
        now += 0.7
        for number in range(0, 500, 5):
            (node,) = registry.instances(key_of(number), now)
            registry.touch(node, now)
        registry.expire(now, 7)
    assert len(registry) == 100
    # Each that is here is in one list only, however often it was put off.
    assert sum(map(len, registry._due.values())) + len(registry._sweeping[1]) == 100


def test_whoever_comes_pays_for_few_of_those_that_are_due() -> None:
    """Sixty-four looks at each frame were a fifth of a millisecond: a broker filled in seconds lost datagrams a minute
    later, when all of its records were due."""
    registry = Registry(NameStore(None), max_nodes=1000)
    for number in range(100):
        add(registry, number, 0.0)
    registry.expire(100.0)
    assert 100 > len(registry) >= 90


def test_a_place_that_is_used_again_is_looked_at_in_its_own_time() -> None:
    registry = Registry(NameStore(None), max_nodes=1000)
    add(registry, 1, 0.0)
    registry.remove(registry.instances(key_of(1), 0.0)[0])
    add(registry, 2, 30.0)
    registry.expire(75.0)
    assert registry.knows(key_of(2))
    registry.expire(92.0)
    assert not registry.knows(key_of(2))
    assert len(registry) == 0


def test_an_old_session_does_not_find_a_new_record() -> None:
    registry = Registry(NameStore(None), max_nodes=1000)
    pool = RandomPool()
    first = registry.add(key_of(1), bytes(32), bytes(8), pool(8), SOURCE, 0.0)
    assert first is not None
    session = first.session
    assert registry.by_session(session, 1.0) is not None
    registry.remove(first)
    second = registry.add(key_of(2), bytes(32), bytes(8), pool(8), SOURCE, 0.0)
    assert second is not None
    assert second.place == first.place
    assert registry.by_session(session, 1.0) is None
    assert registry.by_session(b"\xff" * 8, 1.0) is None


def test_instances_of_a_key_are_bounded_and_leave_in_any_order() -> None:
    registry = Registry(NameStore(None), max_nodes=1000)
    for number in range(MAX_INSTANCES + 4):
        add(registry, 1, float(number), bytes([number]) * 8)
    found = registry.instances(key_of(1), 0.0)
    assert [node.instance[0] for node in found] == list(range(4, MAX_INSTANCES + 4))
    for number in (10, MAX_INSTANCES + 3, 4):
        (node,) = [node for node in registry.instances(key_of(1), 0.0) if node.instance[0] == number]
        registry.remove(node)
    left = [node.instance[0] for node in registry.instances(key_of(1), 0.0)]
    assert left == [number for number in range(5, MAX_INSTANCES + 3) if number != 10]


def test_what_was_offered_goes_with_its_record() -> None:
    registry = Registry(NameStore(None), max_nodes=1000)
    add(registry, 1, 0.0)
    (node,) = registry.instances(key_of(1), 0.0)
    node.offered = Offered(names=("alice",), ports=(80,), card=b"card")
    node.prove("192.0.2.7", 0.0)
    registry.remove(node)
    add(registry, 2, 0.0)
    (node,) = registry.instances(key_of(2), 0.0)
    assert (node.names, node.card, node.proved) == ((), None, ())


def test_random_bytes_are_given_once() -> None:
    pool = RandomPool()
    given_out = [pool(24) for _ in range(2000)]
    assert len(set(given_out)) == 2000
    assert {len(each) for each in given_out} == {24}
    assert len(pool(100_000)) == 100_000
