"""What an idle node over TCP costs a broker: bytes of memory in user space, each with its WebSocket and registration.

`python -m benchmarks.websocket_nodes --nodes 20000`: the nodes live in further processes, and keep themselves alive.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import trio

from benchmarks import harness
from benchmarks.broker import measured_broker
from benchmarks.fleet import example_card
from ntcpsock._address import decode_node_id, encode_node_id
from ntcpsock._identity import Identity
from ntcpsock._servers.descriptors import raise_descriptor_limit
from ntcpsock._traversal.broker.events import Answered, Connected
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.machine import ClientMachine
from ntcpsock._traversal.broker.message import Register, Registered
from ntcpsock._traversal.broker.websocket import WebSocketMachine

# Each process of nodes has so many, all from an address of its own.
_OF_A_PROCESS = 10_000
# Connections that are opened side by side.
_TOGETHER = 32


async def node(number: int, host: str, port: int, key: bytes, source: str, opening: trio.Semaphore) -> None:
    """One that registers, and keeps itself alive until cancelled. Prints a line when it is registered."""
    identity = Identity.generate()
    machine = ClientMachine(Sealer(identity, cache_size=1), key)
    websocket = WebSocketMachine.client(f"{host}:{port}")
    registered = False
    await opening.acquire()
    with trio.socket.socket() as sock:
        await sock.bind((source, 0))
        await sock.connect((host, port))
        machine.start(trio.current_time())
        while True:
            if websocket.is_open:
                for frame in machine.datagrams_to_send():
                    websocket.send(frame)
            if data := websocket.data_to_send():
                await sock.send(data)
            due = machine.next_timer()
            with trio.move_on_at(trio.current_time() + 60 if due is None else due):
                data = await sock.recv(4096)
                if not data:
                    raise OSError("the broker has closed a connection")
                for frame in websocket.receive(data):
                    machine.receive_datagram(frame, trio.current_time())
            machine.handle_timer(trio.current_time())
            for event in machine.events():
                if isinstance(event, Connected):
                    registration = Register((f"node-{number}",), (80,), 60, example_card(number, identity))
                    machine.register(registration, trio.current_time())
                elif isinstance(event, Answered) and isinstance(event.body, Registered) and not registered:
                    registered = True
                    opening.release()
                    print(number, flush=True)


async def nodes(first: int, count: int, host: str, port: int, key: bytes) -> None:
    raise_descriptor_limit()
    opening = trio.Semaphore(_TOGETHER)
    async with trio.open_nursery() as nursery:
        for number in range(first, first + count):
            nursery.start_soon(
                node, number, host, port, key, f"127.2.0.{first // _OF_A_PROCESS + 1}", opening
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.websocket_nodes", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--be-nodes", nargs=5, metavar=("FIRST", "COUNT", "HOST", "PORT", "KEY"))
    arguments = parser.parse_args()
    if arguments.be_nodes is not None:
        first, count, host, port, key = arguments.be_nodes
        node_key = decode_node_id(key)
        assert node_key is not None
        trio.run(nodes, int(first), int(count), host, int(port), node_key)
        return
    measure(arguments.nodes)


def measure(count: int) -> harness.Series:
    """Bytes for each of so many nodes."""
    with measured_broker("--tcp") as broker:
        processes: list[subprocess.Popen[str]] = []
        try:
            # The first hundred pay for what all share.
            start_nodes(processes, broker.address.host, broker.address.port, broker.key, 0, 100)
            base = broker.ask("collect")
            first = _OF_A_PROCESS
            while first < count + _OF_A_PROCESS:
                some = min(_OF_A_PROCESS, count + _OF_A_PROCESS - first)
                start_nodes(processes, broker.address.host, broker.address.port, broker.key, first, some)
                first += some
            full = broker.ask("collect")
            start = time.monotonic()
            time.sleep(min(20.0, count / 100))
            idle = broker.ask()
            share = (idle["cpu"] - full["cpu"]) / (time.monotonic() - start)
        finally:
            for process in processes:
                process.terminate()
                process.communicate()  # which closes its pipe as well
    each = (full["resident"] - base["resident"]) / (full["nodes"] - base["nodes"])
    print(
        f"{full['nodes']:.0f} nodes over TCP: {each / 1024:.1f} KiB each in user space, {share:.3f} of a core "
        f"while they are idle, {1e3 * (full['cpu'] - base['cpu']) / count:.2f} ms of CPU to bring one in"
    )
    series = harness.Series(f"{count} idle nodes over TCP", "bytes each", (each,))
    harness.save("websocket_nodes", [series])
    return series


def start_nodes(
    processes: list[subprocess.Popen[str]], host: str, port: int, key: bytes, first: int, count: int
) -> None:
    """A process of `count` nodes; returns when all are registered."""
    command = [sys.executable, "-m", "benchmarks.websocket_nodes", "--be-nodes", str(first), str(count)]
    command += [host, str(port), encode_node_id(key)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout is not None
    for _ in range(count):
        if not process.stdout.readline():
            raise OSError("the nodes have ended")


if __name__ == "__main__":
    main()
