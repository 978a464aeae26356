"""Which question comes when, without I/O: outcomes in, batches of probes out.

    reach ─► allocation ─► mapping, session, filtering, hairpin, fragments

Over UDP and over TCP, each at its own pace. Allocation comes before everything that would take ports in between;
what is filtered is asked from ports that nothing else has opened, and the rest does not wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import get_args

from ntcpsock._address import Endpoint, may_be_dialled
from ntcpsock._traversal.discovery.evidence import Outcome, Probe, Question
from ntcpsock._traversal.punch.message import Transport

#: Fresh local ports whose mappings show how a NAT allocates: of random ones, eight lie within 1/16 of all ports
#: once in 10 million cases.
ALLOCATION_SAMPLES = 8
# Servers that are looked for, and endpoints that one local port is shown to.
_MOST_SERVERS = 4
_MOST_ENDPOINTS = 4

_HTTPS_PORT = 443

_FURTHER: dict[Transport, tuple[Question, ...]] = {
    "udp": ("filtering-address", "filtering-port", "fragments", "hairpin"),
    "tcp": ("filtering-address", "filtering-port", "session", "hairpin"),
}

EVERYTHING: frozenset[Question] = frozenset(get_args(Question))

Batch = tuple[Probe, ...]


class DiscoveryMachine:
    """One discovery. `servers`: STUN servers, the better known first; two addresses or ports tell more than one.

    transports: over which is asked. trouble: something has been silent already (the broker), so that it is asked at
    once what gets out at all. questions: those that are asked once a server has answered to `reach`.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        *,
        transports: Sequence[Transport] = ("udp", "tcp"),
        trouble: bool = False,
        questions: Collection[Question] = EVERYTHING,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._open: set[Probe] = set()
        self._batches: list[Batch] = []
        servers = tuple(dict.fromkeys(servers))[:_MOST_SERVERS]
        self._courses = [_Course(transport, servers, questions) for transport in transports if servers]
        for course in self._courses:
            self._add(course.first())
        if servers and "udp" in transports and "hops" in questions:
            self._add([(Probe("hops", "udp", servers[0]),)])
        if trouble and servers:
            self._add([(Probe("https", "tcp", Endpoint(servers[0].host, _HTTPS_PORT)),)])

    def batches_to_start(self) -> list[Batch]:
        """What may be asked now; each is handed out once."""
        batches, self._batches = self._batches, []
        return batches

    def handle_outcome(self, outcome: Outcome) -> None:
        """Take what came of a probe. What was not asked changes nothing."""
        if outcome.probe not in self._open:
            return
        self._open.remove(outcome.probe)
        self.outcomes.append(outcome)
        for course in self._courses:
            self._add(course.next(self.outcomes, self._open))

    def finish(self) -> None:
        """The time is over: what has no outcome yet gets none."""
        self._batches.clear()
        self.outcomes += [Outcome(probe, "unfinished") for probe in sorted(self._open, key=repr)]
        self._open.clear()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._open

    def _add(self, batches: Sequence[Batch]) -> None:
        self._batches += batches
        for batch in batches:
            self._open.update(batch)


class _Course:
    """The course of one transport."""

    def __init__(
        self, transport: Transport, servers: Sequence[Endpoint], questions: Collection[Question]
    ) -> None:
        self._transport = transport
        self._servers = servers
        self._questions = questions
        self._reached: Outcome | None = None
        self._further = False

    def first(self) -> list[Batch]:
        return [(Probe("reach", self._transport, server),) for server in self._servers]

    def next(self, outcomes: Sequence[Outcome], still_open: set[Probe]) -> list[Batch]:
        if self._reached is None:
            self._reached = next((item for item in self._of("reach", outcomes) if _usable(item)), None)
            if self._reached is None:
                return []
            if "allocation" in self._questions:
                server = self._reached.probe.server
                numbers = range(ALLOCATION_SAMPLES)
                return [tuple(Probe("allocation", self._transport, server, number) for number in numbers)]
        allocation_is_open = any(
            probe.question == "allocation" and probe.transport == self._transport for probe in still_open
        )
        if self._further or allocation_is_open:
            return []
        self._further = True
        return self._all_further(self._reached, outcomes)

    def _all_further(self, reached: Outcome, outcomes: Sequence[Outcome]) -> list[Batch]:
        server = reached.probe.server
        other = believable_other(server, reached.other)
        batches: list[Batch] = []
        if "mapping" in self._questions:
            endpoints = self._endpoints(server, other, outcomes)
            batches.append(tuple(Probe("mapping", self._transport, endpoint) for endpoint in endpoints))
        for question in _FURTHER[self._transport]:
            if question not in self._questions or (question == "filtering-address" and other is None):
                continue
            if question == "hairpin" and (reached.local is None or reached.local == reached.mapped):
                continue
            numbers = range(2 if question == "session" else 1)
            batches.append(tuple(Probe(question, self._transport, server, number) for number in numbers))
        return batches

    def _endpoints(
        self, server: Endpoint, other: Endpoint | None, outcomes: Sequence[Outcome]
    ) -> list[Endpoint]:
        """Where one local port is shown: RFC 5780 section 4.3's three, and the second server."""
        silent = {item.probe.server for item in self._of("reach", outcomes) if not _usable(item)}
        endpoints = [server]
        if other is not None:
            endpoints += [Endpoint(other.host, server.port), other]
        endpoints += [one for one in self._servers if one not in silent]
        return list(dict.fromkeys(endpoints))[:_MOST_ENDPOINTS]

    def _of(self, question: Question, outcomes: Sequence[Outcome]) -> list[Outcome]:
        return [
            item
            for item in outcomes
            if item.probe.question == question and item.probe.transport == self._transport
        ]


def _usable(outcome: Outcome) -> bool:
    return outcome.answer == "answered" and outcome.mapped is not None


def believable_other(server: Endpoint, other: Endpoint | None) -> Endpoint | None:
    """The other address that `server` claims, where it may be one: it is what we would send to at its word."""
    if other is None or other.host == server.host or other.is_ipv6 != server.is_ipv6 or other.port == 0:
        return None
    if server.host.startswith("127."):
        return other if other.host.startswith("127.") else None
    return other if may_be_dialled(other) else None
