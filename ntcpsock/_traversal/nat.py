"""Notions about NATs: a profile out of what was observed (RFC 4787 section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ntcpsock._address import Endpoint, is_private_address
from ntcpsock._traversal.punch.message import NATProfile

#: What a mapping at a router's external address is worth: reached by everybody; only from inside the carrier's network,
#: because another NAT comes after the router; nothing, because the world sees us at another address.
ExternalVerdict = Literal["public", "double NAT", "elsewhere"]


def judge_external_address(external: str, seen: Sequence[str]) -> ExternalVerdict:
    """The verdict on the address that a router tells as its own.

    seen: the addresses as which STUN servers see us; without a public one the router is believed.
    """
    if is_private_address(external):
        return "double NAT"
    public = [host for host in seen if not is_private_address(host)]
    return "elsewhere" if public and external not in public else "public"


def profile_from_observations(local: Endpoint, mapped: Sequence[Endpoint]) -> NATProfile:
    """The profile of the NAT between `local` and the servers that saw it as `mapped`.

    One observation cannot tell how mappings vary; two from different servers can.
    """
    if not mapped:
        return NATProfile()
    translated = any(endpoint != local for endpoint in mapped)
    if len(mapped) < 2:
        return NATProfile(translated=translated)
    same = len(set(mapped)) == 1
    return NATProfile(translated, "endpoint-independent" if same else "endpoint-dependent")
