"""Routers that map ports when a host behind asks.

with open_lab("random", "random") as lab, port_mapper(lab.nat_a, ["pcp"]) as mapper:
    lab.host_a.run([...])
    print(mapper.mappings())
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Protocol

from ntcpsock.testing.natlab.kinds import NatKind
from ntcpsock.testing.natlab.miniupnpd import Miniupnpd
from ntcpsock.testing.natlab.namespace import LabUnavailable
from ntcpsock.testing.natlab.place import MappedPort, Router
from ntcpsock.testing.natlab.soft_mapper import SoftMapper

PROTOCOLS = ("upnp", "nat-pmp", "pcp")


class PortMapper(Protocol):
    """What `port_mapper` lends."""

    def mappings(self) -> list[MappedPort]:
        """The mappings in force."""
        ...

    def asked(self) -> int:
        """How many packets have come from inside to the ports of the protocols."""
        ...

    def restart(self) -> None:
        """Forget every mapping and count the epoch anew, as a router does that was switched off and on."""
        ...

    @property
    def log(self) -> str:
        """What the daemon has said, where there is one."""
        ...


@contextlib.contextmanager
def port_mapper(
    router: Router, protocols: Collection[str] = PROTOCOLS, *, external: str | None = None
) -> Iterator[PortMapper]:
    """Have `router` map ports for the time of the block.

    router: of the Linux engine it gets a miniupnpd, which behind a carrier's NAT speaks and refuses; of the other
    one it gets NAT-PMP for TCP, and no other protocol. protocols: which of "upnp", "nat-pmp" and "pcp" it speaks; to
    the others it is silent. external: the address that it tells, instead of its own.

    Raises ValueError for a router or a protocol that does not fit, LabUnavailable where miniupnpd is missing.
    """
    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"unknown protocol {', '.join(sorted(unknown))}: {', '.join(PROTOCOLS)}")
    if not router.kind.translates:
        raise ValueError(f"{router.name} is no NAT: there is nothing to map")
    if isinstance(router.kind, NatKind):
        daemon = Miniupnpd(router, protocols, external)
        with contextlib.closing(daemon):
            daemon.start()
            yield daemon
    elif "nat-pmp" not in protocols:
        raise ValueError(f"{router.name} is a user-space router, which speaks NAT-PMP alone")
    else:
        with contextlib.closing(_soft_mapper(router, external)) as soft:
            yield soft


def _soft_mapper(router: Router, external: str | None) -> SoftMapper:
    lab = router._lab
    assert lab is not None

    def forward(port: int, inner: tuple[str, int] | None) -> None:
        with contextlib.suppress(LabUnavailable):  # the lab is at its end
            lab._forward(router, port, inner)

    return SoftMapper(router.namespace, lab._gateway(router), external or router.public_address, forward)
