"""A real redis-server, exposed under a name; redis-py as it is, blocking and on asyncio."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from program_support import PAYLOAD, free_port, run
from service_support import Command

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

pytest.importorskip("redis", reason="redis-py is not installed")
pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")

BLOCKING = (
    PAYLOAD
    + """
import redis, redis.backoff, redis.retry, threading

client = redis.Redis("cache.ntcp", 6379)
client.set("payload", PAYLOAD)
assert hashlib.sha256(client.get("payload")).hexdigest() == DIGEST
with client.pipeline() as pipeline:
    for number in range(1000):
        pipeline.incr("counter")
    print(pipeline.execute()[-1])

def count():
    for _ in range(50):
        client.incr("shared")

threads = [threading.Thread(target=count) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(client.get("shared").decode())

with client.pubsub() as channel:
    channel.subscribe("news")
    assert channel.get_message(timeout=60)["type"] == "subscribe"
    client.publish("news", "hello")
    print(channel.get_message(timeout=60)["data"].decode())
    print(channel.get_message(timeout=0.01))
try:
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    redis.Redis("cache.ntcp", 6379, socket_timeout=0.2, retry=once).blpop("nothing", 60)
except redis.TimeoutError:
    print("timed out")
client.close()
"""
)

ASYNC = (
    PAYLOAD
    + """
import asyncio, redis.asyncio

async def main():
    async with redis.asyncio.from_url("redis://cache.ntcp:6379", max_connections=50) as client:
        await client.set("payload", PAYLOAD)
        assert hashlib.sha256(await client.get("payload")).hexdigest() == DIGEST
        waiting = [asyncio.create_task(client.blpop("queue", 60)) for _ in range(20)]
        await asyncio.gather(*(client.rpush("queue", number) for number in range(20)))
        print(sorted(int(value) for _, value in await asyncio.gather(*waiting)) == list(range(20)))
        async with client.pubsub() as channel:
            await channel.subscribe("news")
            async for message in channel.listen():
                if message["type"] == "subscribe":
                    # Not before: another connection's word may overtake ours.
                    await client.publish("news", "hello")
                else:
                    print(message["data"].decode())
                    break

asyncio.run(main())
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """The port of a redis-server that is ready."""
    port = free_port()
    argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert any("eady to accept connections" in line for line in server.stdout)
        yield port
    finally:
        stop(server)
        server.stdout.close()


@pytest.fixture(scope="module")
def exposed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        with Command(stage, "cache", "expose", "cache:6379", "--to", str(port)) as command:
            yield command


def test_blocking(stage: Stage, exposed: Command, tmp_path: Path) -> None:
    assert run(stage, tmp_path, "bob", BLOCKING) == ["1000", "1000", "hello", "None", "timed out"]


def test_asyncio(stage: Stage, exposed: Command, tmp_path: Path) -> None:
    assert run(stage, tmp_path, "carol", ASYNC) == ["True", "hello"]
