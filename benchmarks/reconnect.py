"""All nodes of a broker come back at once: kill -9 of one of three, and how soon they are registered at the others.

    python -m benchmarks.reconnect [--nodes 100000] [--spread 0 20] [--brokers 3]

Three brokers as processes with a real redis-server, all nodes at the first one, a name each. Then it is killed, and all
nodes say hello at the others: in the same instant, and as keep-alives find out, one after the other within
`--spread` seconds. Each node is a real client on the wire, over real UDP: its own source address (127.64.0.0/10, by
IP_PKTINFO from one socket), its own key, its own retransmissions with the pauses of `_traversal.broker`. Its first
hello is sealed before: nodes have processors of their own.

Meanwhile a stream between two real nodes of the killed broker is in use, and one node in a thousand is a thief, who
asks for the name of another that is away. Ends with 1 where a word on the stream is missing, where a thief is not
refused, where Redis has any name with another owner than before, or where a node comes back later than `--within`.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import random
import select
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import redis
import trio
from nacl import bindings

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._identity import Identity
from ntcpsock._servers import mmsg
from ntcpsock._servers.datagrams import pack_address
from ntcpsock._traversal.broker.boxes import Boxes
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM, NO_SESSION
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, SEALED, directed_nonce
from ntcpsock._traversal.broker.greeting import MAX_PAUSE
from ntcpsock._traversal.broker.message import (
    Challenge,
    FromNode,
    Hello,
    Reason,
    Refused,
    Register,
    Registered,
    Welcome,
    decode_from_broker,
    encode_from_node,
)
from ntcpsock._traversal.broker.round_trip import INITIAL_RTO
from ntcpsock.trio import open_node

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from redis_support import BrokerProcess, RedisServer, running_cluster, running_redis

FIRST_HOST = int.from_bytes(socket.inet_aton("127.64.0.1"), "big")
# Nodes that register at the same time while the stage is set.
WINDOW = 150
#: Between two tries to register, at most; to greet it is MAX_PAUSE.
LONGEST_PAUSE = 1.0
DEADLINE = 600.0
#: Of so many nodes one more is a thief.
HONEST = 1000
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=I4s4s")
_BATCH = 64
_SIZE = MAX_DATAGRAM + 8
_BOXES = Boxes(_SIZE)


class Node:
    """One client: what it knows, and what it waits for."""

    __slots__ = (
        "answered",
        "broker",
        "control",
        "cookie",
        "counter",
        "due",
        "hello",
        "instance",
        "key",
        "name",
        "pause",
        "session",
        "shared",
        "taken",
        "tries",
    )

    def __init__(self, number: int, broker_box_key: bytes, name: str) -> None:
        identity = Identity.generate()
        self.key = identity.public_key
        self.shared = bindings.crypto_box_beforenm(broker_box_key, bytes(identity.box_key))
        self.control = mmsg.pack_control(
            [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, host_of(number), bytes(4)))]
        )
        self.name = name
        self.instance = os.urandom(8)
        self.counter = 0
        self.start(b"")

    def start(self, broker: bytes, hello: bytes = b"") -> None:
        """Say hello there. broker: a packed address; hello: the first one, sealed."""
        self.broker = broker
        self.hello = hello
        self.session = NO_SESSION
        self.cookie = b""
        self.answered = 0.0
        self.taken = False
        self.pause = INITIAL_RTO
        self.tries = 0
        self.due = 0.0

    def seal(self, broker_key: bytes) -> bytes:
        """What it has to say next."""
        body: FromNode
        if self.session == NO_SESSION:
            body = Hello(self.instance, self.cookie)
        else:
            body = Register((self.name,), (80,), 60, b"c" * 100)
        self.counter += 1
        payload = encode_from_node(self.session, self.counter, 7, body)
        nonce = directed_nonce(os.urandom(24), self.key, broker_key)
        return b"".join((bytes((SEALED,)), self.key, nonce, _BOXES.seal(payload, nonce, self.shared)))


def host_of(number: int) -> bytes:
    return (FIRST_HOST + number).to_bytes(4, "big")


class Crowd:
    """All of them, on one socket."""

    def __init__(self, nodes: list[Node], broker_key: bytes) -> None:
        self.nodes = nodes
        self.broker_key = broker_key
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        for forced, option in (
            (33, socket.SO_RCVBUF),
            (32, socket.SO_SNDBUF),
        ):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, forced, 8 * 1024 * 1024)
            except PermissionError:
                self.socket.setsockopt(socket.SOL_SOCKET, option, 8 * 1024 * 1024)
        self.socket.bind(("0.0.0.0", 0))
        self.socket.setblocking(False)
        self.batch = mmsg.Batch(_BATCH, _SIZE, ipv6=False, control=True)
        self.outbox = mmsg.Outbox(_BATCH, _SIZE, ipv6=False)
        self.counts: Counter[str] = Counter()
        self.timers: list[tuple[float, int]] = []

    def send(self, number: int, now: float) -> None:
        """What a node has to say next."""
        node = self.nodes[number]
        frame, node.hello = node.hello or node.seal(self.broker_key), b""
        refused = self.outbox.queue(self.socket.fileno(), frame, node.broker, node.control)
        self.counts["not sent"] += len(refused)
        self.counts["sent"] += 1
        # As a greeting and a request are repeated.
        node.due = now + node.pause
        if node.session != NO_SESSION:
            node.pause = min(2 * node.pause, LONGEST_PAUSE)
        else:
            if node.tries:
                node.pause = min(2 * node.pause, MAX_PAUSE)
                node.due = now + node.pause * random.uniform(0.5, 1.0)
            node.tries += 1
        heapq.heappush(self.timers, (node.due, number))

    def receive(self) -> int:
        """What has arrived; how many nodes have got what they can get by it."""
        done = 0
        count = self.batch.receive(self.socket.fileno())
        now = time.monotonic()
        for index, length in enumerate(self.batch.lengths[:count].tolist()):
            at = index * _SIZE
            frame = self.batch.octets[at : at + length]
            ((_, _, info),) = mmsg.unpack_control(self.batch.control(index))
            number = int.from_bytes(info[4:8], "big") - FIRST_HOST
            node = self.nodes[number]
            if node.answered:
                continue
            nonce = frame[HEADER_LENGTH - 24 : HEADER_LENGTH]
            body = decode_from_broker(_BOXES.open_untrusted(frame[HEADER_LENGTH:], nonce, node.shared)).body
            if isinstance(body, Challenge) and body.cookie != node.cookie:
                # Its first, or the last one is too old, or the session: it has waited for that long.
                self.counts["challenged again"] += bool(node.cookie)
                node.session, node.cookie, node.pause, node.tries = NO_SESSION, body.cookie, INITIAL_RTO, 0
                self.send(number, now)
            elif isinstance(body, Welcome) and node.session == NO_SESSION:
                node.session, node.pause = body.session, INITIAL_RTO
                self.send(number, now)
            elif isinstance(body, Registered):
                node.answered = now
                done += 1
            elif isinstance(body, Refused):
                if body.reason is Reason.NAME_TAKEN:
                    node.answered, node.taken = now, True
                    done += 1
                else:
                    self.counts["refused"] += 1
        return done

    def run(self, starts: Sequence[tuple[float, int]], *, window: int) -> None:
        """Until all are answered. starts: when each says hello, in seconds from now, in order."""
        begin = time.monotonic()
        waiting, done, at = 0, 0, 0
        while done < len(starts):
            now = time.monotonic()
            assert now - begin < DEADLINE, f"{done} of {len(starts)} are answered: {self.counts}"
            for _ in range(_BATCH):
                if at == len(starts) or waiting >= window or begin + starts[at][0] > now:
                    break
                self.send(starts[at][1], now)
                waiting += 1
                at += 1
            found = self.receive()
            done += found
            waiting -= found
            for _ in range(_BATCH):
                if not self.timers or self.timers[0][0] > now:
                    break
                due, number = heapq.heappop(self.timers)
                node = self.nodes[number]
                if not node.answered and node.due == due:
                    self.counts["sent again"] += 1
                    self.send(number, now)
            self.counts["not sent"] += len(self.outbox.flush(self.socket.fileno()))
            if not found:
                pending = at < len(starts) and waiting < window
                select.select([self.socket], [], [], 0.001 if pending else 0.01)

    def close(self) -> None:
        self.socket.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument(
        "--spread",
        type=float,
        nargs="*",
        default=[0.0, 20.0],
        help="seconds in which they come, for each round",
    )
    parser.add_argument("--within", type=float, default=DEADLINE, help="seconds in which all have to be back")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with running_redis(Path(folder) / "redis") as redis_server:
            with running_cluster(Path(folder), arguments.brokers, "--store", redis_server.url) as brokers:
                stage = Stage(Path(folder), redis_server, brokers, arguments.nodes)
                holds = [stage.round(spread) <= arguments.within for spread in arguments.spread]
                stage.crowd.close()
    sys.exit(0 if all(holds) else 1)


class Stage:
    """Redis, the brokers, and the crowd at the first of them."""

    def __init__(
        self,
        folder: Path,
        store: RedisServer,
        brokers: list[BrokerProcess],
        count: int,
        keep_alive: float = 20.0,
    ) -> None:
        """keep_alive: of the two nodes with a stream, in seconds."""
        self.folder, self.store, self.brokers, self.count = folder, store, brokers, count
        self.keep_alive = keep_alive
        key = brokers[0].address.key
        assert key is not None
        box_key = bindings.crypto_sign_ed25519_pk_to_curve25519(key)
        thieves = max(1, count // HONEST)
        nodes = [Node(number, box_key, f"node-{number}") for number in range(count)]
        nodes += [
            Node(count + number, box_key, f"node-{random.randrange(count)}") for number in range(thieves)
        ]
        self.crowd = Crowd(nodes, key)

    def round(self, spread: float) -> float:
        """Gather them at the first broker, kill it, and have them come back; how long the last one was away."""
        for broker in self.brokers:
            if not broker.is_running:
                broker.start()
        first, *others = self.brokers
        begin = time.monotonic()
        for node in self.crowd.nodes[: self.count]:
            node.start(_place(first))
        self.crowd.timers.clear()
        self.crowd.run([(0.0, number) for number in range(self.count)], window=WINDOW)
        seconds = time.monotonic() - begin
        print(
            f"{self.count} nodes with a name each at one broker after {seconds:.1f} s "
            f"({self.count / seconds:.0f} a second)",
            flush=True,
        )
        owners = self._owners()
        with _stream_in_use(self.folder, self.brokers, self.keep_alive) as words:
            longest = self._kill_and_return(first, others, spread)
        assert words, "no word came back"
        print(
            f"a stream between two nodes of the killed broker: {len(words)} words, none is missing, the longest took "
            f"{1e3 * max(words):.0f} ms; then a new one to the same name",
            flush=True,
        )
        after = self._owners()
        changed = sum(after.get(name) != owner for name, owner in owners.items())
        assert not changed, f"{changed} names have changed hands"
        print(f"{len(owners)} names in Redis, all with the owners that they had", flush=True)
        return longest

    def _kill_and_return(self, first: BrokerProcess, others: list[BrokerProcess], spread: float) -> float:
        crowd = self.crowd
        crowd.counts.clear()
        crowd.timers.clear()
        starts = sorted((random.uniform(0.0, spread), number) for number in range(len(crowd.nodes)))
        for node in crowd.nodes:
            node.start(_place(random.choice(others)))
            node.hello = node.seal(crowd.broker_key)
        before = [_cpu(broker) for broker in others]
        own = time.process_time()
        first.kill()
        begin = time.monotonic()
        crowd.run(starts, window=len(starts))
        assert all(node.taken for node in crowd.nodes[self.count :]), "a thief was not refused"
        assert not any(node.taken for node in crowd.nodes[: self.count]), "a node was refused its own name"
        waits = sorted(crowd.nodes[number].answered - begin - at for at, number in starts)
        whole = max(node.answered for node in crowd.nodes) - begin
        own = time.process_time() - own
        cpu = [_cpu(broker) - then for broker, then in zip(others, before, strict=True)]
        share = 1e6 / len(starts)
        print(
            f"killed; {self.count} nodes come to {len(others)} others "
            f"{f'within {spread:g} s' if spread else 'in the same instant'}: all registered after {whole:.1f} s; each "
            f"waits {waits[len(waits) // 2]:.2f} s (median), {waits[int(len(waits) * 0.99)]:.2f} (99 %), "
            f"{waits[-1]:.2f} (longest); {crowd.counts['refused']} refused; {crowd.counts['sent again']} of "
            f"{crowd.counts['sent']} datagrams sent again; of CPU {sum(cpu) * share:.0f} us a node at the brokers "
            f"({', '.join(f'{seconds / whole:.2f}' for seconds in cpu)} of a core), {own * share:.0f} at the "
            f"generator; {len(crowd.nodes) - self.count} thieves were refused",
            flush=True,
        )
        return whole

    def _owners(self) -> dict[bytes, bytes]:
        """Of all names, as Redis has them."""
        with redis.Redis(port=self.store.port) as client:
            found: dict[bytes, bytes] = client.hgetall("ntcp:names")
            return found


def _place(broker: BrokerProcess) -> bytes:
    return pack_address((broker.host, broker.port))


@contextmanager
def _stream_in_use(folder: Path, brokers: list[BrokerProcess], keep_alive: float) -> Iterator[list[float]]:
    """A stream between two nodes of the first broker, in a process of its own. The list has the seconds that each word
    took there and back, when the block is over."""
    words: list[float] = []
    hosts = ",".join(broker.host for broker in brokers)
    address = BrokerAddress(hosts, brokers[0].port, brokers[0].address.key)
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=_use_a_stream, args=(folder, str(address), keep_alive, there))
    process.start()
    there.close()
    here.recv()
    try:
        yield words
        here.send(None)
        words += here.recv()
    finally:
        here.close()
        process.join()


def _use_a_stream(folder: Path, broker: str, keep_alive: float, pipe: Connection) -> None:
    words: list[float] = []

    async def use() -> None:
        config = Config(broker=broker, keep_alive="fixed", keep_alive_interval=keep_alive)
        async with (
            open_node(config, name="settled", state_dir=folder / "settled") as settled,
            open_node(config, state_dir=folder / "dialer") as dialer,
            await settled.open_listener(8000) as listener,
            await dialer.open_stream("settled", 8000) as mine,
            await listener.accept() as theirs,
        ):
            pipe.send(None)
            while not pipe.poll():
                begin, word = time.monotonic(), os.urandom(16)
                await mine.send_all(word)
                await theirs.send_all(await _exactly(theirs, len(word)))
                assert await _exactly(mine, len(word)) == word
                words.append(time.monotonic() - begin)
                await trio.sleep(0.02)
            # The two nodes are back as well, within a keep-alive.
            with trio.fail_after(DEADLINE):
                while True:
                    try:
                        async with await dialer.open_stream("settled", 8000), await listener.accept():
                            break
                    except OSError:
                        await trio.sleep(0.1)

    async def _exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
        got = b""
        while len(got) < count:
            part = await stream.receive_some(count - len(got))
            assert part, "the stream has ended"
            got += part
        return got

    trio.run(use)
    pipe.send(words)


def _cpu(broker: BrokerProcess) -> float:
    """Seconds so far."""
    fields = Path(f"/proc/{broker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
