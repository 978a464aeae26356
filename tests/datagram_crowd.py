"""Many real nodes in one process, each an echo of datagrams: `python datagram_crowd.py BROKER STATE COUNT`.

Says `ready` when all are registered; ends with its standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from ntcpsock._config import Config
from ntcpsock.trio import open_node

PORT = 7
# Nodes that register at once: all of them together would only wait for each other.
_AT_ONCE = 10


async def main(broker: str, state: Path, count: int) -> None:
    limit = trio.CapacityLimiter(_AT_ONCE)
    async with trio.open_nursery() as nursery:

        async def echo(number: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            name = f"peer{number}"
            config = Config(broker=broker, name=name, state_dir=state / name, warm_ports=0)
            async with open_node(config) as node:
                async with limit:
                    sock = await node.open_datagram_socket(PORT)
                task_status.started()
                while True:
                    data, sender = await sock.receive_from()
                    await sock.send_to(data + b" from " + name.encode(), sender)

        async with trio.open_nursery() as starting:
            for number in range(count):
                starting.start_soon(nursery.start, echo, number)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
