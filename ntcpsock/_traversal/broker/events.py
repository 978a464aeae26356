"""What the client machine tells its driver, and the driver its user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ntcpsock._traversal.broker.message import Deliver, FromBroker, Reason, Welcome


@dataclass(frozen=True, slots=True)
class KeyShown:
    """The broker named its key. Pin or compare it, then call `accept_key`."""

    key: bytes


@dataclass(frozen=True, slots=True)
class WrongKeyShown:
    """Nobody answers under the expected key, and a KeyReply names this one. It is a hint, not a proof."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    """A session is open; requests that waited are on their way. Comes again after each new session."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Rejected:
    """The broker gives us no session. The machine asks again, after a while."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class RelaysChanged:
    """The broker tells of other relays, or of another load."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The broker has welcomed us on the other way, and sends there from now on. The session goes on."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session is gone; the machine is already greeting again.

    `silent`: the broker stopped to answer, so the path may be dead. Else it answers, but knows us no more.
    """

    silent: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The broker's answer to a request."""

    request: int
    body: FromBroker


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No answer to a request within its time."""

    request: int


@dataclass(frozen=True, slots=True)
class RegistrationLost:
    """A new session, and the broker refuses what it had accepted in the one before."""

    reason: Reason
    name: str | None


@dataclass(frozen=True, slots=True)
class Delivered:
    """Another node's offer or answer."""

    message: Deliver


Event = (
    KeyShown
    | WrongKeyShown
    | Connected
    | Rejected
    | RelaysChanged
    | Moved
    | Disconnected
    | Answered
    | TimedOut
    | RegistrationLost
    | Delivered
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Another node's sealed offer or answer. The broker vouches for the sender's key and name; or it came over a
    stream that the two nodes have, and is answered there."""

    sender: bytes
    sender_instance: bytes
    sender_name: str | None
    sealed: bytes
    #: The address at which the broker sees the sender, or "".
    observed_host: str = ""
    #: Further addresses that the sender has proved to the broker.
    also_observed: tuple[str, ...] = ()
    #: Sends a sealed answer by that stream, whose carrier may have gone; None: it came by way of the broker.
    answer: Callable[[bytes], bool] | None = None


@dataclass(frozen=True, slots=True)
class Introduction:
    """The node that got our offer. `card` None: it is private, wait for its answer."""

    key: bytes
    instance: bytes
    card: bytes | None
    #: The address at which the broker sees that node, or "".
    observed_host: str = ""
    #: Further addresses that the node has proved to the broker.
    also_observed: tuple[str, ...] = ()
    #: Our ticket to a relay, and the one to pass on to that node; None where the broker has no relay.
    tickets: tuple[bytes, bytes] | None = None
