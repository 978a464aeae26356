"""Notions about NATs: a profile out of what was observed (RFC 4787 section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from ntcpsock._address import Endpoint
from ntcpsock._traversal.punch.message import NATProfile


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
