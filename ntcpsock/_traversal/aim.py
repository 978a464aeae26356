"""What a peer's word alone may make us send (pure).

A node may name any address in its card or offer: a victim's, ours, the broker's. The broker tells where it sees
the node; everything else is unproven, and gets so few packets that nobody can be harmed through us.
"""

from __future__ import annotations

from collections import Counter

from ntcpsock._address import is_private_address, site_of
from ntcpsock._traversal.plan import UNPROVEN_TRIES, PlannedAttempt

# Checks to one unproven host, or IPv6 /64, in one dial. A private address is a neighbour of ours or nobody; each
# round has a new port of the peer's, so that one lost SYN does not cost the direct way.
CHECKS_OF_PUBLIC_HOST = 1
CHECKS_OF_PRIVATE_HOST = 3

# Unproven hosts in one dial.
MAX_UNPROVEN_HOSTS = 8


class Aim:
    """Counts the checks of one dial that are sent to unproven hosts."""

    def __init__(self) -> None:
        self._checks: Counter[str] = Counter()

    def allows(self, planned: PlannedAttempt) -> bool:
        """Whether the attempt may be made; it counts as made then."""
        if planned.max_tries > UNPROVEN_TRIES:
            return True
        host = planned.remote.host
        site = site_of(host)
        if site not in self._checks and len(self._checks) >= MAX_UNPROVEN_HOSTS:
            return False
        limit = CHECKS_OF_PRIVATE_HOST if is_private_address(host) else CHECKS_OF_PUBLIC_HOST
        if self._checks[site] >= limit:
            return False
        self._checks[site] += 1
        return True
