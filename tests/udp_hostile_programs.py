"""What the lab tests of hostile UDP run inside hosts: a listener that counts, who talks to it, and an attacker."""

from __future__ import annotations

import json
import secrets
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import peer_programs as programs
import trio
from udp_programs import wait_for

from ntcpsock._config import Config
from ntcpsock._node import Node
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock.trio import open_node

_ETH_P_ALL = 3
_OUTGOING = 4  # linux/if_packet.h
_IP_HEADER = struct.Struct("!BBHHHBBH4s4s")
_UDP_HEADER = struct.Struct("!HHHH")


@dataclass(frozen=True)
class Seen:
    """One UDP datagram at a host."""

    source: str
    source_port: int
    target: str
    port: int
    payload: bytes

    @property
    def is_check(self) -> bool:
        return self.payload[:2] == b"\0\1" and self.payload[4:8] == b"\x21\x12\xa4\x42"


def sniff(ready: str, stop: str) -> list[Seen]:
    """The datagrams that a host sends and receives until the file `stop` exists; makes the file `ready` first."""
    seen = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        Path(ready).touch()
        while not Path(stop).exists():
            select.select([sock], [], [], 0.05)
            while True:
                try:
                    data, address = sock.recvfrom(65536)
                except BlockingIOError:
                    break
                if address[1] == 0x0800 and data[9] == socket.IPPROTO_UDP:
                    seen.append(_parse(data))
    return seen


def _parse(data: bytes) -> Seen:
    head = (data[0] & 15) * 4
    source_port, port, length, _ = _UDP_HEADER.unpack_from(data, head)
    payload = data[head + 8 : head + length]
    return Seen(socket.inet_ntoa(data[12:16]), source_port, socket.inet_ntoa(data[16:20]), port, payload)


# --- the attacker ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Throw:
    """One datagram; the source may be anybody's."""

    source: tuple[str, int]
    target: tuple[str, int]
    payload: bytes = field(repr=False)


def throw(throws: list[Throw], per_second: float) -> int:
    """Send them from raw sockets, at most so many a second. The bytes of all payloads."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        begin = time.monotonic()
        for number, one in enumerate(throws):
            while time.monotonic() < begin + number / per_second:
                time.sleep(0.001)
            sock.sendto(_packet(one), (one.target[0], 0))
    return sum(len(one.payload) for one in throws)


def _packet(one: Throw) -> bytes:
    source, target = socket.inet_aton(one.source[0]), socket.inet_aton(one.target[0])
    length = _UDP_HEADER.size + len(one.payload)
    head = _UDP_HEADER.pack(one.source[1], one.target[1], length, 0)
    pseudo = source + target + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    checksum = _checksum(pseudo + head + one.payload) or 0xFFFF
    head = _UDP_HEADER.pack(one.source[1], one.target[1], length, checksum)
    # The kernel fills in length, identification and checksum of the IP header.
    return _IP_HEADER.pack(0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, source, target) + head + one.payload


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def rubbish(number: int) -> bytes:
    """What a flood consists of: random octets, what begins as QUIC does, and what looks like a check of nobody's."""
    if number % 3 == 0:
        return secrets.token_bytes(1 + number % 1200)
    if number % 3 == 1:
        return b"\xc3\0\0\0\1\x08" + secrets.token_bytes(1194)
    return fake_check(secrets.token_hex(8) + ":" + secrets.token_hex(8))


def fake_check(username: str) -> bytes:
    """A Binding request whose MESSAGE-INTEGRITY is random: who sends it knows no password."""
    name = username.encode()
    attributes = struct.pack("!HH", 0x0006, len(name)) + name + bytes(-len(name) % 4)
    attributes += struct.pack("!HHI", 0x0024, 4, 0x6E0001FF)  # PRIORITY
    attributes += struct.pack("!HH", 0x802A, 8) + secrets.token_bytes(8)  # ICE-CONTROLLING
    attributes += struct.pack("!HH", 0x0025, 0)  # USE-CANDIDATE
    attributes += struct.pack("!HH", 0x0008, 20) + secrets.token_bytes(20)  # MESSAGE-INTEGRITY
    return struct.pack("!HHI", 0x0001, len(attributes), 0x2112A442) + secrets.token_bytes(12) + attributes


def username_of(check: bytes) -> str:
    """What a genuine check says, for one that is to look like it."""
    at = 20
    while at < len(check):
        kind, length = struct.unpack_from("!HH", check, at)
        if kind == 0x0006:
            return check[at + 4 : at + 4 + length].decode()
        at += 4 + length + -length % 4
    raise ValueError("no USERNAME")


# --- the listener ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """dropped: at the listening ports, by reason; refused: by the checks of all paths; remotes: where the streams'
    peers are, in the end; ways: candidate ways that the checks of one path hold at most; kept: datagrams that wait at
    the port for a dial; grown: bytes of memory at most, since the file `before`."""

    dropped: dict[str, int]
    refused: dict[str, int]
    remotes: tuple[tuple[str, int], ...]
    ways: int
    kept: int
    grown: int


def listen_and_count(config: Config, before: str, stop: str) -> Counted:
    """As `peer_programs.run_listener`, until the file `stop` exists. From the file `before` on the number of its UDP
    port is in the file `before`.port: it may have another than at its begin."""
    return trio.run(_listen_and_count, config, Path(before), Path(stop))


async def _listen_and_count(config: Config, before: Path, stop: Path) -> Counted:
    streams: list[NTCPStream] = []

    async def answer(stream: NTCPStream) -> None:
        streams.append(stream)
        await programs.answer(stream)

    async with open_node(config) as node, await node.open_listener(programs.PORT) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [listener])
            await _until(before)
            _tell(before.with_suffix(".port"), _port(node).number)
            memory = programs._peak_memory()
            await _until(stop)
            counted = _count(node, streams, programs._peak_memory() - memory)
            nursery.cancel_scope.cancel()
    return counted


def _count(node: Node, streams: list[NTCPStream], grown: int) -> Counted:
    port, dropped, refused = _port(node), Counter[str](), Counter[str]()
    dropped.update(port.dropped)
    remotes, ways = [], 0
    for stream in streams:
        path = stream.carrier._driver.path  # type: ignore[attr-defined]
        assert isinstance(path, PunchedPath)
        refused.update(path.machine.refused)
        remotes.append((path.remote.host, path.remote.port))
        ways = max(ways, len(path.machine._pairs))
    return Counted(dict(dropped), dict(refused), tuple(remotes), ways, len(port._early), grown)


def _port(node: Node) -> UdpPort:
    warm = node.listening_port
    assert warm is not None
    assert warm.datagram is not None
    return warm.datagram.port


async def _until(path: Path) -> None:
    with trio.fail_after(4 * programs.PATIENCE):
        while not await trio.Path(path).exists():
            await trio.sleep(0.02)


def hold(config: Config, name: str, flag: Path, turns: int) -> list[str]:
    """Open a stream and echo a byte; then once more for each file `flag`.N. After each the file `flag`.N.done says
    where the two ends are. The techniques of all streams."""
    return trio.run(_hold, config, name, flag, turns)


async def _hold(config: Config, name: str, flag: Path, turns: int) -> list[str]:
    async with open_node(config) as node:
        await programs.wait_registered(node, name)
        await node.wait_warm()
        async with await node.open_stream(name, programs.PORT) as stream:
            await stream.send_all(b"e")
            for number in range(turns + 1):
                if number:
                    await _until(flag.with_suffix(f".{number}"))
                message = secrets.token_bytes(20_000)
                received = b""
                with trio.fail_after(programs.PATIENCE):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(stream.send_all, message)
                        while len(received) < len(message):
                            received += await stream.receive_some()
                assert received == message
                path = stream.path
                ends = {"local": path.local, "remote": path.remote, "seen": stream.carrier.remote}
                done = flag.with_suffix(f".{number}.done")
                _tell(done, {key: tuple(value) for key, value in ends.items()})
            return [stream.path.technique]


def _tell(path: Path, what: object) -> None:
    """Whoever finds the file finds it whole."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(what))
    fresh.rename(path)


def ends_of(flag: Path, number: int) -> dict[str, list[object]]:
    """What `hold` says of its turn."""
    done = flag.with_suffix(f".{number}.done")
    wait_for(done)
    ends: dict[str, list[object]] = json.loads(done.read_text())
    return ends
