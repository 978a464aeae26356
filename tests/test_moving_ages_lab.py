"""A carrier's NAT that drops each mapping at an age, in the lab: the first stream pauses, the next one does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from lab_stage import start_servers
from peer_programs import PATIENCE, PORT, wait_registered

from ntcpsock._config import Config
from ntcpsock._path_ages import DEATHS_NEEDED
from ntcpsock.testing.pytest_plugin import NatLabFactory
from ntcpsock.trio import open_node

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]

LIFETIME = 14.0


@dataclass(frozen=True)
class Asked:
    """What a stream saw. pause: the longest time without an answer, in seconds."""

    technique: str
    pause: float
    reasons: tuple[str, ...]
    pauses: tuple[float, ...]


def echo(config: Config) -> None:
    async def main() -> None:
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            async with trio.open_nursery() as nursery:
                while True:
                    nursery.start_soon(answer, await listener.accept())

    async def answer(stream: trio.abc.HalfCloseableStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    trio.run(main)


def ask(config: Config, name: str, seconds: float) -> list[Asked]:
    """Two streams, one after the other: the first until the NAT has dropped it often enough, the second for so long."""

    async def main() -> list[Asked]:
        async with open_node(config) as node:
            await wait_registered(node, name)
            await node.wait_warm()
            outcomes = []
            for number in range(2):
                async with await node.open_stream(name, PORT) as stream:
                    technique, longest = stream.path.technique, 0.0
                    moves = stream.report.moves
                    deadline = trio.current_time() + (10 * LIFETIME, seconds)[number]
                    while trio.current_time() < deadline and (number or len(moves) < DEATHS_NEEDED):
                        asked = trio.current_time()
                        with trio.fail_after(PATIENCE):
                            await stream.send_all(b"x")
                            await stream.receive_some()
                        longest = max(longest, trio.current_time() - asked)
                        await trio.sleep(0.1)
                    reasons = tuple(move.reason for move in moves)
                    outcomes.append(Asked(technique, longest, reasons, tuple(move.pause for move in moves)))
            return outcomes

    return trio.run(main)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_next_stream_has_no_pause(nat_lab: NatLabFactory, tmp_path: Path, transport: str) -> None:
    lab = nat_lab(f"cgn+lifetime={LIFETIME:g}", "default")
    stage = start_servers(lab, tmp_path, tcp=True)
    lab.host_b.start(echo, stage.config("bob"))
    techniques = (f"{transport}-open" if transport == "tcp" else "udp-punch",)
    config = stage.config(techniques=techniques)
    first, second = lab.host_a.start(ask, config, "bob", 3 * LIFETIME).result(250)
    print(first, second, sep="\n")
    assert first.technique == second.technique == techniques[0]
    assert len(first.reasons) == DEATHS_NEEDED
    assert set(first.reasons) <= {"its path was lost", "its path was silent"}
    assert set(second.reasons) == {"it grew old"}
    assert set(second.pauses) == {0.0}
    assert second.pause < first.pause
