"""A NAT lab in network namespaces: real Linux NATs, real TCP, chosen delays.

    from ntcpsock.testing.natlab import open_lab

    with open_lab("default", "reject", delay=0.025) as lab:
        lab.server.popen(["ntcp", "serve", "--listen", lab.server_addresses[0]])
        lab.host_a.run(["ping", "-c", "1", lab.server_addresses[0]])

It needs Linux, nftables and iproute2, and root, or a user namespace: `unshare -Urnm pytest ...`
(or `reexec_in_user_namespace` in a program of your own).
"""

from ntcpsock.testing.natlab.expectation import Way, expected_direct, gives_ports_sparingly, hairpins
from ntcpsock.testing.natlab.kinds import Answer, NatKind, Translation
from ntcpsock.testing.natlab.lab import Lab, open_lab
from ntcpsock.testing.natlab.link import Link
from ntcpsock.testing.natlab.namespace import (
    LabUnavailable,
    lab_namespaces,
    namespaces_available,
    reexec_in_user_namespace,
    remove_stale,
)
from ntcpsock.testing.natlab.place import Host, MappedPort, Place, Router, RunningCall
from ntcpsock.testing.natlab.port_mapper import PortMapper, port_mapper
from ntcpsock.testing.natlab.presets import PRESETS, parse_kind
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
    TcpBehaviour,
    UdpBehaviour,
)
from ntcpsock.testing.natlab.router.words import parse_behaviour
from ntcpsock.testing.natlab.sighting import Sighting

__all__ = [
    "Allocation",
    "Answer",
    "Behaviour",
    "Filtering",
    "Hairpin",
    "Host",
    "Lab",
    "LabUnavailable",
    "Link",
    "MappedPort",
    "Mapping",
    "NatKind",
    "OnError",
    "Opening",
    "Outward",
    "PRESETS",
    "Place",
    "PortMapper",
    "Router",
    "RunningCall",
    "SequenceCheck",
    "Sighting",
    "StrayAnswer",
    "TcpBehaviour",
    "Translation",
    "UdpBehaviour",
    "Way",
    "expected_direct",
    "gives_ports_sparingly",
    "hairpins",
    "lab_namespaces",
    "namespaces_available",
    "open_lab",
    "parse_behaviour",
    "parse_kind",
    "port_mapper",
    "reexec_in_user_namespace",
    "remove_stale",
]
