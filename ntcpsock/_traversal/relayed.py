"""The relay of one dial: asked for beside the race for a direct path, in a round of its own."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._config import Encryption
from ntcpsock._traversal.datagram_plan import udp_profile
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.introductions import Introductions
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.message import Card
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.relay_choice import order_relays
from ntcpsock._traversal.relay_plan import has_to_predict, make_relay_plan
from ntcpsock._traversal.signals import REPEAT_PAUSES, Talk
from ntcpsock._traversal.strategies.relay import RelayAccess

#: Far from those of the direct and joint techniques; the last that an offer can name is the mapped port's.
RELAY_ROUND = 15

_chance = random.SystemRandom()


class RelayContext(Protocol):
    """What a dial needs of its node for this."""

    @property
    def techniques(self) -> Sequence[str]: ...
    @property
    def encryption(self) -> Encryption: ...
    @property
    def relays(self) -> Sequence[Endpoint]: ...
    @property
    def relay_times(self) -> Mapping[str, float]: ...
    @property
    def broker_rtt(self) -> float: ...
    @property
    def introductions(self) -> Introductions: ...


async def run_relay_round(
    node: RelayContext,
    dial: Dial,
    card: Card,
    warm: WarmPort,
    race: Race,
    nursery: trio.Nursery,
    tell: Callable[[bytes], Awaitable[None]],
    *,
    budget: float,
    task_status: trio.TaskStatus[None],
) -> None:
    """Announce the relay when the plan says so, and enter it into the race, which lets direct paths win until the
    plan's grace is over. budget: seconds for all of it."""
    with race.more_may_come():
        task_status.started()
        rtt = card.broker_rtt + node.broker_rtt
        plan = make_relay_plan(
            warm.offered,
            card.candidates,
            techniques=node.techniques,
            relays=node.relays,
            rtt=rtt,
            predicts=ports_are_foreseen(warm, card, node.techniques),
        )
        if plan is None or not card.relayed or "relay" in dial.useless:
            return
        begin = trio.current_time()
        await trio.sleep(plan.prepare)
        offer = dial.offer(RELAY_ROUND, warm, node.broker_rtt, "relay")

        async def tickets() -> tuple[bytes, bytes] | None:
            return await node.introductions.take_tickets(dial, offer)

        theirs = {} if dial.answer is None else {word: ms / 1000 for word, ms in dial.answer.relay_times}
        relays = order_relays(node.relays, node.relay_times, theirs, _chance, dial.lost_relay)
        planned = PlannedAttempt("relay", relays[0], 0.0, budget - plan.prepare)
        talk = Talk(dial.dial_id, RELAY_ROUND, dial.mailbox, nursery, tell)
        race.start_relay(planned, warm.port, talk, RelayAccess(relays, tickets), begin + plan.use)
    # A datagram that nobody acknowledges, and all depends on it.
    for pause in (0.0, *REPEAT_PAUSES, *REPEAT_PAUSES):
        await trio.sleep(pause)
        with suppress(OSError):
            await tell(offer)


def ports_are_foreseen(warm: WarmPort, card: Card, techniques: Sequence[str]) -> bool:
    """Whether that is what a direct path takes: then it takes longer."""
    tcp = (warm.profile, card.profile)
    udp = (udp_profile(warm.profile, warm.udp_profile), udp_profile(card.profile, card.udp_profile))
    return has_to_predict(tcp, udp, techniques=techniques)


def why_no_relay(node: RelayContext, card: Card) -> str:
    """Why a relay did not help a dial that failed."""
    if not card.relayed and "relay" in node.techniques:
        return "The other side lets itself be reached over no relay (its settings relay and techniques)."
    if node.encryption == "off":
        return 'Connections with encryption="off" do not go over a relay, which would read them.'
    if "relay" not in node.techniques:
        return "The relay, which connects every pair, is not allowed here (settings relay and techniques)."
    if not node.relays:
        return "The broker has no relay: `ntcp serve` runs one on its TCP port. A TURN server does as well."
    return "The relay could not be used either: either side may not reach it, or not allow it."
