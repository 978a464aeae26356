"""What a broker's refusal means to its user, and what he can do."""

from __future__ import annotations

from ntcpsock._errors import BrokerRefused, BrokerUnreachable, ConfigurationError, NameTaken, NTCPError
from ntcpsock._traversal.broker.message import Reason

_ASK = "ask its operator"


def session_refused(broker: str, reason: Reason, node_id: str) -> BrokerRefused:
    """To a hello: there is no session. broker: its address, for the text."""
    match reason:
        case Reason.NOT_ADMITTED:
            text = (
                f"the broker {broker} takes known nodes only: {_ASK} to admit this node, {node_id}, "
                "or for a token, and set broker_token (NTCP_BROKER_TOKEN)"
            )
        case Reason.BAD_TOKEN:
            text = (
                f"the broker {broker} does not know the token in broker_token (NTCP_BROKER_TOKEN): "
                f"check its spelling, or {_ASK} for one that is good now"
            )
        case Reason.BANNED:
            text = f"the broker {broker} has banned this node, {node_id}: {_ASK} why, or use another broker"
        case _:
            text = f"the broker {broker} refuses this node, {node_id} ({reason.name.lower()}): {_ASK}"
    return BrokerRefused(text)


def relay_refused(broker: str, node_id: str) -> BrokerRefused:
    """To a relay that wants to be told to nodes."""
    return BrokerRefused(
        f"the broker {broker} does not take this relay: give it the broker's relay.key (--relay-key), or start the "
        f"broker with --relay-node {node_id} and this relay with --identity"
    )


def registration_refused(broker: str, reason: Reason, name: str | None, node_id: str) -> NTCPError:
    """To a registration; `name` is the one in the way, without suffix."""
    match reason:
        case Reason.NAME_TAKEN:
            return NameTaken(f"{name}.ntcp belongs to another key")
        case Reason.TOO_MANY_NAMES:
            return ConfigurationError(f"{name}.ntcp: this key has as many names as the broker allows")
        case Reason.TOKEN_NEEDED:
            return BrokerRefused(
                f"{name}.ntcp: the broker {broker} gives names to holders of a token: {_ASK} for one, "
                "and set broker_token (NTCP_BROKER_TOKEN)"
            )
        case Reason.BAD_TOKEN:
            return BrokerRefused(
                f"{name}.ntcp: the broker {broker} does not know the token in broker_token "
                f"(NTCP_BROKER_TOKEN): check its spelling, or {_ASK} for one that is good now"
            )
        case Reason.NAME_NOT_YOURS:
            return BrokerRefused(
                f"{name}.ntcp: the broker {broker} has not given this name to this node, {node_id}: "
                f"{_ASK} to, or use the node id in place of a name"
            )
        case Reason.OVER_QUOTA:
            return BrokerUnreachable(
                f"the broker {broker} takes no more registrations of this node or address for now: "
                "try again in a minute"
            )
        case _:
            return BrokerUnreachable("the broker takes no more registrations now")
