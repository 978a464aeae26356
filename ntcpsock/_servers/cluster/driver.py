"""A cluster's machine on Redis, under trio: one session with the server after the other.

    join -> listen -> follow what changed -> give back what it has forgotten -> serve commands, beat once a second

Whatever goes wrong ends the session, and the next one begins as the first did: with another run of the server, with
the same one after a gap, or with a server that has lost everything, nobody has to know which it was.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from ntcpsock._address import encode_node_id
from ntcpsock._errors import BadMessage, ConfigurationError
from ntcpsock._servers.cluster import scripts
from ntcpsock._servers.cluster.calls import (
    StoreChangedError,
    claim_arguments,
    place_arguments,
    script_call,
    settle,
)
from ntcpsock._servers.cluster.commands import Claim, Command, Fetch, Forward, Send
from ntcpsock._servers.cluster.machine import ClusterMachine, State
from ntcpsock._servers.cluster.rows import (
    decode_announcement_untrusted,
    decode_change_untrusted,
    encode_row,
)
from ntcpsock._servers.sources import Datagram

if TYPE_CHECKING:
    from coredis import Redis
    from coredis.patterns.pipeline import Pipeline
    from coredis.patterns.pubsub import PubSub

_logger = logging.getLogger("ntcpsock.cluster")

#: Seconds that a broker waits for the store before it serves without.
START_PATIENCE: Final = 3.0
#: Seconds between two looks whether the store is there and the same, and for an answer of it.
BEAT_INTERVAL: Final = 1.0
ANSWER_DEADLINE: Final = 3.0
# Seconds until the next try, doubled with each.
_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_TICK: Final = 0.25
# Where the store is some milliseconds away, one batch at a time would not be enough.
_WORKERS: Final = 4
_BATCH: Final = 100
_PAGE: Final = 500
_SCRIPTS: Final = {
    name: getattr(scripts, name.upper())
    for name in ("join", "beat", "claim", "decree", "restore", "changes", "place", "forward")
}


class ClusterDriver:
    """url: redis:// or rediss://. secret: what the cluster's relays check tickets with. keys: of the nodes here; send:
    puts datagrams on their way."""

    def __init__(
        self,
        url: str,
        machine: ClusterMachine,
        *,
        key: bytes,
        secret: bytes,
        keys: Callable[[], Sequence[bytes]],
        send: Callable[[Iterable[Datagram]], None],
    ) -> None:
        """Raises ConfigurationError where coredis is missing, or the URL is none."""
        self._make_client = _client_maker(url)
        self._machine = machine
        self._key = key
        # The secret itself is nothing for a store to know.
        self._relay = hashlib.blake2b(secret, digest_size=16, person=b"ntcp cluster").hexdigest().encode()
        self._keys = keys
        self._send = send
        self._broker = machine.broker.hex().encode()
        self._names = machine.names
        self._wake = trio.Event()
        self._pull = trio.Event()
        self._shas: dict[str, str] = {}
        # Of the server, and the latest change that we have of it.
        self._run = b""
        self._latest = 0
        self._heard = 0.0
        self._told = 0.0
        self._has_told = False
        self._pause = _SHORTEST_PAUSE
        self._failing = False
        machine.notify = self._notify

    def _notify(self) -> None:
        self._wake.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when the store is known, or does not answer for a while. Raises
        ConfigurationError, before it is started, where the store belongs to other brokers."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            ready, started = trio.Event(), trio.Event()
            refusals: list[ConfigurationError] = []
            nursery.start_soon(self._sessions, ready, started, refusals)
            with trio.move_on_after(START_PATIENCE):
                await ready.wait()
            if refusals:
                nursery.cancel_scope.cancel()
            else:
                started.set()
                task_status.started()
        if refusals:
            raise refusals[0]

    async def _tick(self) -> None:
        unwritten = 0
        while True:
            await trio.sleep(_TICK)
            self._send(self._machine.expire(trio.current_time()))
            self._names.flush()
            if self._names.unwritten > 0 and unwritten == 0:
                _logger.error("the disk takes no names any more; the store has them, and is asked for them")
            unwritten = self._names.unwritten

    async def _sessions(
        self, ready: trio.Event, started: trio.Event, refusals: list[ConfigurationError]
    ) -> None:
        while True:
            try:
                await self._session(ready)
            except* ConfigurationError as errors:
                refusal = next(_leaves(errors))
                assert isinstance(refusal, ConfigurationError)
                self._pause = _LONGEST_PAUSE
                if started.is_set():
                    self._say_away(str(refusal))
                else:
                    refusals.append(refusal)
                    ready.set()
            except* Exception as errors:
                # Whatever the client library raises: the broker goes on with what it has.
                await trio.lowlevel.checkpoint_if_cancelled()
                error = next(_leaves(errors))
                self._say_away(f"{type(error).__name__}: {error}".strip().removesuffix(":"))
                _logger.debug("the session with the store ended", exc_info=errors)
            self._send(self._machine.away(trio.current_time()))
            await trio.sleep(self._pause * random.uniform(0.5, 1.5))
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _say_away(self, why: str) -> None:
        if not self._failing:
            _logger.error("the store is away, this broker goes on alone: %s", why)
        self._failing = True

    async def _session(self, ready: trio.Event) -> None:
        client = self._make_client()
        async with client:
            with trio.fail_after(ANSWER_DEADLINE):
                for name, text in _SCRIPTS.items():
                    self._shas[name] = _text(await client.script_load(text))
                run = await self._join(client)
            channels = [scripts.broker_channel(self._machine.broker), scripts.CHANGES_CHANNEL]
            self._pull = trio.Event()
            async with client.pubsub(channels=channels, ignore_subscribe_messages=True) as subscription:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, subscription)
                    await self._sync(client, run)
                    self._machine.state = State.READY
                    self._pause = _SHORTEST_PAUSE
                    ready.set()
                    _logger.info(
                        "the store is %s: %d names", "back" if self._failing else "there", self._names.count
                    )
                    self._failing = False
                    nursery.start_soon(self._beat, client)
                    nursery.start_soon(self._follow, client)
                    nursery.start_soon(self._retell)
                    nursery.start_soon(self._place, client)
                    for _ in range(_WORKERS):
                        nursery.start_soon(self._work, client)

    async def _call(self, client: Redis[bytes], name: str, *arguments: Any) -> Any:
        with trio.fail_after(ANSWER_DEADLINE):
            return await client.evalsha(self._shas[name], [], list(arguments))

    # The beginning of a session.

    async def _join(self, client: Redis[bytes]) -> bytes:
        key, relay, run = await self._call(client, "join", self._key, self._relay)
        if key != self._key:
            raise ConfigurationError(
                f"the store belongs to brokers with the key {encode_node_id(key)}, ours is another one: all brokers of "
                "a cluster share broker.key and relay.key"
            )
        if relay != self._relay:
            raise ConfigurationError("relay.key is not that of the other brokers of this store: copy it too")
        return bytes(run)

    async def _sync(self, client: Redis[bytes], run: bytes) -> None:
        self._machine.state = State.SYNCING
        await self._expect_beat(client)
        is_new = run != self._run
        if is_new:
            self._latest = 0
        await self._catch_up(client)
        if is_new:
            await self._restore(client, run)
        self._run = run
        for name, key, allow in self._machine.untold():
            outcome = await self._call(
                client, "claim", *claim_arguments(self._machine, run, (name,), key, allow)
            )
            if outcome[0] == b"stale":
                raise StoreChangedError("restarted")
            self._machine.told(name)

    async def _expect_beat(self, client: Redis[bytes]) -> None:
        """What is said on our channel arrives: nothing that is said from now on is missed."""
        begin = trio.current_time()
        self._heard = -1.0
        with trio.fail_after(ANSWER_DEADLINE):
            while self._heard < begin:
                await self._call(client, "beat", self._broker, b"beat")
                await trio.sleep(0.01)

    async def _catch_up(self, client: Redis[bytes]) -> None:
        """All changes since the latest that we know."""
        while True:
            found = await self._call(client, "changes", self._latest, _PAGE)
            changes = []
            for at in range(0, len(found), 3):
                number, name, row = found[at : at + 3]
                self._latest = max(self._latest, int(number))
                try:
                    changes.append(decode_change_untrusted(int(number), name, row or None))
                except BadMessage as error:
                    self._machine.counters[f"dropped: {error.args[0]}"] += 1
            self._names.apply(changes)
            if len(found) < 3 * _PAGE:
                return

    async def _restore(self, client: Redis[bytes], run: bytes) -> None:
        """Names that we have and the store has not: it was emptied, or has lost its latest."""
        after, count = "", 0
        while page := self._names.page(after, _PAGE):
            rows = [part for row in page for part in (row.name, encode_row(row.key, row.allow))]
            restored = int(await self._call(client, "restore", run, *rows))
            if restored < 0:
                raise StoreChangedError("restarted")
            count += restored
            after = page[-1].name
        if count:
            _logger.warning(
                "the store had not %d of our %d names, and has them now", count, self._names.count
            )

    # The rest of it.

    async def _listen(self, subscription: PubSub[bytes]) -> None:
        async for message in subscription:
            channel, data = message["channel"], message["data"]
            if not isinstance(data, bytes):
                continue
            if channel == scripts.CHANGES_CHANNEL:
                self._changed(data)
            elif data == b"beat":
                self._heard = trio.current_time()
            else:
                self._send(self._machine.receive(data, trio.current_time()))
        raise StoreChangedError("the subscription ended")

    def _changed(self, data: bytes) -> None:
        try:
            change = decode_announcement_untrusted(data)
        except BadMessage as error:
            self._machine.counters[f"dropped: {error.args[0]}"] += 1
            return
        if change.number == self._latest + 1:
            self._names.apply([change])
            self._latest = change.number
        elif change.number > self._latest:
            self._pull.set()

    async def _follow(self, client: Redis[bytes]) -> None:
        while True:
            await self._pull.wait()
            self._pull = trio.Event()
            await self._catch_up(client)

    async def _beat(self, client: Redis[bytes]) -> None:
        while True:
            await trio.sleep(BEAT_INTERVAL)
            run, latest, listeners, told = await self._call(client, "beat", self._broker, b"beat")
            now = trio.current_time()
            if run != self._run:
                raise StoreChangedError("restarted")
            if not listeners or now - self._heard > ANSWER_DEADLINE:
                raise StoreChangedError("our channel is not served")
            if latest > self._latest:
                self._pull.set()
            if self._has_told and not told:
                _logger.warning("what was said of places has expired early: the store's clock has jumped")
                self._told = -scripts.PLACE_TTL

    async def _retell(self) -> None:
        """Say where our nodes are: at the beginning, and before it expires."""
        self._told = -scripts.PLACE_TTL
        while True:
            if trio.current_time() - self._told > scripts.PLACE_TTL / 3:
                self._told, self._has_told = trio.current_time(), False
                keys = self._keys()
                for at in range(0, len(keys), _PAGE):
                    self._machine.retell(keys[at : at + _PAGE], trio.current_time())
                    await trio.lowlevel.checkpoint()
            await trio.sleep(BEAT_INTERVAL)

    async def _place(self, client: Redis[bytes]) -> None:
        """Places in the order in which they were told, so in one task."""
        while True:
            places = self._machine.take_places(_PAGE)
            if not places:
                await self._woken(lambda: self._machine.has_places)
                continue
            arguments = [part for place in places for part in place_arguments(place)]
            await self._call(client, "place", self._broker, scripts.PLACE_TTL, *arguments)
            self._has_told = True
            self._send(self._machine.placed(places, trio.current_time()))

    async def _work(self, client: Redis[bytes]) -> None:
        while True:
            commands = self._machine.take(_BATCH)
            if not commands:
                await self._woken(lambda: self._machine.has_commands)
                continue
            await self._execute(client, commands)

    async def _woken(self, has_work: Callable[[], bool]) -> None:
        if self._wake.is_set():
            self._wake = trio.Event()
        if not has_work():
            await self._wake.wait()

    async def _execute(self, client: Redis[bytes], commands: Sequence[Command]) -> None:
        with trio.fail_after(ANSWER_DEADLINE):
            async with client.pipeline(transaction=False, raise_on_error=False) as pipe:
                answers = [self._queue(pipe, command) for command in commands]
            for command, answer in zip(commands, answers, strict=True):
                await self._settle(command, answer)

    def _queue(self, pipe: Pipeline[bytes], command: Command) -> Any:
        call = script_call(command, self._machine, self._run)
        if call is not None:
            return pipe.evalsha(self._shas[call[0]], [], call[1])
        if isinstance(command, Fetch):
            return pipe.hget("ntcp:names", command.name)
        assert isinstance(command, Send)
        return pipe.publish(scripts.broker_channel(command.broker), command.frame)

    async def _settle(self, command: Command, answer: Any) -> None:
        from coredis.exceptions import ConnectionError as ConnectionFailure
        from coredis.exceptions import RedisError

        try:
            result = await answer
        except ConnectionFailure:
            raise
        except RedisError as error:
            _logger.error("the store refuses: %s", error)
            if isinstance(command, Claim | Fetch | Forward):
                self._send(self._machine.failed(command.number, trio.current_time()))
            return
        self._send(settle(self._machine, command, result, trio.current_time()))


def _client_maker(url: str) -> Callable[[], Redis[bytes]]:
    if not url.startswith(("redis://", "rediss://")):
        raise ConfigurationError("--store: expected redis://HOST:PORT, or rediss://HOST:PORT in TLS")
    try:
        from coredis import Redis
        from coredis.retry import NoRetryPolicy
    except ImportError as error:
        raise ConfigurationError("--store needs coredis: pip install 'ntcpsock[redis]'") from error
    make = partial(
        Redis.from_url,
        url,
        decode_responses=False,
        retry_policy=NoRetryPolicy(),
        connect_timeout=ANSWER_DEADLINE,
        stream_timeout=ANSWER_DEADLINE,
    )
    try:
        make()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"--store: {error}") from error
    return make


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _leaves(group: BaseException) -> Iterator[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        for error in group.exceptions:
            yield from _leaves(error)
    else:
        yield group
