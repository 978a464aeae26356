"""What the techniques over UDP share: a path out of a port and what is to be checked, and a carrier out of that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from ntcpsock._session.carrier import Carrier
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._traversal.checks.driver import PunchedPath
from ntcpsock._traversal.checks.machine import CONSENT_INTERVAL, TA, ChecksMachine
from ntcpsock._traversal.checks.message import Credentials
from ntcpsock._traversal.checks.port import UdpPort
from ntcpsock._traversal.datagram_plan import DatagramPlan
from ntcpsock._traversal.nominate import Role
from ntcpsock._traversal.prediction import Prediction

#: Makes an authenticated carrier out of a path, and closes the path when it raises OSError. The leader has proven the
#: follower's key then; the follower has seen the dial's token.
AuthenticatePath = Callable[[PunchedPath], Awaitable[Carrier | BareRoad]]


def _unheard(_: Prediction, __: Prediction) -> None:
    pass


@dataclass(frozen=True)
class DatagramAccess:
    """What an attempt over UDP needs beside its plan.

    take_port: gives the port, of which the path takes care from there on; None where it is gone. nursery: of the
    node, for the tasks of a path that is used; trusted: hosts at which the peer is known to be; birthday_sockets,
    birthday_rate: as in the configuration. opened: called with the path of the direct technique and its port when the
    checks are under way, by who may have more to check; agreed: called with both sides' predictions, ours first.
    """

    plan: DatagramPlan | None
    credentials: Credentials
    take_port: Callable[[], UdpPort | None]
    nursery: trio.Nursery
    authenticate: AuthenticatePath
    trusted: Sequence[str] = ()
    port_is_ours: bool = True
    consent_interval: float = CONSENT_INTERVAL
    birthday_sockets: int = 256
    birthday_rate: float = 250.0
    opened: Callable[[PunchedPath, UdpPort], None] | None = None
    agreed: Callable[[Prediction, Prediction], None] = _unheard

    def new_machine(self, role: Role, rtt: float, pace: float = TA) -> ChecksMachine:
        """The checks of this dial, with nothing to check yet."""
        return ChecksMachine(
            self.credentials,
            controlling=role == "leader",
            now=trio.current_time(),
            rtt=rtt,
            pace=pace,
            trusted=self.trusted,
            consent_interval=self.consent_interval,
        )

    def open_path(self, port: UdpPort, role: Role, rtt: float) -> PunchedPath:
        """A path whose checks are under way, those of the plan."""
        assert self.plan is not None, "the plan of the direct technique"
        machine = self.new_machine(role, rtt)
        now = trio.current_time()
        for preference, target in enumerate(self.plan.targets):
            base = port.base_for(target.remote)
            if base is not None:
                machine.add_pair(
                    base,
                    target.remote,
                    now=now,
                    kind=target.kind,
                    preference=65535 - preference,
                    tries=target.tries,
                    delay=target.delay,
                    low_for=target.low_for,
                )
        guesses = [
            (base, remote) for remote in self.plan.guesses if (base := port.base_for(remote)) is not None
        ]
        path = PunchedPath(
            port,
            machine,
            self.credentials.local_fragment,
            guesses=guesses if role == "leader" else (),
            rtt=rtt,
            port_is_ours=self.port_is_ours,
        )
        self.run(port, path)
        if self.opened is not None:
            self.opened(path, port)
        return path

    def run(self, port: UdpPort, path: PunchedPath) -> None:
        """Start a path and its tasks."""
        path.start()
        if not port.watch():
            self.nursery.start_soon(port.run)
        self.nursery.start_soon(path.run)
