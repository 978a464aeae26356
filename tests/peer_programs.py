"""What the lab tests of connect() run inside hosts: servers, listening nodes, dialling nodes."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import trio

from ntcpsock import _errors
from ntcpsock._address import Endpoint
from ntcpsock._config import Config
from ntcpsock._node import Node
from ntcpsock._servers.broker import serve_broker
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.stun import serve_stun
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.gather_udp import gather_udp
from ntcpsock.trio import open_node

BROKER_PORT = 6060
STUN_PORT = 3478
PORT = 7000

PATIENCE = 60.0  # seconds until a wait is given up
_TIME_WAIT = "06"  # the kernel's number of that state
BLOCK = bytes(range(256)) * 256  # 64 KiB


@dataclass(frozen=True)
class Dialled:
    """One connect: its seconds, and how it went."""

    seconds: float
    kind: str
    technique: str
    tries: int
    stages: tuple[str, ...]
    #: What the listener's side calls the way.
    technique_there: str = ""
    #: The own address that the connection came to have.
    local: str = ""
    #: The technique of each attempt, and when it started, in seconds after the connect's start.
    attempts: tuple[tuple[str, float], ...] = ()


def run_servers(
    addresses: tuple[str, str],
    state: Path,
    addresses6: tuple[str, ...] = (),
    allow_spoofing: bool = False,
    tcp: bool = False,
    port: int = BROKER_PORT,
    certificate: tuple[Path, Path] | None = None,
) -> None:
    """A broker, with `tcp` a relay as well, and then STUN on two addresses, of IPv6 too where they are given. Until
    killed. certificate: of its TLS port, and the key."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            stun = [Endpoint(address, STUN_PORT) for address in addresses + addresses6]
            listen = (addresses[0], *addresses6[:1])
            await nursery.start(
                partial(
                    serve_broker,
                    listen,
                    port,
                    state_dir=state,
                    tcp=tcp,
                    stun=stun,
                    elsewhere=listen,
                    allow_spoofing=allow_spoofing,
                    certificate=CertificateFiles(*certificate) if certificate else None,
                    behind=addresses,
                )
            )
            for both in filter(None, (addresses6, addresses)):
                await nursery.start(partial(serve_stun, both[0], STUN_PORT, other_address=both[1]))

    trio.run(main)


def wait_for_servers(address: str) -> None:
    """Until `run_servers` has started its last one."""

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    stream = await trio.open_tcp_stream(address, STUN_PORT)
                except OSError:
                    await trio.sleep(0.02)
                else:
                    await stream.aclose()
                    return

    trio.run(main)


def run_listener(config: Config, proxy: tuple[str, int] | None = None) -> None:
    """A node that answers on PORT, as the first byte of each stream asks. Until killed."""
    use_proxy(proxy)

    async def main() -> None:
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            await trio.serve_listeners(answer, [listener])

    trio.run(main)


async def answer(stream: NTCPStream) -> None:
    async with stream:
        command = await stream.receive_some(1)
        if command == b"e":  # echo until the other side half-closes, then a last word
            async for data in stream:
                await stream.send_all(data)
            await stream.send_all(b"last word by " + stream.path.technique.encode())
        elif command == b"d":  # a download: its number of blocks follows, until the half-close
            number = b""
            async for data in stream:
                number += data
            for _ in range(int(number)):
                await stream.send_all(BLOCK)
            await stream.send_all(b"%d" % _peak_memory())
        elif command == b"r":  # a reset
            await stream.send_all(b"first")
            await stream.receive_some(1)
            stream.reset()


def wait_for_source_other_than(address: str, server: str) -> str:
    """The address from which the system sends to `server`, once that is not `address`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((server, 9))
            if (source := str(probe.getsockname()[0])) != address:
                return source
        time.sleep(0.05)
    raise TimeoutError(f"still {address}")


def stun_servers(config: Config) -> tuple[Endpoint, ...]:
    """What the broker tells a node of STUN servers, after each of them has answered over UDP."""

    async def main() -> tuple[Endpoint, ...]:
        async with open_node(config) as node:
            with trio.fail_after(PATIENCE):
                for server in node.stun_servers:
                    datagrams = await gather_udp([server])
                    assert datagrams.server == server
                    datagrams.close()
            return node.stun_servers

    return trio.run(main)


def use_proxy(proxy: tuple[str, int] | None) -> None:
    """Have this process's environment name an HTTP proxy."""
    if proxy is not None:
        os.environ["HTTPS_PROXY"] = f"http://{proxy[0]}:{proxy[1]}"


def dial_many(config: Config, name: str, count: int, proxy: tuple[str, int] | None = None) -> list[Dialled]:
    """Connect `count` times, warm each time, and exchange a byte over each connection."""
    use_proxy(proxy)

    async def main() -> list[Dialled]:
        async with open_node(config) as node:
            await wait_registered(node, name)
            return [await _dial_once(node, name) for _ in range(count)]

    return trio.run(main)


async def _dial_once(node: Node, name: str) -> Dialled:
    await node.wait_warm()
    started = trio.current_time()
    async with await node.open_stream(name, PORT) as stream:
        seconds = trio.current_time() - started
        await stream.send_all(b"ehello")
        await stream.send_eof()
        answer, _, technique_there = (await read_all(stream)).partition(b" by ")
        assert answer == b"hellolast word"
        report = stream.report
        tries = max(entry.tries for entry in report.attempts if entry.outcome == "ok")
        stages = tuple(stage.name for stage in report.stages)
        attempts = tuple((entry.technique, entry.started) for entry in report.attempts)
        path = stream.path
        return Dialled(
            seconds,
            path.kind,
            path.technique,
            tries,
            stages,
            technique_there.decode(),
            local=path.local[0],
            attempts=attempts,
        )


def dial_and_fail(config: Config, name: str, timeout: float | None = None, port: int = PORT) -> OSError:
    """The error of a connect that cannot succeed, or of a node that cannot start."""

    async def main() -> OSError:
        async with open_node(config) as node:
            await wait_registered(node, name)
            await node.wait_warm()
            try:
                stream = await node.open_stream(name, port, timeout=timeout)
            except OSError as error:
                return error
            stream.reset()
            raise AssertionError(f"connected by {stream.path}")

    try:
        return trio.run(main)
    except _errors.BrokerUnreachable as error:
        return error


def dial_and_fail_on_a_living_node(config: Config, name: str, peer: str) -> tuple[OSError, list[str]]:
    """As `dial_and_fail`, and what is left of connections to the address `peer` while the node lives on."""

    async def main() -> tuple[OSError, list[str]]:
        async with open_node(config) as node:
            await wait_registered(node, name)
            try:
                stream = await node.open_stream(name, PORT)
            except OSError as error:
                return error, connections_to(peer)
            stream.reset()
            raise AssertionError(f"connected by {stream.path}")

    return trio.run(main)


def connections_to(peer: str) -> list[str]:
    """The lines of /proc/net/tcp with that remote address: connections in any state but a closed one's wait."""
    wanted = struct.pack("<I", int(IPv4Address(peer))).hex().upper()
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[2].startswith(wanted) and line.split()[3] != _TIME_WAIT]


def download(config: Config, name: str, blocks: int) -> tuple[str, int, int]:
    """The sha256 of `blocks` downloaded blocks, and the peak memory of this and of the other process in bytes."""

    async def main() -> tuple[str, int, int]:
        async with open_node(config) as node:
            await wait_registered(node, name)
            async with await node.open_stream(name, PORT) as stream:
                await stream.send_all(b"d%d" % blocks)
                await stream.send_eof()
                digest, missing, rest = hashlib.sha256(), blocks * len(BLOCK), b""
                async for data in stream:
                    body = data[:missing]
                    digest.update(body)
                    missing -= len(body)
                    rest += data[len(body) :]
                assert missing == 0
                return digest.hexdigest(), _peak_memory(), int(rest)

    return trio.run(main)


def see_reset(config: Config, name: str) -> tuple[bytes, BaseException | None]:
    """What came before the listener's reset, and the cause of the error after it."""

    async def main() -> tuple[bytes, BaseException | None]:
        async with open_node(config) as node:
            await wait_registered(node, name)
            async with await node.open_stream(name, PORT) as stream:
                await stream.send_all(b"r")
                first = await stream.receive_some(100)
                await stream.send_all(b"x")
                try:
                    await stream.receive_some(100)
                except trio.BrokenResourceError as error:
                    return first, error.__cause__
                raise AssertionError("a reset arrived as something else")

    return trio.run(main)


async def wait_registered(node: Node, name: str) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            try:
                (await node.open_stream(name, PORT + 1)).reset()
            except _errors.PeerRefused:
                return  # the node is there, and answers
            except (_errors.NameNotFound, _errors.PeerOffline, _errors.BrokerUnreachable):
                await trio.sleep(0.05)


async def read_all(stream: NTCPStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


def expected_digest(blocks: int) -> str:
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(BLOCK)
    return digest.hexdigest()


def _peak_memory() -> int:
    """This process's peak in bytes. Not getrusage's: that one begins with what the parent had at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
