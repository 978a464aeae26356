"""Ask what `machine.py` says, all at once, until it is done or the time is over."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ntcpsock._traversal.discovery.evidence import Outcome
from ntcpsock._traversal.discovery.machine import Batch, DiscoveryMachine
from ntcpsock._traversal.discovery.tcp_driver import TcpProber
from ntcpsock._traversal.discovery.udp_driver import UdpProber

#: Seconds for a whole discovery.
DISCOVERY_DEADLINE = 3.6


async def run_discovery(machine: DiscoveryMachine, *, deadline: float = DISCOVERY_DEADLINE) -> list[Outcome]:
    """The outcomes of all questions, those without an answer after `deadline` seconds included.

    Nothing that a server says or keeps to itself raises. Cancelling closes all sockets.
    """
    changed = trio.Event()

    def report(outcome: Outcome) -> None:
        nonlocal changed
        machine.handle_outcome(outcome)
        changed.set()
        changed = trio.Event()

    udp, tcp = UdpProber(report), TcpProber(report)
    try:
        with trio.move_on_after(deadline):
            async with trio.open_nursery() as nursery:
                while True:
                    for batch in machine.batches_to_start():
                        nursery.start_soon(_ask, batch, udp if batch[0].transport == "udp" else tcp, report)
                    if machine.is_done:
                        break
                    await changed.wait()
    finally:
        tcp.close()
    machine.finish()
    return machine.outcomes


async def _ask(batch: Batch, prober: UdpProber | TcpProber, report: Callable[[Outcome], None]) -> None:
    try:
        await prober.ask(batch)
    except* OSError as errors:  # no port, no descriptor, no network
        for probe in batch:
            report(Outcome(probe, "unreachable", text=str(_first(errors))))


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
