"""The two ends of a measured connection: `python -m ntcpsock.cli.lab_peer echo|dial NAME:PORT`.

What `ntcp lab pair`, the demo and the benchmarks run inside lab hosts. Settings come from the
environment; event lines, as JSON, go to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import trio

from ntcpsock._address import parse_node_address
from ntcpsock._config import Config
from ntcpsock.cli.output import connected_fields, error_event, only_cause
from ntcpsock.trio import NTCPStream, open_node

# Pause between two tries of one dialer: its node gathers a fresh port meanwhile, so each try is the
# dial of a warm node.
PAUSE = 0.3


def _say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def echo(name: str, port: int) -> None:
    """Send back whatever comes, to any number of peers, until killed."""

    async def handler(stream: NTCPStream) -> None:
        _say("accepted", **connected_fields(stream.report.seconds, stream.peer, stream.path, stream.report))
        try:
            async with stream:
                async for chunk in stream:
                    await stream.send_all(chunk)
                await stream.send_eof()
        except (OSError, trio.BrokenResourceError) as error:
            _say("broken", message=str(error))

    async with open_node(Config.load(name=name)) as node:
        listener = await node.open_listener(port, name=name)
        await node.wait_warm()
        _say("listening", name=name, port=port, node_id=node.node_id)
        await trio.serve_listeners(handler, [listener])


async def dial(name: str, port: int, tries: int) -> None:
    """Connect `tries` times from one warm node; after each, one message there and back."""
    async with open_node(Config.load()) as node:
        for number in range(tries):
            await node.wait_warm()
            await node.resolve(name)
            if number:
                await trio.sleep(PAUSE)
            started, began = trio.current_time(), time.monotonic()
            try:
                stream = await node.open_stream(name, port)
            except OSError as error:
                _say(**{**error_event(error), "seconds": trio.current_time() - started, "began": began})
                continue
            seconds = trio.current_time() - started
            async with stream:
                round_trip = await _round_trip(stream)
            fields = connected_fields(seconds, stream.peer, stream.path, stream.report)
            _say("connected", **fields, round_trip=round_trip, began=began)


async def _round_trip(stream: NTCPStream) -> float:
    """Seconds for a short message to the echo and back."""
    message = b"the quick brown fox"
    started = trio.current_time()
    await stream.send_all(message)
    received = b""
    while len(received) < len(message) and (chunk := bytes(await stream.receive_some())):
        received += chunk
    if received != message:
        raise OSError(f"the echo answered {received!r}")
    return trio.current_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab_peer")
    parser.add_argument("role", choices=["echo", "dial"])
    parser.add_argument("address")
    parser.add_argument("--tries", type=int, default=1)
    options = parser.parse_args()
    name, port = parse_node_address(options.address)
    try:
        if options.role == "echo":
            trio.run(echo, name, port)
        else:
            trio.run(dial, name, port, options.tries)
    except BaseException as raised:
        error = only_cause(raised)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if not isinstance(error, OSError):
            raise
        _say(**error_event(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
