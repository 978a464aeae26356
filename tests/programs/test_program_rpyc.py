"""rpyc: objects of another process by name, calls in both directions, from threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("rpyc", reason="rpyc is not installed")

SERVER = (
    PAYLOAD
    + """
import rpyc
from rpyc.utils.server import ThreadedServer

class Service(rpyc.Service):
    def exposed_digest(self, data):
        return hashlib.sha256(data).hexdigest()

    def exposed_payload(self):
        return PAYLOAD

    def exposed_each(self, numbers, callback):
        return [callback(number) for number in numbers]

server = ThreadedServer(Service, hostname="alice.ntcp", port=18861)
server._listen()
print("ready")
server.start()
"""
)

CLIENT = (
    PAYLOAD
    + """
import rpyc, threading

connection = rpyc.connect("alice.ntcp", 18861)
assert connection.root.digest(PAYLOAD) == DIGEST
assert hashlib.sha256(connection.root.payload()).hexdigest() == DIGEST
print(list(connection.root.each([1, 2, 3], lambda number: number * number)))
wait = rpyc.async_(connection.root.digest)(b"later")
wait.wait()
assert wait.value == hashlib.sha256(b"later").hexdigest()
connection.close()

answers = []

def call(number):
    with rpyc.connect("alice.ntcp", 18861) as other:
        answers.append(other.root.digest(bytes([number]) * 100_000))

threads = [threading.Thread(target=call, args=(number,)) for number in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(set(answers)))

try:
    rpyc.connect("alice.ntcp", 18862)
except ConnectionRefusedError as error:
    print(type(error).__name__)
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_calls_in_both_directions(stage: Stage, tmp_path: Path) -> None:
    with running(stage, tmp_path, "alice", SERVER):
        assert run(stage, tmp_path, "bob", CLIENT) == ["[1, 4, 9]", "20", "PeerRefused"]
