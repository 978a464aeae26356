"""What a STUN answer says about us, if it may be believed at all (pure)."""

from __future__ import annotations

import ipaddress

from ntcpsock._address import Endpoint
from ntcpsock._traversal.discovery.evidence import Outcome, Probe
from ntcpsock._traversal.stun.attributes import (
    MappedAddress,
    OtherAddress,
    ResponseOrigin,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.connect_back import ConnectBack
from ntcpsock._traversal.stun.machine import Event, Failed, Succeeded
from ntcpsock._traversal.stun.usages import Padding


def outcome_of_event(
    probe: Probe, event: Event, local: Endpoint | None, source: Endpoint | None, seconds: float
) -> Outcome:
    """The outcome that a finished transaction means. `source`: who answered, as the kernel says."""
    if isinstance(event, Failed):
        reason = _printable(event.reason)
        text = f"error {event.code} {reason}".strip() if event.code else reason
        return Outcome(probe, "error", local=local, source=source, text=text, seconds=seconds)
    if not isinstance(event, Succeeded):
        return Outcome(probe, "silence", local=local, seconds=seconds)
    response = event.response
    # The masked one wins: some NATs rewrite every address that they find in a packet (RFC 8489 section 14.2).
    mapped = (
        response.get(XorMappedAddress) or response.get(MappedAddress) or MappedAddress(_NOWHERE)
    ).endpoint
    if not _believable(mapped, probe.server):
        return Outcome(probe, "error", local=local, text=f"it says that we are {mapped}", seconds=seconds)
    other, padding, back = response.get(OtherAddress), response.get(Padding), response.get(ConnectBack)
    origin = response.get(ResponseOrigin)
    if back is not None:
        source = None if origin is None else origin.endpoint
    return Outcome(
        probe,
        "answered",
        local=local,
        mapped=mapped,
        source=source,
        other=None if other is None else other.endpoint,
        connect_back=None if back is None else back.outcome,
        size=0 if padding is None else len(padding.value),
        seconds=seconds,
    )


_NOWHERE = Endpoint("0.0.0.0", 0)
_LONGEST_REASON = 60


def _printable(text: str) -> str:
    """A server's words, as they may be shown on a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text.rstrip("\0")[:_LONGEST_REASON])


def _believable(mapped: Endpoint, server: Endpoint) -> bool:
    """Whether `mapped` can be our endpoint as `server` sees it."""
    address, seen_by = ipaddress.ip_address(mapped.host), ipaddress.ip_address(server.host)
    return (
        mapped.port > 0
        and address.version == seen_by.version
        and not address.is_unspecified
        and not address.is_multicast
        and address.is_loopback == seen_by.is_loopback
    )
