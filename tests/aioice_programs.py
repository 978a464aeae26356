"""Two ICE agents in two hosts of a lab, aioice and ours. They tell each other their candidates by files."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path
from typing import Any

import trio

from ntcpsock._address import Endpoint
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.machine import ChecksMachine
from ntcpsock._traversal.checks.message import Credentials
from ntcpsock._traversal.gather_udp import gather_udp

PATIENCE = 60.0


def tell(file: Path, description: dict[str, Any]) -> None:
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(description))
    temporary.rename(file)


def hear(file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} does not come")
        time.sleep(0.02)
    description: dict[str, Any] = json.loads(file.read_text())
    return description


def run_ours(
    directory: Path, server: tuple[str, int], leads: bool, silence: float
) -> tuple[list[bytes], str]:
    """Meet aioice, send it a word, take two of its own, the second after `silence`; and where it was met."""

    async def main() -> tuple[list[bytes], str]:
        warm = await gather_udp([Endpoint(*server)])
        fragment, password = secrets.token_hex(8), secrets.token_hex(16)
        candidates = [(candidate.type, candidate.host, candidate.port) for candidate in warm.candidates]
        tell(directory / "ours", {"fragment": fragment, "password": password, "candidates": candidates})
        theirs = await trio.to_thread.run_sync(hear, directory / "theirs")
        credentials = Credentials(fragment, password, theirs["fragment"], theirs["password"])
        machine = ChecksMachine(credentials, controlling=leads, now=trio.current_time(), rtt=0.1)
        for kind, host, port in theirs["candidates"]:
            machine.add_pair(0, Endpoint(host, port), now=trio.current_time(), kind=kind)
        path = PunchedPath(warm.port, machine, fragment, rtt=0.1, port_is_ours=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.port.run)
            path.start()
            nursery.start_soon(path.run)
            received: list[bytes] = []
            with trio.fail_after(PATIENCE + silence):
                await path.wait_nominated()
                path.settle()
                assert path.try_send([b"\x40 from ours"]) == 1
                while len(received) < 2:
                    received += path.try_receive()
                    if len(received) < 2:
                        await path.wait_readable()
            remote = path.remote.host
            path.close()
            nursery.cancel_scope.cancel()
        return received, remote

    return trio.run(main)


def run_aioice(directory: Path, server: tuple[str, int], leads: bool, silence: float) -> bytes:
    """The other side: the word that it got."""
    import aioice

    async def main() -> bytes:
        connection = aioice.Connection(ice_controlling=leads, stun_server=server, use_ipv6=False)
        await connection.gather_candidates()
        tell(
            directory / "theirs",
            {
                "fragment": connection.local_username,
                "password": connection.local_password,
                "candidates": [
                    (candidate.type, candidate.host, candidate.port)
                    for candidate in connection.local_candidates
                ],
            },
        )
        ours = await asyncio.to_thread(hear, directory / "ours")
        connection.remote_username = ours["fragment"]
        connection.remote_password = ours["password"]
        for number, (kind, host, port) in enumerate(ours["candidates"]):
            await connection.add_remote_candidate(
                aioice.Candidate(
                    foundation=str(number),
                    component=1,
                    transport="udp",
                    priority=2**24 * (126 if kind == "host" else 100) + 255,
                    host=host,
                    port=port,
                    type=kind,
                )
            )
        await connection.add_remote_candidate(None)
        await asyncio.wait_for(connection.connect(), PATIENCE)
        word = await asyncio.wait_for(connection.recv(), PATIENCE)
        await connection.send(b"\x40 from aioice")
        await asyncio.sleep(silence)
        await connection.send(b"\x40 still here")
        await asyncio.sleep(1.0)
        await connection.close()
        return bytes(word)

    return asyncio.run(main())
