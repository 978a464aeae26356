"""What an operator allows, as the broker asks it: one object, whose parts are replaced while the broker runs."""

from __future__ import annotations

from ntcpsock._servers.bans import BanList
from ntcpsock._servers.policy import Policy
from ntcpsock._servers.quotas import Meters, Quotas
from ntcpsock._traversal.broker.message import Reason, Register


class Gate:
    """Policy, bans and quotas of one broker. Pure: `now` comes in."""

    def __init__(
        self, policy: Policy | None = None, bans: BanList | None = None, quotas: Quotas | None = None
    ) -> None:
        self.bans = bans if bans is not None else BanList()
        self.configure(policy or Policy(), quotas or Quotas())

    def configure(self, policy: Policy, quotas: Quotas) -> None:
        """From now on. What was counted before is forgiven where the quotas are others."""
        self.policy = policy
        if getattr(self, "quotas", None) != quotas:
            self.quotas = quotas
            self._meters = Meters(quotas)

    def is_shut_for(self, host: str) -> bool:
        """Whether an address is banned: nothing of it is looked at."""
        return self.bans.has_networks and self.bans.has_host(host)

    def refuses(self, key: bytes, proof: bytes, broker_key: bytes) -> Reason | None:
        """Why a node gets no session; None: it does."""
        if self.bans.has_key(key):
            return Reason.BANNED
        return self.policy.refuses(key, proof, broker_key)

    def refuses_registration(
        self, key: bytes, host: str, registration: Register, broker_key: bytes, now: float
    ) -> tuple[Reason, str | None] | None:
        """Why a registration is not taken, and for which name; None: it is."""
        if not self._meters.may_register(key, host, now):
            return Reason.OVER_QUOTA, None
        return self.policy.refuses_names(registration.names, key, registration.token, broker_key)

    @property
    def meters_introductions(self) -> bool:
        """Whether there is a quota for them."""
        return self._meters.has_introduce

    def may_introduce(self, key: bytes, host: str, now: float) -> bool:
        """Whether the quotas leave one more introduction."""
        return self._meters.may_introduce(key, host, now)
