"""What open connections will survive, from here and with these settings (pure)."""

from __future__ import annotations

from ntcpsock._config import Config
from ntcpsock._diagnosis import BrokerState, Survival, Verdict

ADDRESS = "another address, another network"
MAPPINGS = "a router that forgets, or restarts"
SILENCE = "a network that is gone for a while"
RELAY = "a relay that dies"
BROKER = "a broker that dies"
PROCESS = "the program at the other end restarts"


def survivals(config: Config, broker: BrokerState) -> tuple[Survival, ...]:
    """What is to be expected, if the other end has such settings too. Moving takes a new meeting of both ends: over the
    connection itself while it has a path, else by way of the broker."""
    first = (
        _moving(ADDRESS, config, broker),
        _moving(MAPPINGS, config, broker),
        _silence(config, broker),
        _relay(config, broker),
    )
    return (
        *first,
        Survival(BROKER, "yes", "connections go on without it, and move as long as one of their paths lives"),
        Survival(PROCESS, "no", "what it had not written down is lost: no connection survives that"),
    )


def _why_not(config: Config) -> str:
    """Why connections of this node die with their path; empty where they do not."""
    if config.encryption == "off":
        return 'encryption="off": a connection is one TCP connection, and ends with its path'
    if not config.linger:
        return "linger=0: a connection ends with its path"
    return ""


def _moving(event: str, config: Config, broker: BrokerState) -> Survival:
    if why := _why_not(config):
        return Survival(event, "no", why)
    if broker.address is None:
        return Survival(event, "unknown", "no broker was given: both ends meet there again")
    if not broker.reached:
        why = f"only if the broker is back within {config.linger:g} s: both ends meet there again"
        return Survival(event, "perhaps", why)
    if _has_relay(config, broker):
        return Survival(event, "yes", "by whatever path there is then, the relay at worst")
    return Survival(
        event, "perhaps", f"if a direct path is found within {config.linger:g} s: {_no_relay(config)}"
    )


def _silence(config: Config, broker: BrokerState) -> Survival:
    if _why_not(config):
        return Survival(SILENCE, "perhaps", "as plain TCP does: the kernel sends again, for minutes")
    verdict: Verdict = "unknown" if broker.address is None else "yes" if broker.reached else "perhaps"
    return Survival(
        SILENCE, verdict, f"for up to {config.linger:g} s (linger), and no longer than the other end waits"
    )


def _relay(config: Config, broker: BrokerState) -> Survival:
    if why := _why_not(config):
        return Survival(RELAY, "no", why)
    if not _has_relay(config, broker):
        return Survival(RELAY, "yes", f"no connection goes by way of one: {_no_relay(config)}")
    if broker.relays + len(config.turn) > 1:
        return Survival(RELAY, "yes", "by way of another one, or directly")
    return Survival(
        RELAY, "perhaps", f"directly, or if it is back within {config.linger:g} s: there is no other one"
    )


def _has_relay(config: Config, broker: BrokerState) -> bool:
    usable = config.usable_techniques
    return ("relay" in usable and broker.relays > 0) or ("turn" in usable and bool(config.turn))


def _no_relay(config: Config) -> str:
    if not {"relay", "turn"} & set(config.usable_techniques):
        return "relays are not allowed here"
    return "the broker has no relay"
