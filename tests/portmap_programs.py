"""What the lab tests of port mapping run inside hosts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio
from peer_programs import PATIENCE, PORT, answer, wait_registered

from ntcpsock._config import Config
from ntcpsock._report import Report
from ntcpsock._traversal import mapping
from ntcpsock._traversal.mapping_probe import PortMappingProbe, probe_port_mapping
from ntcpsock._traversal.portmap import machine
from ntcpsock.trio import open_node


@dataclass(frozen=True)
class Hurry:
    """Other numbers than the usual ones, in seconds, so that a test sees what else takes minutes."""

    lifetime: int = mapping.LIFETIME
    check_interval: float = machine.CHECK_INTERVAL


NO_HURRY = Hurry()


def listen_until(config: Config, stop: Path, hurry: Hurry) -> list[str]:
    """Listen until the file `stop` is there, and close in good order; the types of the last candidates."""
    mapping.LIFETIME, machine.CHECK_INTERVAL = hurry.lifetime, hurry.check_interval

    async def main() -> list[str]:
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, answer, [listener])
                await _until_file(stop)
                nursery.cancel_scope.cancel()
            assert node.listening_port is not None
            return [candidate.type for candidate in node.listening_port.candidates]

    return trio.run(main)


async def _until_file(path: Path) -> None:
    while not path.exists():  # noqa: ASYNC240 - a look takes no time
        await trio.sleep(0.02)


def report_of_dial(config: Config, name: str) -> Report:
    """Connect, whatever comes of it."""

    async def main() -> Report:
        async with open_node(config) as node:
            await wait_registered(node, name)
            with trio.fail_after(PATIENCE):
                try:
                    stream = await node.open_stream(name, PORT)
                except OSError as error:
                    report: Report = error.report  # type: ignore[attr-defined]
                    return report
                async with stream:
                    await stream.send_eof()
                    await stream.receive_some()
                return stream.report

    return trio.run(main)


def probe(seen: list[str]) -> PortMappingProbe:
    async def main() -> PortMappingProbe:
        return await probe_port_mapping(seen)

    return trio.run(main)
