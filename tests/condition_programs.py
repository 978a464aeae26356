"""What the lab tests of bad conditions run: dials beside each other, and sides that start late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio
from msgspec import structs
from peer_programs import (
    PORT,
    Dialled,
    answer,
    dial_many,
    read_all,
    run_listener,
    wait_registered,
)

from ntcpsock._config import Config
from ntcpsock._errors import NTCPError
from ntcpsock._node import Node
from ntcpsock._session.stream import NTCPStream
from ntcpsock._traversal import gather, nat
from ntcpsock._traversal.accept import Acceptor
from ntcpsock._traversal.broker.driver import Delivery, Introduction
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.punch.message import NATProfile, Offer, SynAnswer
from ntcpsock.trio import open_node


@dataclass(frozen=True)
class Outcome:
    """One connect and an echo: seconds of the connect; technique, or None; the error's text and report; when each
    joint attempt began and ended."""

    seconds: float
    technique: str | None
    text: str = ""
    sprays: tuple[tuple[float, float], ...] = ()


def dial_beside(
    config: Config, name: str, count: int, beside: int, late: float, timeout: float | None = None
) -> list[Outcome]:
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
            outcomes.append(await _dial(node, name, timeout))

    return trio.run(main)


async def _dial(node: Node, name: str, timeout: float | None) -> Outcome:
    begin = trio.current_time()
    try:
        async with await node.open_stream(name, PORT, timeout=timeout) as stream:
            seconds = trio.current_time() - begin
            await stream.send_all(b"ehello")
            await stream.send_eof()
            if not (await read_all(stream)).startswith(b"hellolast word"):
                return Outcome(seconds, None, "the echo was another")
            sprays = tuple(
                (stream.report.started + entry.started, stream.report.started + (entry.ended or 0.0))
                for entry in stream.report.attempts
                if entry.technique == "tcp-predict" and entry.tries
            )
            return Outcome(seconds, stream.path.technique, sprays=sprays)
    except NTCPError as error:
        return Outcome(trio.current_time() - begin, None, f"{error}\n{error.report}")
    except trio.BrokenResourceError as error:
        return Outcome(trio.current_time() - begin, None, f"broken: {error}")


def dial_and_listen(config: Config, name: str, count: int) -> list[Outcome]:
    """`count` dials one after the other, of a node that dials us as often meanwhile."""
    answered = 0

    async def count_and_answer(stream: NTCPStream) -> None:
        nonlocal answered
        await answer(stream)
        answered += 1

    async def main() -> list[Outcome]:
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, count_and_answer, [listener])
                await wait_registered(node, name)
                outcomes = [await _dial(node, name, 60.0) for _ in range(count)]
                while answered < count:  # it still needs us
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
        return outcomes

    return trio.run(main)


def dial_knowing(config: Config, name: str, count: int, stray_syn: SynAnswer) -> list[Dialled]:
    """`peer_programs.dial_many` of a node that knows how its NAT answers a stray SYN."""
    _know(stray_syn)
    return dial_many(config, name, count)


def listen_knowing(config: Config, stray_syn: SynAnswer) -> None:
    """`peer_programs.run_listener` of such a node."""
    _know(stray_syn)
    run_listener(config)


def _know(stray_syn: SynAnswer) -> None:
    observe = nat.profile_from_observations

    def knowing(*args: Any) -> NATProfile:
        return structs.replace(observe(*args), stray_syn=stray_syn)

    gather.profile_from_observations = knowing  # type: ignore[attr-defined, assignment]


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
