"""All nodes of a broker come back at once: kill -9 of one of three, and how soon they are registered at the others.

    python -m benchmarks.reconnect [--nodes 100000] [--spread 0 20] [--brokers 3]

Three brokers as processes with a real redis-server, all nodes at the first one, a name each. Then it is killed, and all
nodes say hello at the others: in the same instant, and as keep-alives find out, one after the other within
`--spread` seconds. Each node is a real client on the wire, over real UDP: its own source address (127.64.0.0/10, by
IP_PKTINFO from one socket), its own key, its own retransmissions with the pauses of `_traversal.broker.greeting`.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import select
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from nacl import bindings

from ntcpsock._identity import Identity
from ntcpsock._traversal.broker.fields import NO_SESSION
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, SEALED
from ntcpsock._traversal.broker.message import (
    Challenge,
    FromNode,
    Hello,
    Refused,
    Register,
    Registered,
    Welcome,
    decode_from_broker,
    encode_from_node,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from redis_support import BrokerProcess, running_cluster, running_redis

FIRST_HOST = int.from_bytes(socket.inet_aton("127.64.0.1"), "big")
# Nodes that register at the same time while the stage is set.
WINDOW = 150
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
DEADLINE = 600.0


class Node:
    """One client: what it knows, and what it waits for."""

    __slots__ = (
        "answered",
        "broker",
        "cookie",
        "counter",
        "due",
        "host",
        "instance",
        "key",
        "name",
        "pause",
        "session",
        "shared",
    )

    def __init__(self, number: int, broker_box_key: bytes) -> None:
        identity = Identity.generate()
        self.key = identity.public_key
        self.shared = bindings.crypto_box_beforenm(broker_box_key, bytes(identity.box_key))
        self.host = socket.inet_ntoa((FIRST_HOST + number).to_bytes(4, "big"))
        self.name = f"node-{number}"
        self.instance = os.urandom(8)
        self.counter = 0
        self.start("")

    def start(self, broker: str) -> None:
        """Say hello there."""
        self.broker = broker
        self.session = NO_SESSION
        self.cookie = b""
        self.answered = 0.0
        self.pause = FIRST_PAUSE
        self.due = 0.0


class Crowd:
    """All of them, on one socket."""

    def __init__(self, nodes: list[Node], broker_key: bytes, port: int) -> None:
        self.nodes = nodes
        self.by_host = {node.host: node for node in nodes}
        self.broker_key, self.port = broker_key, port
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, 8 * 1024 * 1024)
        self.socket.bind(("0.0.0.0", 0))
        self.socket.setblocking(False)
        self.counts: Counter[str] = Counter()
        self.timers: list[tuple[float, str]] = []

    def send(self, node: Node, now: float) -> None:
        """What it has to say next."""
        body: FromNode
        if node.session == NO_SESSION:
            body = Hello(node.instance, node.cookie)
        else:
            body = Register((node.name,), (80,), 60, b"c" * 100)
        node.counter += 1
        payload = encode_from_node(node.session, node.counter, 7, body)
        nonce = bytearray(os.urandom(24))
        nonce[0] = (nonce[0] & 0xFE) | (node.key > self.broker_key)
        box = bindings.crypto_box_afternm(payload, bytes(nonce), node.shared)
        frame = b"".join((bytes((SEALED,)), node.key, nonce, box))
        source = struct.pack("=I4s4s", 0, socket.inet_aton(node.host), bytes(4))
        try:
            self.socket.sendmsg([frame], [(socket.IPPROTO_IP, 8, source)], 0, (node.broker, self.port))
        except OSError:
            self.counts["not sent"] += 1
        self.counts["sent"] += 1
        node.due = now + node.pause
        node.pause = min(2 * node.pause, LONGEST_PAUSE)
        heapq.heappush(self.timers, (node.due, node.host))

    def receive(self) -> int:
        """What has arrived; how many nodes are registered by it."""
        done = 0
        for _ in range(256):
            try:
                frame, ancillary, _, _ = self.socket.recvmsg(1500, 64)
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                continue
            now = time.monotonic()
            node = self.by_host[socket.inet_ntoa(ancillary[0][2][4:8])]
            if node.answered:
                continue
            nonce = frame[HEADER_LENGTH - 24 : HEADER_LENGTH]
            body = decode_from_broker(
                bindings.crypto_box_open_afternm(frame[HEADER_LENGTH:], nonce, node.shared)
            ).body
            if isinstance(body, Challenge) and body.cookie != node.cookie:
                # Its first, or the last one is too old, or the session: it has waited for that long.
                self.counts["challenged again"] += bool(node.cookie)
                node.session, node.cookie, node.pause = NO_SESSION, body.cookie, FIRST_PAUSE
                self.send(node, now)
            elif isinstance(body, Welcome) and node.session == NO_SESSION:
                node.session, node.pause = body.session, FIRST_PAUSE
                self.send(node, now)
            elif isinstance(body, Registered):
                node.answered = now
                done += 1
            elif isinstance(body, Refused):
                self.counts[f"refused: {body.reason.name}"] += 1
        return done

    def run(self, starts: list[tuple[float, Node]], *, window: int) -> None:
        """Until all are registered. starts: when each says hello, in seconds from now, in order."""
        begin = time.monotonic()
        waiting, done, at = 0, 0, 0
        while done < len(starts):
            now = time.monotonic()
            assert now - begin < DEADLINE, f"{done} of {len(starts)} are registered: {self.counts}"
            for _ in range(64):
                if at == len(starts) or waiting >= window or begin + starts[at][0] > now:
                    break
                self.send(starts[at][1], now)
                waiting += 1
                at += 1
            found = self.receive()
            done += found
            waiting -= found
            for _ in range(64):
                if not self.timers or self.timers[0][0] > now:
                    break
                due, host = heapq.heappop(self.timers)
                node = self.by_host[host]
                if not node.answered and node.due == due:
                    self.counts["sent again"] += 1
                    self.send(node, now)
            if not found:
                pending = at < len(starts) and waiting < window
                select.select([self.socket], [], [], 0.001 if pending else 0.01)


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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with running_redis(Path(folder) / "redis") as redis:
            with running_cluster(Path(folder), arguments.brokers, "--store", redis.url) as brokers:
                _measure(brokers, arguments.nodes, arguments.spread)


def _measure(brokers: list[BrokerProcess], count: int, spreads: list[float]) -> None:
    key = brokers[0].address.key
    assert key is not None
    box_key = bindings.crypto_sign_ed25519_pk_to_curve25519(key)
    crowd = Crowd([Node(number, box_key) for number in range(count)], key, brokers[0].port)
    begin = time.monotonic()
    for node in crowd.nodes:
        node.start(brokers[0].host)
    crowd.run([(0.0, node) for node in crowd.nodes], window=WINDOW)
    seconds = time.monotonic() - begin
    print(
        f"{count} nodes with a name each at one broker after {seconds:.1f} s ({count / seconds:.0f} a second)"
    )
    for number, spread in enumerate(spreads):
        if number:
            _gather(crowd, brokers)
        _kill_and_return(crowd, brokers, f"within {spread:g} s" if spread else "in the same instant", spread)


def _kill_and_return(crowd: Crowd, brokers: list[BrokerProcess], what: str, spread: float) -> None:
    lost = crowd.nodes[0].broker
    victim = next(broker for broker in brokers if broker.host == lost)
    others = [broker.host for broker in brokers if broker is not victim]
    before = sum(_cpu(broker) for broker in brokers if broker is not victim)
    victim.kill()
    crowd.counts.clear()
    crowd.timers.clear()
    starts = sorted((random.uniform(0.0, spread), number) for number in range(len(crowd.nodes)))
    for node in crowd.nodes:
        node.start(random.choice(others))
    begin = time.monotonic()
    crowd.run([(at, crowd.nodes[number]) for at, number in starts], window=len(starts))
    waits = sorted(crowd.nodes[number].answered - begin - at for at, number in starts)
    whole = max(node.answered for node in crowd.nodes) - begin
    cpu = sum(_cpu(broker) for broker in brokers if broker is not victim) - before
    taken = sum(count for text, count in crowd.counts.items() if text.startswith("refused"))
    print(
        f"killed; {len(starts)} nodes come to {len(others)} others {what}: all registered after {whole:.1f} s; "
        f"each waits {waits[len(waits) // 2]:.2f} s (median), {waits[int(len(waits) * 0.99)]:.2f} (99 %), "
        f"{waits[-1]:.2f} (longest); {taken} refused; {crowd.counts['sent again']} of {crowd.counts['sent']} datagrams "
        f"sent again; {cpu / len(starts) * 1e6:.0f} us of the brokers' CPU a node"
    )


def _gather(crowd: Crowd, brokers: list[BrokerProcess]) -> None:
    """All nodes at one broker again, for another round."""
    for broker in brokers:
        if not broker.is_running:
            broker.start()
    for node in crowd.nodes:
        node.start(brokers[0].host)
    crowd.timers.clear()
    crowd.run([(0.0, node) for node in crowd.nodes], window=WINDOW)


def _cpu(broker: BrokerProcess) -> float:
    """Seconds so far."""
    fields = Path(f"/proc/{broker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
