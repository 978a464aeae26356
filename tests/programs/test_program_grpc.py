"""gRPC, whose core resolves, connects and listens in C: clients get a number that answers, servers are exposed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from program_support import DEADLINE, PAYLOAD, environment, run
from service_support import Command

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

pytest.importorskip("grpc", reason="grpcio is not installed")

# Of bytes, without generated code: each method is registered by its name.
SERVER = (
    PAYLOAD
    + """
import grpc
from concurrent import futures

def digest(chunks, context):
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest().encode()

def payload(request, context):
    for start in range(0, len(PAYLOAD), 100_000):
        yield PAYLOAD[start : start + 100_000]

server = grpc.server(futures.ThreadPoolExecutor(30))
server.add_generic_rpc_handlers([
    grpc.method_handlers_generic_handler("Test", {
        "Upper": grpc.unary_unary_rpc_method_handler(lambda request, context: request.upper()),
        "Digest": grpc.stream_unary_rpc_method_handler(digest),
        "Payload": grpc.unary_stream_rpc_method_handler(payload),
        "Echo": grpc.stream_stream_rpc_method_handler(lambda requests, context: requests),
    })
])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""
)

# How a program gets the number: the resolver of `socket`, and a port.
BY_NUMBER = """
import socket
HOST, PORT = socket.getaddrinfo("alice.ntcp", 50051, type=socket.SOCK_STREAM)[0][4]
"""

CALLS = (
    PAYLOAD
    + """
import grpc
from concurrent import futures

chunks = [PAYLOAD[start : start + 100_000] for start in range(0, len(PAYLOAD), 100_000)]
with grpc.insecure_channel(f"{HOST}:{PORT}") as channel:
    print(channel.unary_unary("/Test/Upper")(b"hello", timeout=60).decode())
    assert channel.stream_unary("/Test/Digest")(iter(chunks), timeout=60).decode() == DIGEST
    answer = b"".join(channel.unary_stream("/Test/Payload")(b"", timeout=60))
    assert hashlib.sha256(answer).hexdigest() == DIGEST
    print(list(channel.stream_stream("/Test/Echo")(iter([b"1", b"2"]), timeout=60)))

def call(number):
    with grpc.insecure_channel(f"{HOST}:{PORT}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return channel.unary_unary("/Test/Upper")(f"n{number}".encode(), timeout=60)

with futures.ThreadPoolExecutor(10) as pool:
    print(len(set(pool.map(call, range(20)))))
"""
)

AIO = """
import asyncio, grpc

async def main():
    async with grpc.aio.insecure_channel(f"{HOST}:{PORT}") as channel:
        upper = channel.unary_unary("/Test/Upper")
        answers = await asyncio.gather(*(upper(f"a{number}".encode(), timeout=60) for number in range(50)))
        print(len(set(answers)))

asyncio.run(main())
"""

BY_NAME = """
import grpc

with grpc.insecure_channel("alice.ntcp:50051") as channel:
    try:
        channel.unary_unary("/Test/Upper")(b"hello", timeout=60)
    except grpc.RpcError as error:
        print(error.code().name)
        assert "alice.ntcp" in error.details()
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@contextmanager
def grpc_server(folder: Path) -> Iterator[int]:
    """Its port; a program that knows nothing of names."""
    argv = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline())
    finally:
        stop(server)
        server.stdout.close()


@pytest.fixture(scope="module")
def exposed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with grpc_server(tmp_path_factory.mktemp("grpc")) as port:
        with Command(stage, "alice", "expose", "alice:50051", "--to", str(port)) as command:
            yield command


def test_by_number(stage: Stage, exposed: Command, tmp_path: Path) -> None:
    assert run(stage, tmp_path, "bob", BY_NUMBER + CALLS) == ["HELLO", "[b'1', b'2']", "20"]
    assert run(stage, tmp_path, "carol", BY_NUMBER + AIO) == ["50"]


def test_through_a_forwarded_port(stage: Stage, exposed: Command, tmp_path: Path) -> None:
    with Command(stage, "dave", "forward", "0", "alice:50051") as forward:
        host, port = forward.place
        done = subprocess.run(
            [sys.executable, "-c", f"HOST, PORT = {host!r}, {port}\n{CALLS}"],
            env=environment(stage, "dave"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
    assert done.stdout.splitlines() == ["HELLO", "[b'1', b'2']", "20"]


def test_a_name_means_nothing_to_its_core(stage: Stage, exposed: Command, tmp_path: Path) -> None:
    assert run(stage, tmp_path, "erin", BY_NAME) == ["UNAVAILABLE"]
