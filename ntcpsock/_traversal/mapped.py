"""The round of a dial that brings a port which our own router maps, so that the listener can connect to us."""

from __future__ import annotations

import trio

from ntcpsock._address import is_private_address
from ntcpsock._traversal.course import Course, listen_at
from ntcpsock._traversal.mapping import NoMapping
from ntcpsock._traversal.plan import mapping_delay
from ntcpsock._traversal.race import Race

# The last round that an offer can name. It is said so often, because datagrams get lost, with so many seconds between.
MAPPED_ROUND = 16
_MAPPED_OFFERS = 3
_MAPPED_OFFER_INTERVAL = 0.75


async def run_mapped_round(course: Course, race: Race, *, task_status: trio.TaskStatus[None]) -> None:
    """Have our router map a port of its own for this, and let the listener connect to that.

    No SYN of ours leaves from it: many routers would give that one another port, and the answers to the
    listener's would go the same way.
    """
    with race.more_may_come():
        task_status.started()
        warm = course.warm
        if not warm.needs_mapping:
            return
        delay = mapping_delay(
            warm.profile, course.card.profile, course.card.candidates, techniques=course.techniques
        )
        await trio.sleep(delay)
        course.report.port_mapping = course.node.port_mapping_refusal
        if course.report.port_mapping is not None:
            return
        try:
            port = await course.node.take_port()
        except OSError:
            return
        course.ports.append(port)
        course.mapping = course.node.map_port(port.port)
        try:
            mapping = await course.mapping.wait()
        except NoMapping as error:
            course.report.port_mapping = error.strerror
            return
        course.report.port_mapping = f"{mapping.protocol} maps {mapping.external}"
        if is_private_address(mapping.external.host):
            course.report.port_mapping += ", which another NAT hides"
        if not port.set_mapped(mapping.external):
            course.report.port_mapping += ", which is not where the Internet sees this side"
            return
        # Nothing is punched from it, so the listener needs no other address of it.
        port.candidates = tuple(ours for ours in port.candidates if ours.type == "mapped")
        listen_at(race, port, course.targets(course.card.candidates, "tcp"))
        offer = course.offer(MAPPED_ROUND, port)
        for _ in range(_MAPPED_OFFERS):
            try:
                await course.node.introductions.introduce(course.dial, offer)
            except OSError:
                return
            await trio.sleep(_MAPPED_OFFER_INTERVAL)
