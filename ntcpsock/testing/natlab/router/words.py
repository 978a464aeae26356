"""Behaviours spelled out: `apdm+adf+sequential=2+udp:eim+hairpin=external`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Behaviour,
    Filtering,
    Hairpin,
    Mapping,
    OnError,
    Opening,
    Outward,
    SequenceCheck,
    StrayAnswer,
)

_BOTH: dict[str, dict[str, Any]] = {
    **{word.value: {"mapping": word} for word in Mapping},
    **{word.value: {"filtering": word} for word in Filtering},
    **{word.value: {"allocation": word} for word in Allocation},
    **{word.value: {"answer": word} for word in StrayAnswer},
    "hairpin": {"hairpin": Hairpin.EXTERNAL},
    **{f"hairpin={word.value}": {"hairpin": word} for word in Hairpin},
    "icmp-kills": {"icmp_error": OnError.KILLS},
}
_UDP: dict[str, dict[str, Any]] = {"refresh-out": {"refreshed_from_outside": False}}
_TCP: dict[str, dict[str, Any]] = {
    "rst-kills": {"rst": OnError.KILLS},
    "conntrack": {"sequence_check": SequenceCheck.CONNTRACK},
    **{word.value: {"opening": word} for word in Opening},
}
_ARGUMENTS = {
    "preserving": "offset",
    "sequential": "delta",
    "band": "band",
    "per-session": "band",
}
_UDP_SECONDS = ("idle", "unreplied")
_TCP_SECONDS = ("transitory", "established")

WORDS = ", ".join(
    ["firewall", *(o.value for o in Outward if o is not Outward.ALL), *_BOTH, *_UDP, *_TCP]
    + [f"{name}=N" for name in (*_ARGUMENTS, *_UDP_SECONDS, *_TCP_SECONDS, "lifetime")]
)


def parse_behaviour(text: str, start: Behaviour | None = None) -> Behaviour:
    """The behaviour that words joined by `+` describe, beginning with `start` (default: `Behaviour()`).

    `udp:` or `tcp:` before a word limits it to that protocol. Raises ValueError for an unknown word.
    """
    behaviour = start or Behaviour()
    for part in text.split("+"):
        scope, colon, word = part.rpartition(":")
        if colon and scope not in ("udp", "tcp"):
            raise ValueError(f"{part!r}: only udp: or tcp: may stand before a word")
        behaviour = _apply(behaviour, scope, word)
    return replace(behaviour, name=text if start is None else f"{start.name}+{text}")


def _apply(behaviour: Behaviour, scope: str, word: str) -> Behaviour:
    if not scope:
        if word == "firewall":
            return replace(behaviour, translates=False)
        if word in {outward.value for outward in Outward}:
            return replace(behaviour, outward=Outward(word))
        if word.startswith("lifetime="):
            return replace(behaviour, lifetime=_number(word, float))
    udp = None if scope == "tcp" else _fields(word, _UDP, _UDP_SECONDS)
    tcp = None if scope == "udp" else _fields(word, _TCP, _TCP_SECONDS)
    if udp is None and tcp is None:
        raise ValueError(f"unknown word {word!r} in a NAT's behaviour: one of {WORDS}")
    return replace(
        behaviour, udp=replace(behaviour.udp, **udp or {}), tcp=replace(behaviour.tcp, **tcp or {})
    )


def _fields(word: str, own: dict[str, dict[str, Any]], seconds: tuple[str, ...]) -> dict[str, Any] | None:
    known = _BOTH.get(word) or own.get(word)
    if known is not None:
        return known
    name, equals, _ = word.partition("=")
    if equals and name in seconds:
        return {name: _number(word, float)}
    if equals and name in _ARGUMENTS:
        return {"allocation": Allocation(name), _ARGUMENTS[name]: _number(word, int)}
    return None


_N = TypeVar("_N", int, float)


def _number(word: str, kind: type[_N]) -> _N:
    name, _, value = word.partition("=")
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{word!r}: {name} takes a number") from None
