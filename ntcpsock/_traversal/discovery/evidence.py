"""Questions to the NAT, and what came of them: the raw material of `findings.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ntcpsock._address import Endpoint
from ntcpsock._traversal.punch.message import Transport
from ntcpsock._traversal.stun.connect_back import ConnectBackOutcome

Question = Literal[
    "reach",  # does the server answer at all
    "https",  # does TCP to port 443 get out, where nothing else seems to
    "allocation",  # as which port is a fresh local port seen; in the order of `number`
    "mapping",  # as which endpoint is one and the same local port seen by this server
    "session",  # and by the same server again, after a reset (TCP)
    "filtering-address",  # does the server's other address get in
    "filtering-port",  # does another port of its address
    "hairpin",  # do two local ports reach each other by their public endpoints
    "fragments",  # do datagrams longer than a packet pass
    "hops",  # who says "time exceeded" on the first steps of the way
]

Answer = Literal[
    "answered",  # by the server, usably; or what the question asks for has happened
    "silence",
    "refused",  # a RST, or port unreachable
    "unreachable",  # no way to get there, says this machine or a router
    "not-stun",  # something that speaks another protocol
    "error",  # the server answered, with an error or nonsense
    "unfinished",  # the time was over
]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. Probes of one batch share a local port (`mapping`, `session`) or are asked in order."""

    question: Question
    transport: Transport
    server: Endpoint
    number: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a probe.

    local: our endpoint, without NAT; mapped: as which the server saw it; source: who answered, where that may be
    another one than the server; other: the server's other address; connect_back: how the server says its connection
    to us went; arrived: whether something came in here; size: octets of padding in the answer; hops: addresses, ""
    for who did not answer; text: for people. Seconds from the question on.
    """

    probe: Probe
    answer: Answer
    local: Endpoint | None = None
    mapped: Endpoint | None = None
    source: Endpoint | None = None
    other: Endpoint | None = None
    connect_back: int | None = None
    arrived: bool = False
    size: int = 0
    hops: tuple[str, ...] = ()
    text: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        probe = self.probe
        asked = f"{probe.transport} {probe.question} at {probe.server}"
        if self.hops:
            return f"{asked}: hops {', '.join(hop or 'silent' for hop in self.hops)}"
        if self.connect_back is not None:
            here = "arrived" if self.arrived else "nothing arrived"
            return f"{asked}: connection from {self.source or 'nowhere'}: {_outcome_words(self.connect_back)}, {here}"
        if self.answer != "answered":
            return f"{asked}: {self.answer}{f' ({self.text})' if self.text else ''}"
        if probe.question == "hairpin":
            return f"{asked}: {'arrived' if self.arrived else 'nothing arrived'}"
        if self.source is not None and self.source != probe.server:
            return f"{asked}: answered from {self.source}"
        if probe.question == "fragments":
            return f"{asked}: an answer with {self.size} octets of padding"
        return f"{asked}: {self.local or 'we'} seen as {self.mapped}" if self.mapped else f"{asked}: answered"


def _outcome_words(number: int) -> str:
    words = {
        ConnectBackOutcome.CONNECTED: "connected",
        ConnectBackOutcome.RESET: "refused by a RST",
        ConnectBackOutcome.TIMED_OUT: "no answer",
        ConnectBackOutcome.ICMP: "refused by ICMP",
        ConnectBackOutcome.NOT_TRIED: "not tried, the server is busy",
    }
    return words.get(number, f"outcome {number}")  # type: ignore[call-overload,no-any-return]
