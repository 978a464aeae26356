"""What the lab tests of bad conditions run: dials beside each other, and sides that start late."""

from __future__ import annotations

from dataclasses import dataclass

import trio
from peer_programs import PORT, answer, read_all, wait_registered

from ntcpsock._config import Config
from ntcpsock._errors import NTCPError
from ntcpsock._node import Node
from ntcpsock._traversal.accept import Acceptor
from ntcpsock._traversal.broker.driver import Delivery, Introduction
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.punch.message import Offer
from ntcpsock.trio import open_node


@dataclass(frozen=True)
class Outcome:
    """One connect and an echo: seconds of the connect; technique, or None; the error's text and report."""

    seconds: float
    technique: str | None
    text: str = ""


def dial_beside(config: Config, name: str, count: int, beside: int, late: float) -> list[Outcome]:
    """`count` dials, `beside` of them at the same time, whose side starts `late` seconds after it could."""

    async def main() -> list[Outcome]:
        outcomes: list[Outcome] = []
        async with open_node(config) as node:
            await wait_registered(node, name)
            _delay_introductions(node, late)
            left = iter(range(count))
            async with trio.open_nursery() as nursery:
                for _ in range(beside):
                    nursery.start_soon(work, node, left, outcomes)
        return outcomes

    async def work(node: Node, left: object, outcomes: list[Outcome]) -> None:
        for _ in left:  # type: ignore[attr-defined]
            outcomes.append(await _dial(node, name))

    return trio.run(main)


async def _dial(node: Node, name: str) -> Outcome:
    begin = trio.current_time()
    try:
        async with await node.open_stream(name, PORT) as stream:
            seconds = trio.current_time() - begin
            await stream.send_all(b"ehello")
            await stream.send_eof()
            if await read_all(stream) != b"hellolast word":
                return Outcome(seconds, None, "the echo was another")
            return Outcome(seconds, stream.path.technique)
    except NTCPError as error:
        return Outcome(trio.current_time() - begin, None, f"{error}\n{error.report}")
    except trio.BrokenResourceError as error:
        return Outcome(trio.current_time() - begin, None, f"broken: {error}")


def _delay_introductions(node: Node, late: float) -> None:
    introduce = node.introductions.introduce

    async def delayed(dial: Dial, payload: bytes) -> Introduction:
        introduction = await introduce(dial, payload)
        await trio.sleep(late)
        return introduction

    if late:
        node.introductions.introduce = delayed  # type: ignore[method-assign]


def listen_late(config: Config, late: float) -> None:
    """`peer_programs.run_listener` with a node to which offers come `late` seconds late. Until killed."""
    offered = Acceptor.offered

    async def delayed(acceptor: Acceptor, delivery: Delivery, offer: Offer) -> None:
        await trio.sleep(late)
        await offered(acceptor, delivery, offer)

    if late:
        Acceptor.offered = delayed  # type: ignore[method-assign, assignment]

    async def main() -> None:
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            await trio.serve_listeners(answer, [listener])

    trio.run(main)
