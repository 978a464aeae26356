"""A stranger who tries to move somebody's stream, 10,000 times a second: at a listener's TCP port, its UDP port, and in
offers that reach it through the broker. Beside it a good client, over a stream that it has and with new connects.

    python -m benchmarks.resumes [--rate 10000] [--seconds 10]

Over TCP the words are RESUME frames in clear and the first flights of TLS clients; over UDP RESUME frames, checks and
QUIC's first packets without the dial's secrets. Ends with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from benchmarks.harness import Series, save, show
from benchmarks.hostile_senders import flood_datagrams
from ntcpsock._address import Endpoint, parse_node_address
from ntcpsock._config import Config
from ntcpsock._identity import Identity
from ntcpsock._session.frames import Resume, encode_frame
from ntcpsock._traversal.broker.driver import Delivery
from ntcpsock._traversal.punch.message import Offer
from ntcpsock._traversal.stun.message import binding_request, encode_message
from ntcpsock.cli.stage import READY_DEADLINE, Events, Stage, ThisMachine, open_loopback_stage
from ntcpsock.trio import NTCPStream, open_node

TARGET = "target:7000"
RATE = 10_000
SECONDS = 10.0
ASKING = 100.0  # a second, over the stream there is
#: What must hold: the listener's memory in bytes, and the good client's share of connects.
MOST_GROWTH = 20_000_000
LEAST_CONNECTS = 0.9
#: In one run of `offers`, at once.
OFFERS = 20_000

_FORK = multiprocessing.get_context("fork")
_STRANGER = Identity.generate()
_LINGER_NOT = struct.pack("ii", 1, 0)


def words() -> list[bytes]:
    """What a stranger can say of a stream whose id it has."""
    session_id = secrets.token_bytes(16)
    return [encode_frame(Resume(n, session_id, n, secrets.token_bytes(32))) for n in range(64)]


def first_flight() -> bytes:
    """Of a TLS client."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("it needs an answer")


# -- strangers


def over_tcp(address: Endpoint, rate: float, seconds: float) -> int:
    """Connections that say their word and are reset; how many. Those for which the listener's queue has no room say
    nothing: nobody waits."""
    texts = [*words(), *[first_flight()] * 16]
    made, start = 0, time.monotonic()
    while (now := time.monotonic()) < start + seconds:
        if made >= rate * (now - start):
            time.sleep(0.0005)
            continue
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            sock.bind((f"127.5.{made % 200}.{made // 200 % 200 + 1}", 0))
            sock.connect_ex(address)  # over loopback it is done at once, or not at all
            sock.send(texts[made % len(texts)])
        except OSError:
            pass
        finally:
            sock.close()
            made += 1
    return made


def over_udp(address: Endpoint, rate: float, seconds: float) -> int:
    kinds = [*words(), *[b"\xc3\0\0\0\1" + secrets.token_bytes(1195)] * 16]
    kinds += [encode_message(binding_request(secrets.token_bytes(12))) for _ in range(16)]
    return flood_datagrams(address, kinds, int(rate * seconds), rate)


@contextmanager
def attacking(
    attack: Callable[[Endpoint, float, float], int], address: Endpoint, rate: float, seconds: float
) -> Iterator[list[int]]:
    """Two processes that share the rate; in the end the list has what they did."""
    counts: list[int] = []
    queue = _FORK.SimpleQueue()

    def run() -> None:
        queue.put(attack(address, rate / 2, seconds))

    processes = [_FORK.Process(target=run) for _ in range(2)]
    for process in processes:
        process.start()
    try:
        yield counts
    finally:
        counts += [queue.get() for _ in processes]
        for process in processes:
            process.join()


# -- the listener and the good client, as processes


def _say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def listen(name: str, port: int) -> None:
    """Echo; and answer for what was refused, and for offers of a stranger, when standard input asks."""

    async def echo(stream: NTCPStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                async for data in stream:
                    await stream.send_all(data)

    async with open_node(Config.load(name=name)) as node, trio.open_nursery() as nursery:
        listener = await node.open_listener(port, name=name)
        await node.wait_warm()
        warm = node.listening_port
        assert warm is not None
        assert warm.datagram is not None
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        _say("listening", tcp=warm.port, udp=warm.datagram.port.number)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            if line.strip() == "offers":
                before = sum(node._acceptor.refused.values())
                began = time.perf_counter()
                for _ in range(OFFERS):
                    await node._acceptor.offered(*offer_of_a_stranger(port))
                seconds = time.perf_counter() - began
                _say(
                    "offers",
                    rate=OFFERS / seconds,
                    refused=sum(node._acceptor.refused.values()) - before,
                    under_way=sum(
                        pending.delivery.sender == _STRANGER.public_key
                        for pending in node._acceptor.dials.under_way.values()
                    ),
                )
            _say(
                "counted", refused=node._acceptor.refused, strangers=len(node._acceptor.doorkeeper.strangers)
            )


def offer_of_a_stranger(port: int) -> tuple[Delivery, Offer]:
    """A stranger's, opened, for a stream that it says is its own."""
    offer = Offer(
        secrets.token_bytes(16), secrets.token_bytes(32), port, 1, (), resume=secrets.token_bytes(16)
    )
    delivery = Delivery(_STRANGER.public_key, b"", None, b"", "192.0.2.7", (), lambda _: True)
    return delivery, offer


async def be_good(name: str, port: int) -> None:
    """Ask over one stream, and connect anew ten times a second; tell how it went at each line of standard input."""
    async with open_node(Config.load()) as node, trio.open_nursery() as nursery:
        await node.wait_warm()
        stream = await node.open_stream(name, port)
        delays: list[float] = []
        connects: list[float] = []
        failures = 0

        async def ask() -> None:
            while True:
                began = trio.current_time()
                await stream.send_all(b"x")
                await stream.receive_some()
                delays.append(trio.current_time() - began)
                await trio.sleep(1 / ASKING)

        async def connect() -> None:
            nonlocal failures
            while True:
                await node.wait_warm()
                began = trio.current_time()
                try:
                    with trio.fail_after(5):
                        (await node.open_stream(name, port)).reset()
                except (OSError, trio.TooSlowError):
                    failures += 1
                else:
                    connects.append(trio.current_time() - began)
                await trio.sleep(0.1)

        nursery.start_soon(ask)
        nursery.start_soon(connect)
        _say("ready")
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            moves = [move.reason for move in stream.report.moves]
            _say("went", delays=delays[:], connects=connects[:], failures=failures, moves=moves)
            delays.clear()
            connects.clear()
            failures = 0


# -- together


@dataclass(frozen=True)
class Outcome:
    """Of one kind. sent: words a second that were said; good: what the good client tells; growth: bytes."""

    name: str
    sent: float
    good: dict[str, Any]
    growth: int
    refused: dict[str, int]
    strangers: int

    @property
    def share(self) -> float:
        connects, failures = len(self.good["connects"]), int(self.good["failures"])
        return connects / max(1, connects + failures)

    @property
    def holds(self) -> bool:
        return self.growth < MOST_GROWTH and self.share >= LEAST_CONNECTS and not self.good["moves"]

    def __str__(self) -> str:
        delays, connects = sorted(self.good["delays"]), self.good["connects"] or [float("inf")]
        p99 = delays[int(0.99 * (len(delays) - 1))] if delays else float("inf")
        return (
            f"{self.name}: {self.sent:.0f} a second; an answer over the stream takes "
            f"{1e3 * statistics.median(delays or [float('inf')]):.2f} ms (median), {1e3 * p99:.1f} ms (p99), of "
            f"{len(delays)}; a connect {1e3 * statistics.median(connects):.0f} ms, {self.share:.2f} of "
            f"{len(self.good['connects']) + self.good['failures']}; memory {self.growth / 1e6:+.1f} MB; "
            f"{self.strangers} strangers held; refused {self.refused}{'' if self.holds else '  <-- does not hold'}"
        )


class Ends:
    """The processes, and what they say."""

    def __init__(self, stage: Stage) -> None:
        self._listener = _start(stage, "listen")
        told = self._listener.wait_for("listening", READY_DEADLINE)
        self.tcp, self.udp = Endpoint("127.0.0.1", told["tcp"]), Endpoint("127.0.0.1", told["udp"])
        self._good = _start(stage, "good")
        self._good.wait_for("ready", READY_DEADLINE)

    def ask(self, events: Events, word: str, line: str = "") -> dict[str, Any]:
        assert events.process.stdin is not None
        events.process.stdin.write(f"{line}\n")
        events.process.stdin.flush()
        return events.wait_for(word, 60)

    def memory(self) -> int:
        for line in Path(f"/proc/{self._listener.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError("the listener has ended")

    def measure(
        self,
        name: str,
        attack: Callable[[Endpoint, float, float], int],
        address: Endpoint,
        rate: float,
        seconds: float,
    ) -> Outcome:
        before, memory = self.ask(self._listener, "counted"), self.memory()
        self.ask(self._good, "went")
        with attacking(attack, address, rate, seconds) as counts:
            pass
        good, after = self.ask(self._good, "went"), self.ask(self._listener, "counted")
        refused = {
            reason: count - before["refused"].get(reason, 0)
            for reason, count in after["refused"].items()
            if count != before["refused"].get(reason, 0)
        }
        outcome = Outcome(
            name, sum(counts) / seconds, good, self.memory() - memory, refused, after["strangers"]
        )
        print(outcome, flush=True)
        return outcome

    def offers(self) -> dict[str, Any]:
        """As many as can be worked on in a second."""
        return self.ask(self._listener, "offers", "offers")


def _nothing(_: Endpoint, __: float, seconds: float) -> int:
    time.sleep(seconds)
    return 0


def _start(stage: Stage, role: str) -> Events:
    return stage.start(_Talking(), role, [sys.executable, "-m", "benchmarks.resumes", role])


class _Talking(ThisMachine):
    """Runs programs here, which are told things."""

    def popen(self, argv: Sequence[str], **popen_arguments: Any) -> subprocess.Popen[Any]:
        return super().popen(argv, **{**popen_arguments, "stdin": subprocess.PIPE})


def measure(rate: float, seconds: float) -> tuple[list[Outcome], dict[str, Any]]:
    with open_loopback_stage() as stage:
        ends = Ends(stage)
        outcomes = [
            ends.measure("nothing", _nothing, ends.tcp, rate, min(seconds, 4.0)),
            ends.measure("TCP", over_tcp, ends.tcp, rate, seconds),
            ends.measure("UDP", over_udp, ends.udp, rate, seconds),
        ]
        offers = ends.offers()
    print(f"offers: {offers['rate']:.0f} a second are refused, {offers['under_way']} stay under way")
    return outcomes, offers


def main() -> None:
    if sys.argv[1:2] == ["listen"]:
        trio.run(listen, *parse_node_address(TARGET))
        return
    if sys.argv[1:2] == ["good"]:
        trio.run(be_good, *parse_node_address(TARGET))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resumes", description=__doc__)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    os.environ.pop("NTCP_BROKER", None)
    outcomes, offers = measure(options.rate, options.seconds)
    answers = [Series(outcome.name, "s", tuple(outcome.good["delays"])) for outcome in outcomes]
    show("An answer over the stream", answers, relative_to="nothing")
    print(save("resumes", [*answers, Series("offers", "1/s", (offers["rate"],))]))
    refused_all = offers["refused"] == OFFERS and not offers["under_way"]
    sys.exit(0 if refused_all and all(outcome.holds for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
