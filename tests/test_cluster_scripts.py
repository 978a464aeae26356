"""The scripts in a real redis-server: who gets a name, what is given back, where an offer goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from broker_support import make_identity
from redis_support import needs_redis, running_redis

from ntcpsock._servers.cluster import scripts
from ntcpsock._servers.cluster.rows import encode_row

pytestmark = needs_redis

ALICE, BOB = make_identity(1).public_key, make_identity(2).public_key
ONE, TWO, THREE = "01" * 8, "02" * 8, "03" * 8


class Store:
    """A client of it, synchronous, and not the one that brokers use."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.run = str(client.info("server")["run_id"])

    def do(self, script: str, *arguments: bytes | str | int) -> object:
        return self.client.eval(script, 0, *arguments)

    def claim(
        self, key: bytes, *names: str, allow: bytes | None = None, run: str | None = None
    ) -> list[bytes]:
        answer = self.do(scripts.CLAIM, run or self.run, key, encode_row(key, allow), 3, 5, *names)
        assert isinstance(answer, list)
        return answer

    def place(self, broker: str, key: bytes, ports: str, message: str = "") -> None:
        self.do(scripts.PLACE, broker, scripts.PLACE_TTL, key, ports, message)

    def forward(self, key: bytes, port: int, *, exact: bool = False, broker: str = ONE) -> object:
        return self.do(scripts.FORWARD, broker, key, port, "1" if exact else "0", "offer")


def listening(store: Store) -> Any:
    return store.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with running_redis(tmp_path / "redis", keep=False) as server:
        with redis.Redis(port=server.port) as client:
            yield Store(client)


def test_first_come_all_or_none_and_bounded(store: Store) -> None:
    assert store.claim(ALICE, "alice", "al") == [b"kept"]
    assert store.claim(ALICE, "alice", "al") == [b"kept"]
    assert store.claim(BOB, "bob", "al") == [b"taken", b"al", encode_row(ALICE, None)]
    assert store.claim(BOB, "bob", "bert", "bart", "burt") == [b"too many", b"bob"]
    assert store.client.hlen("ntcp:names") == 2
    assert store.claim(BOB, "bob", "bert", "bart") == [b"kept"]
    assert store.claim(ALICE, "a3") == [b"full", b"a3"]
    assert store.claim(ALICE, "alice", allow=b"d" * 16) == [b"kept"]
    assert store.client.hget("ntcp:names", "alice") == encode_row(ALICE, b"d" * 16)
    assert store.claim(ALICE, "new", run="another") == [b"stale"]


def test_changes_are_numbered_without_gaps_and_can_be_had_later(store: Store) -> None:
    with listening(store) as heard:
        heard.subscribe(scripts.CHANGES_CHANNEL)
        heard.get_message(timeout=30)
        store.claim(ALICE, "alice", "al")
        assert store.do(scripts.DECREE, "al", "") == 1
        assert store.do(scripts.DECREE, "al", "") == 0
        announced: list[bytes] = []
        while len(announced) < 3:
            if message := heard.get_message(timeout=30):
                announced.append(message["data"])
    row = encode_row(ALICE, None)
    assert announced == [b"1 alice\0" + row, b"2 al\0" + row, b"3 al\0"]
    assert store.do(scripts.CHANGES, 0, 10) == [1, b"alice", row, 3, b"al", b""]
    assert store.do(scripts.CHANGES, 1, 10) == [3, b"al", b""]
    # The name is free, and counts no more.
    assert store.claim(ALICE, "a2", "a3") == [b"kept"]
    assert store.claim(BOB, "al") == [b"kept"]
    # The operator's word has no bound, and counts.
    assert store.do(scripts.DECREE, "al", encode_row(ALICE, None)) == 1
    assert store.client.hgetall("ntcp:owners") == {ALICE: b"4"}


def test_what_a_store_has_forgotten_is_given_back_and_nothing_overwritten(store: Store) -> None:
    store.claim(ALICE, "alice")
    rows: list[bytes | str] = ["alice", encode_row(BOB, None), "bob", encode_row(BOB, b"")]
    assert store.do(scripts.RESTORE, store.run, *rows) == 1
    assert store.do(scripts.RESTORE, store.run, *rows) == 0
    assert store.do(scripts.RESTORE, "another", *rows) == -1
    assert store.client.hget("ntcp:names", "alice") == encode_row(ALICE, None)
    assert store.client.hgetall("ntcp:owners") == {ALICE: b"1", BOB: b"1"}


def test_the_first_broker_s_keys_are_the_cluster_s(store: Store) -> None:
    assert store.do(scripts.JOIN, ALICE, "relay") == [ALICE, b"relay", store.run.encode()]
    assert store.do(scripts.JOIN, BOB, "other") == [ALICE, b"relay", store.run.encode()]


def test_an_offer_goes_to_who_listens_has_the_port_and_was_told_last(store: Store) -> None:
    with listening(store) as heard:
        for broker in (TWO, THREE):
            heard.subscribe(f"ntcp:to:{broker}")
            heard.get_message(timeout=30)

        def reached() -> str:
            while True:
                if message := heard.get_message(timeout=30):
                    return str(message["channel"].decode().removeprefix("ntcp:to:"))

        assert store.forward(ALICE, 80) == 0
        store.place(ONE, ALICE, ",80,")
        # Oneself is nobody else.
        assert store.forward(ALICE, 80) == 0
        store.place(TWO, ALICE, ",80,8080,")
        assert (store.forward(ALICE, 80), reached()) == (1, TWO)
        store.place(THREE, ALICE, ",443,")
        assert (store.forward(ALICE, 80), reached()) == (1, TWO)
        assert (store.forward(ALICE, 1), reached()) == (1, THREE)
        assert store.forward(ALICE, 1, exact=True) == 0
        # Said again it does not become the newest; with a new registration it does, and the others hear of it.
        store.place(TWO, ALICE, ",80,8080,")
        assert (store.forward(ALICE, 1), reached()) == (1, THREE)
        store.place(TWO, ALICE, ",80,8080,", "moved")
        assert reached() == THREE
        assert (store.forward(ALICE, 1), reached()) == (1, TWO)
        store.place(TWO, ALICE, "")
        assert (store.forward(ALICE, 80), reached()) == (1, THREE)
        heard.unsubscribe(f"ntcp:to:{THREE}")
        heard.get_message(timeout=30)
    # Dead brokers are found out by nobody's listening, and forgotten.
    assert store.forward(ALICE, 80) == 0
    assert store.client.hkeys(b"ntcp:at:" + ALICE) == [ONE.encode()]
    assert 0 < store.client.ttl(b"ntcp:at:" + ALICE) <= scripts.PLACE_TTL


def test_a_beat_tells_whether_all_is_as_it_was(store: Store) -> None:
    assert store.do(scripts.BEAT, ONE, "beat") == [store.run.encode(), 0, 0, 0]
    store.claim(ALICE, "alice")
    store.place(ONE, ALICE, ",80,")
    assert store.do(scripts.BEAT, ONE, "beat") == [store.run.encode(), 1, 0, 1]
