"""What the router says about port mapping, without a mapping being made: for `ntcp doctor` and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from ntcpsock._traversal.mapping import protocols_of, words
from ntcpsock._traversal.nat import ExternalVerdict, judge_external_address
from ntcpsock._traversal.portmap.driver import RouterProtocol
from ntcpsock._traversal.portmap.gateway import NoGateway, default_gateway


@dataclass(frozen=True, slots=True)
class PortMappingProbe:
    """One router's word.

    gateway: its address, or None; then `reason` says why it is not known, and nobody was asked.
    external: by each protocol that it speaks ("pcp", "nat-pmp", "upnp") its external address, None where the
    protocol tells that with a mapping only.
    failures: for each other protocol why it cannot be used, in words.
    verdict: of `judge_external_address` on the external address; None where none is known.
    """

    gateway: str | None
    reason: str | None
    external: dict[str, str | None]
    failures: dict[str, str]
    verdict: ExternalVerdict | None


async def probe_port_mapping(
    seen: Sequence[str] = (), protocols: Sequence[RouterProtocol] | None = None
) -> PortMappingProbe:
    """Ask the default gateway which protocols it speaks. Takes about a second; cancelling is safe.

    seen: the public addresses as which STUN servers see us, for the verdict. protocols: what to ask instead of the
    default gateway's.
    """
    gateway = reason = None
    try:
        gateway = default_gateway()
    except NoGateway as error:
        reason = words(error)
    if protocols is None:
        protocols = [] if gateway is None else protocols_of(gateway)
    external: dict[str, str | None] = {}
    failures: dict[str, str] = {}

    async def ask(protocol: RouterProtocol) -> None:
        try:
            external[protocol.name] = await protocol.probe()
        except OSError as error:
            failures[protocol.name] = words(error)

    async with trio.open_nursery() as nursery:
        for protocol in protocols:
            nursery.start_soon(ask, protocol)
    address = next(filter(None, external.values()), None)
    verdict = None if address is None else judge_external_address(address, seen)
    return PortMappingProbe(gateway, reason, external, failures, verdict)
