"""Both ends of the transfers of `benchmarks.quic`: each receives for a number of seconds and says how much.

A receiver listens; a sender connects and sends until the receiver has had enough. Functions with plain arguments,
so that hosts of the lab can run them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import trio

from ntcpsock._address import Endpoint
from ntcpsock._session.binding import receive_bind, send_bind
from ntcpsock._session.quic.carrier import QuicCarrier, quic_client_handshake, quic_server_handshake
from ntcpsock._session.socket_path import SocketPath
from ntcpsock._session.tls import make_certificate

CHUNK = 256 * 1024
PATIENCE = 30.0  # seconds for a connection to come up


# -- TCP of the kernel's


def tcp_receive(port: int, seconds: float) -> float:
    """MB/s of one connection to `port`, over `seconds` from its first byte on."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        listener.settimeout(PATIENCE)
        connection, _ = listener.accept()
        with connection:
            buffer = bytearray(CHUNK)
            got = connection.recv_into(buffer)
            started = time.perf_counter()
            while (elapsed := time.perf_counter() - started) < seconds:
                got += connection.recv_into(buffer)
            return got / elapsed / 1e6


def tcp_send(host: str, port: int, congestion: str) -> None:
    """Send until the other end has had enough. congestion: the kernel's name of an algorithm."""
    with _until_up(lambda: socket.create_connection((host, port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(bytes(CHUNK))


def _until_up(connect: Callable[[], socket.socket]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return connect()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# -- QUIC of ours. What a card would tell goes over a TCP connection beside it.


def quic_receive(port: int, seconds: float, size: int) -> float:
    """As `tcp_receive`. size: bytes of UDP payload in a datagram."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        listener.settimeout(PATIENCE)
        connection, _ = listener.accept()
        with connection:
            return trio.run(_quic_receive, connection, seconds, size)


async def _quic_receive(word: socket.socket, seconds: float, size: int) -> float:
    certificate = make_certificate()
    path = _path(word, size)
    word.sendall(json.dumps([path.local.port, certificate.fingerprint.hex()]).encode() + b"\n")
    path.retarget(Endpoint(path.remote.host, json.loads(_line(word))[0]))
    async with trio.open_nursery() as nursery:
        carrier = await quic_server_handshake(path, certificate, nursery=nursery)
        await receive_bind(carrier)
        view, got, started = memoryview(bytearray(CHUNK)), 0, 0.0
        while not started or trio.current_time() - started < seconds:
            count = carrier.try_receive_into(view)
            if count is None:
                await carrier.wait_readable()
                continue
            got += count
            started = started or trio.current_time()
        speed = got / (trio.current_time() - started) / 1e6
        carrier.close(abort=True)
    return speed


def quic_send(host: str, port: int, size: int) -> dict[str, Any]:
    """As `tcp_send`; what QUIC's loss recovery counted."""
    with _until_up(lambda: socket.create_connection((host, port))) as word:
        return trio.run(_quic_send, word, size)


async def _quic_send(word: socket.socket, size: int) -> dict[str, Any]:
    path = _path(word, size)
    port, fingerprint = json.loads(_line(word))
    path.retarget(Endpoint(path.remote.host, port))
    word.sendall(json.dumps([path.local.port]).encode() + b"\n")
    async with trio.open_nursery() as nursery:
        carrier = await quic_client_handshake(path, bytes.fromhex(fingerprint), nursery=nursery)
        await send_bind(carrier, bytes(16), bytes(32))
        with contextlib.suppress(OSError):
            await quic_send_for_ever(carrier)
        carrier.close(abort=True)
    return {"round trip": carrier._machine.round_trip}


async def quic_send_for_ever(carrier: QuicCarrier) -> None:
    chunk = memoryview(bytes(CHUNK))
    while True:
        if not carrier.try_send(chunk):
            await carrier.wait_writable()


def _path(word: socket.socket, size: int) -> SocketPath:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((word.getsockname()[0], 0))
    return SocketPath(sock, Endpoint(word.getpeername()[0], 1), max_datagram_size=size)


def _line(word: socket.socket) -> bytes:
    word.settimeout(PATIENCE)
    with word.makefile("rb") as file:
        return file.readline()


# -- a data channel of aiortc


def channel_receive(port: int, seconds: float) -> float:
    """As `tcp_receive`, over a WebRTC data channel."""
    return asyncio.run(_channel_receive(port, seconds))


def channel_send(host: str, port: int) -> None:
    asyncio.run(_channel_send(host, port))


async def _channel_receive(port: int, seconds: float) -> float:
    from aiortc import RTCPeerConnection, RTCSessionDescription

    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = RTCPeerConnection()
        got, started = 0, 0.0

        def take(message: bytes) -> None:
            nonlocal got, started
            now = time.perf_counter()
            started = started or now
            got += len(message)
            if now - started >= seconds and not done.done():
                done.set_result(got / (now - started) / 1e6)

        connection.on("datachannel", lambda channel: channel.on("message", take))
        offer = json.loads(await reader.readline())
        await connection.setRemoteDescription(RTCSessionDescription(**offer))
        await connection.setLocalDescription(await connection.createAnswer())
        writer.write(_description(connection))
        await asyncio.wait([done])
        writer.close()

    async with await asyncio.start_server(answer, "0.0.0.0", port):
        return await asyncio.wait_for(done, PATIENCE + seconds)


async def _channel_send(host: str, port: int) -> None:
    from aiortc import RTCPeerConnection, RTCSessionDescription

    reader, writer = await _open(host, port)
    connection = RTCPeerConnection()
    channel = connection.createDataChannel("bulk")
    opened = asyncio.Event()
    channel.on("open", opened.set)
    await connection.setLocalDescription(await connection.createOffer())
    writer.write(_description(connection))
    await connection.setRemoteDescription(RTCSessionDescription(**json.loads(await reader.readline())))
    await opened.wait()
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        while channel.bufferedAmount < 4 * CHUNK:
            channel.send(bytes(16384))
        await asyncio.sleep(0.001)
    writer.close()
    await connection.close()


async def _open(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


def _description(connection: Any) -> bytes:
    local = connection.localDescription
    return json.dumps({"sdp": local.sdp, "type": local.type}).encode() + b"\n"
