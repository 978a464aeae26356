"""When to call connect(): one punch from one local port to one remote endpoint, as a pure machine.

The base method of TCP hole punching (P2PNAT, Ford et al. 2005, section 4): both sides call connect() from a
bound port. Through NATs that drop stray SYNs one call is enough, because the kernel repeats the SYN. A NAT
that answers RST needs another call, after a *random* pause: two sides that pause equally long can miss each
other for ever (measured: 80 attempts in 4 s with a fixed pause, success within 3 RTT with a random one).
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field

# Below this a refusal would be answered in a busy loop on paths that take microseconds.
SHORTEST_RETRY_SPAN = 0.02

# No route, host down, filtered with an ICMP error: real, but possibly passing. Seconds.
UNREACHABLE_PAUSE = 0.5

# EACCES is what Linux makes of ICMPv6's "administratively prohibited", a firewall's answer (RFC 6092, REC-34).
_REFUSED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EACCES})
_UNREACHABLE = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT}
)
# The kernel has this 4-tuple already: the peer's SYN met our listener on the same port.
_TAKEN = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EISCONN})


@dataclass
class PunchMachine:
    """Tells the driver when to call connect() (again), or that it is over.

    rtt: the estimated round-trip time to the peer in seconds; max_tries bounds the SYNs a peer can make us send.
    """

    rtt: float
    max_tries: int = 64
    rng: random.Random = field(default_factory=random.Random)
    tries: int = 0
    finished: str | None = None
    _next_try: float | None = None

    def start(self, now: float) -> None:
        self._next_try = now

    def next_timeout(self) -> float | None:
        """The absolute time of the next connect(), or None while one is under way or after the end."""
        return None if self.finished else self._next_try

    def connecting(self) -> None:
        """The driver calls connect() now."""
        self.tries += 1
        self._next_try = None

    def failed(self, code: int, now: float) -> None:
        """connect() ended with this errno. Sets either the next time-out or `finished`."""
        if code in _TAKEN:
            self.finished = "the peer's connection came in first"
        elif code not in _REFUSED and code not in _UNREACHABLE:
            self.finished = errno.errorcode.get(code, str(code))
        elif self.tries >= self.max_tries:
            self.finished = f"{self.tries} attempts, last {errno.errorcode.get(code, str(code))}"
        elif code in _REFUSED:
            self._next_try = now + self.rng.uniform(0, max(self.rtt, SHORTEST_RETRY_SPAN))
        else:
            self._next_try = now + UNREACHABLE_PAUSE + self.rng.uniform(0, max(self.rtt, SHORTEST_RETRY_SPAN))
