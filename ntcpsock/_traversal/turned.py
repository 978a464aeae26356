"""The way over a TURN server, of one dial: asked for beside the race, in a round of its own, as the relay is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import trio

from ntcpsock._address import Endpoint, may_be_dialled
from ntcpsock._traversal.aim import Standpoint
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.course import Course
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.punch.message import MAX_ROUND, Candidate
from ntcpsock._traversal.race import Race
from ntcpsock._traversal.relay_plan import make_turn_plan
from ntcpsock._traversal.relayed import ports_are_foreseen
from ntcpsock._traversal.signals import REPEAT_PAUSES, Talk
from ntcpsock._traversal.strategies.turn import TurnAccess

#: The last that an offer can name.
TURN_ROUND = MAX_ROUND

#: RFC 8656 section 7.2: relayed addresses have a dynamic port.
LOWEST_RELAYED_PORT = 49152


async def run_turn_round(
    course: Course,
    race: Race,
    nursery: trio.Nursery,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Announce it when the plan says so, where either side has servers, and enter it into the race, which lets direct
    paths win until the plan's grace is over."""
    node, dial, card, warm = course.node, course.dial, course.card, course.warm
    with race.more_may_come():
        task_status.started()
        if "turn" not in course.techniques or not (node.turn_servers or card.turn):
            return
        predicts = ports_are_foreseen(warm, card, node.techniques)
        plan = make_turn_plan(warm.offered, card.candidates, rtt=course.rtt, predicts=predicts)
        begin = trio.current_time()
        await trio.sleep(plan.prepare)
        datagram = course.datagram_access(None, TURN_ROUND, lambda: None)
        access = TurnAccess(
            node.turn_servers,
            hosts_of(course.targets(card.candidates, "udp"), course.proven_host, course.also_proven),
            relayed_target(node.surroundings.standpoint),
            race.may_check,
            node.hidden,
            node.take_turn_allocation,
        )
        planned = PlannedAttempt("turn", Endpoint(dial.observed_host, 0), 0.0, course.remaining)
        talk = Talk(dial.dial_id, TURN_ROUND, dial.mailbox, nursery, course.tell)
        race.start_turn(planned, warm.port, talk, datagram, access, begin + plan.use)
        offer = course.offer(TURN_ROUND, warm, "turn")
    # The broker may have brought it to nobody: again, until the other side has said something.
    for pause in (*REPEAT_PAUSES, *REPEAT_PAUSES, math.inf):
        try:
            await course.tell(offer)
        except OSError:
            return
        with trio.move_on_after(pause):
            await dial.mailbox.wait_for_round(TURN_ROUND)
            return


def hosts_of(candidates: Sequence[Candidate], proven: str, also_proven: Sequence[str]) -> tuple[str, ...]:
    """Where a peer may send from: the hosts where the broker sees it, and those of its own candidates."""
    hosts = (proven, *also_proven, *(candidate.host for candidate in candidates))
    return tuple(dict.fromkeys(host for host in hosts if host))


def relayed_target(standpoint: Standpoint) -> Callable[[Endpoint], bool]:
    """Whether a peer may name this as its relayed address. Broker and TURN server are often one machine, so hosts of
    services are not excluded, as they are for other candidates: their ports are."""

    def is_target(endpoint: Endpoint) -> bool:
        if endpoint.port < LOWEST_RELAYED_PORT:
            return False
        if is_loopback(endpoint.host):
            return is_loopback(standpoint.observed)
        return may_be_dialled(endpoint) and endpoint.host not in standpoint.interfaces

    return is_target
