"""`prefer = "first"`: how soon it connects, and how fast the same socket is two seconds later, beside TCP's.

    python -m benchmarks.first [ROUNDS] [MBIT/S]

Two NATs, 100 ms of path round trip. In turn with each setting: connect, then send as fast as it goes; counted is what
arrives between 2 and 5 seconds after the connect.
"""

from __future__ import annotations

import json
import sys
import time

import trio

from benchmarks.harness import Series, save, show
from ntcpsock._address import parse_node_address
from ntcpsock._config import Config
from ntcpsock.cli.lab import TARGET, enter_namespaces, open_lab_stage
from ntcpsock.cli.stage import READY_DEADLINE
from ntcpsock.testing.natlab import Link
from ntcpsock.trio import NTCPStream, open_node

DELAY = 0.025
ROUNDS = 10
PREFERENCES = ("tcp", "first")
#: Seconds after the connect: from when to when is counted, and until when is sent.
WINDOW = (2.0, 5.0)
SENT_FOR = 5.5
BLOCK = bytes(256 * 1024)


def _say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def sink(name: str, port: int) -> None:
    """Take what comes; the first 32 bytes say when the dialer was connected. Until killed."""

    async def take(stream: NTCPStream) -> None:
        async with stream:
            head = b""
            while len(head) < 32:
                head += await stream.receive_some(32 - len(head))
            connected = float(head)
            count = 0
            async for data in stream:
                if WINDOW[0] <= time.monotonic() - connected <= WINDOW[1]:
                    count += len(data)
        rate = count / (WINDOW[1] - WINDOW[0]) / 1e6
        _say("received", rate=rate, moves=[move.path.technique for move in stream.report.moves])

    async with open_node(Config.load(name=name)) as node:
        listener = await node.open_listener(port, name=name)
        await node.wait_warm()
        _say("listening")
        await trio.serve_listeners(take, [listener])


async def send(name: str, port: int) -> None:
    """Connect from a warm node, and send."""
    async with open_node(Config.load()) as node:
        await node.wait_warm()
        await node.resolve(name)
        began = time.monotonic()
        stream = await node.open_stream(name, port)
        connected = time.monotonic()
        first = stream.path.technique
        async with stream:
            await stream.send_all(f"{connected:032.6f}".encode())
            while time.monotonic() < connected + SENT_FOR:
                await stream.send_all(BLOCK)
            moves = [(move.path.technique, move.at) for move in stream.report.moves]
        _say("sent", seconds=connected - began, first=first, moves=moves)


def measure(rounds: int, rate: float | None) -> list[Series]:
    link = Link(DELAY) if rate is None else Link(DELAY, rate=rate)
    seconds: dict[str, list[float]] = {prefer: [] for prefer in PREFERENCES}
    rates: dict[str, list[float]] = {prefer: [] for prefer in PREFERENCES}
    moved: list[float] = []
    with open_lab_stage("default", "default", DELAY, link_a=link, link_b=link) as (lab, stage):
        argv = [sys.executable, "-m", "benchmarks.first"]
        listener = stage.start(lab.host_b, "b", [*argv, "sink", TARGET], stage.environment("b"))
        listener.wait_for("listening", READY_DEADLINE)
        for number in range(rounds + 1):
            for prefer in PREFERENCES:
                node = f"{prefer}-{number}"
                environment = stage.environment(node, NTCP_PREFER=prefer)
                dialler = stage.start(lab.host_a, node, [*argv, "send", TARGET], environment)
                sent = dialler.wait_for("sent", READY_DEADLINE)
                received = listener.wait_for("received", READY_DEADLINE)
                dialler.stop()
                print(prefer, sent, received, flush=True)
                if number:
                    seconds[prefer].append(sent["seconds"] / lab.path_rtt)
                    rates[prefer].append(received["rate"])
                    moved += [at for _, at in sent["moves"] if prefer == "first"]
    return [
        *(Series(f"connect, {prefer}", "path RTT", tuple(found)) for prefer, found in seconds.items()),
        *(Series(f"bulk, {prefer}", "MB/s", tuple(found)) for prefer, found in rates.items()),
        Series("first, on TCP after", "s", tuple(moved), failures=rounds - len(moved)),
    ]


def main() -> None:
    if sys.argv[1:2] == ["sink"]:
        trio.run(sink, *parse_node_address(sys.argv[2]))
        return
    if sys.argv[1:2] == ["send"]:
        trio.run(send, *parse_node_address(sys.argv[2]))
        return
    enter_namespaces()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    rate = float(sys.argv[2]) * 1e6 / 8 if len(sys.argv) > 2 else None
    series = measure(rounds, rate)
    title = f"Connect and send through two NATs, {DELAY * 1000:g} ms links, {rounds} rounds"
    show(title, series[:2], relative_to="connect, tcp")
    show("MB/s from 2 to 5 s after the connect", series[2:4], relative_to="bulk, tcp")
    show("The same socket is on TCP", series[4:])
    print(save("first", series))


if __name__ == "__main__":
    main()
