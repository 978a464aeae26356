"""ZeroMQ, whose core connects and listens in C: clients get a number that answers, servers are exposed."""

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

pytest.importorskip("zmq", reason="pyzmq is not installed")

SERVER = """
import hashlib, zmq

context = zmq.Context()
answers, news = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
print(answers.bind_to_random_port("tcp://127.0.0.1"), news.bind_to_random_port("tcp://127.0.0.1"), flush=True)
while True:
    *envelope, data = answers.recv_multipart()
    digest = hashlib.sha256(data).hexdigest().encode()
    answers.send_multipart([*envelope, digest])
    news.send_multipart([b"digest", digest])
"""

# How a program gets the numbers: the resolver of `socket`, and a port.
BY_NUMBER = """
import socket

def place(port):
    return "tcp://%s:%s" % socket.getaddrinfo("alice.ntcp", port, type=socket.SOCK_STREAM)[0][4]

ANSWERS, NEWS = place(5555), place(5556)
"""

CLIENT = (
    PAYLOAD
    + """
import zmq, zmq.asyncio, asyncio, threading

context = zmq.Context()
with context.socket(zmq.REQ) as ask, context.socket(zmq.SUB) as news:
    news.connect(NEWS)
    news.subscribe(b"digest")
    ask.connect(ANSWERS)
    ask.rcvtimeo = news.rcvtimeo = 60_000
    ask.send(PAYLOAD)
    assert ask.recv().decode() == DIGEST
    # A subscription has no answer: ask until one news has come.
    while not news.poll(50):
        ask.send(PAYLOAD)
        ask.recv()
    assert news.recv_multipart()[1].decode() == DIGEST

answers = []

def session(number):
    with context.socket(zmq.REQ) as ask:
        ask.connect(ANSWERS)
        ask.rcvtimeo = 60_000
        ask.send(bytes([number]))
        answers.append(ask.recv())

threads = [threading.Thread(target=session, args=(number,)) for number in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(set(answers)))
context.term()

async def main():
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(ANSWERS)
        for number in range(100):
            await dealer.send_multipart([b"", bytes([number])])
        print(len({(await dealer.recv_multipart())[1] for _ in range(100)}))

asyncio.run(main())
"""
)

BY_NAME = """
import zmq, zmq.utils.monitor

with zmq.Context() as context, context.socket(zmq.REQ) as ask:
    ask.linger = 0
    with ask.get_monitor_socket(zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CONNECTED) as monitor:
        monitor.rcvtimeo = 60_000
        ask.connect("tcp://alice.ntcp:5555")
        print(zmq.utils.monitor.recv_monitor_message(monitor)["event"].name)
        ask.disable_monitor()
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@contextmanager
def zmq_server(folder: Path) -> Iterator[list[str]]:
    """Its two ports; a program that knows nothing of names."""
    argv = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()
    finally:
        stop(server)
        server.stdout.close()


@pytest.fixture(scope="module")
def exposed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with zmq_server(tmp_path_factory.mktemp("zmq")) as (answers, news):
        with (
            Command(stage, "alice", "expose", "alice:5555", "--to", answers),
            Command(stage, "alice", "expose", "alice:5556", "--to", news),
        ):
            yield


def test_by_number(stage: Stage, exposed: None, tmp_path: Path) -> None:
    assert run(stage, tmp_path, "bob", BY_NUMBER + CLIENT) == ["20", "100"]


def test_through_forwarded_ports(stage: Stage, exposed: None, tmp_path: Path) -> None:
    with (
        Command(stage, "dave", "forward", "0", "alice:5555") as answers,
        Command(stage, "erin", "forward", "0", "alice:5556") as news,
    ):
        places = ["tcp://{}:{}".format(*command.place) for command in (answers, news)]
        done = subprocess.run(
            [sys.executable, "-c", f"ANSWERS, NEWS = {places}\n{CLIENT}"],
            env=environment(stage, "dave"),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
    assert done.stdout.splitlines() == ["20", "100"]


def test_a_name_means_nothing_to_its_core(stage: Stage, exposed: None, tmp_path: Path) -> None:
    """It raises nothing and goes on trying, as for every host that it cannot resolve."""
    assert run(stage, tmp_path, "frank", BY_NAME) == ["CONNECT_RETRIED"]
