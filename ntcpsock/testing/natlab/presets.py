"""Routers by family: exact behaviours under a name, each with the source that they were taken from.

What no source tells keeps the default of `Behaviour`. Makes and versions differ: a preset stands for its family, it
is no statement about one product.
"""

from __future__ import annotations

from dataclasses import replace

from ntcpsock.testing.natlab.kinds import NatKind
from ntcpsock.testing.natlab.router.behaviour import (
    Allocation,
    Behaviour,
    Filtering,
    Hairpin,
    Mapping,
    OnError,
    Outward,
    SequenceCheck,
    StrayAnswer,
    TcpBehaviour,
    UdpBehaviour,
)
from ntcpsock.testing.natlab.router.words import WORDS, parse_behaviour

PRESETS: dict[str, Behaviour] = {}


def _preset(behaviour: Behaviour) -> Behaviour:
    PRESETS[behaviour.name] = behaviour
    return behaviour


LINUX = _preset(
    Behaviour(
        name="linux",
        about="Linux masquerade, INPUT drops",
        udp=UdpBehaviour(idle=120.0, unreplied=30.0),
        tcp=TcpBehaviour(sequence_check=SequenceCheck.CONNTRACK, transitory=120.0, established=432000.0),
    )
)
"""Linux masquerade behind an INPUT chain that drops. Ports are kept whatever the destination, so the mapping is
endpoint-independent as long as none clashes. Source: net/netfilter/nf_conntrack_proto_{tcp,udp}.c (state table, window
check, time-outs), Documentation/networking/nf_conntrack-sysctl.rst."""

OPENWRT = _preset(
    replace(
        LINUX,
        name="openwrt",
        about="OpenWrt as delivered: rejects with RST",
        udp=replace(LINUX.udp, answer=StrayAnswer.RST, hairpin=Hairpin.NONE),
        tcp=replace(LINUX.tcp, answer=StrayAnswer.RST, established=7440.0),
    )
)
"""OpenWrt as delivered: Linux, but the zone `wan` has `option input REJECT`, so a stray SYN gets an RST.
Source: package/network/config/firewall4 (files `firewall.config` and `ruleset.uc`: `reject with tcp reset`);
established time-out of 7440 s: package/kernel/linux/files/sysctl-nf-conntrack.conf."""

MIKROTIK = _preset(
    Behaviour(
        name="mikrotik",
        about="MikroTik RouterOS: Linux with short time-outs",
        udp=UdpBehaviour(idle=180.0, unreplied=10.0),
        tcp=TcpBehaviour(sequence_check=SequenceCheck.CONNTRACK, transitory=60.0, established=86400.0),
    )
)
"""MikroTik RouterOS: Linux' conntrack with short time-outs. Source: RouterOS Reference Manual, section Connection
Tracking (udp-timeout 10 s, udp-stream-timeout 3 min, tcp-syn-sent-timeout 1 min, tcp-established-timeout 1 d)."""

CISCO = _preset(
    Behaviour(
        name="cisco",
        about="Cisco ASA: another TCP port each time, checked",
        udp=UdpBehaviour(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.PRESERVING, idle=120.0
        ),
        tcp=TcpBehaviour(
            allocation=Allocation.PER_SESSION,
            band=32768,
            rst=OnError.KILLS,
            sequence_check=SequenceCheck.CONNTRACK,
            transitory=30.0,
            established=3600.0,
        ),
    )
)
"""Cisco ASA from 9.0 on: TCP gets another port for each connection, whose translation goes the moment it ends; sequence
numbers are checked. Source: ASA Series Firewall CLI Configuration Guide, chapter Network Address Translation
("Per-session PAT": all TCP, the xlate is removed at once) and chapter Connection Settings (embryonic 30 s,
idle 1 h, UDP 2 min). That the check is conntrack's stands for any that knows both numbers; the ASA also
randomises them, which no end notices."""

CGN = _preset(
    Behaviour(
        name="cgn",
        about="carrier NAT after RFC 6888, port blocks",
        udp=UdpBehaviour(
            filtering=Filtering.ENDPOINT_INDEPENDENT,
            allocation=Allocation.BAND,
            hairpin=Hairpin.EXTERNAL,
            idle=120.0,
        ),
        tcp=TcpBehaviour(
            filtering=Filtering.ENDPOINT_INDEPENDENT,
            allocation=Allocation.BAND,
            hairpin=Hairpin.EXTERNAL,
        ),
    )
)
"""A carrier's NAT as RFC 6888 asks for it: RFC 4787 and 5382 in full (endpoint-independent mapping and filtering,
hairpinning), a block of 512 ports for each customer. Source: RFC 6888 REQ-1, REQ-7 (endpoint-independent filtering),
RFC 7422 and the vendors' port block allocation (Junos Carrier Grade NAT Implementation Guide)."""

CGN_SESSION = _preset(
    Behaviour(
        name="cgn-session",
        about="carrier NAT, another port of the block each time",
        udp=UdpBehaviour(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
            allocation=Allocation.BAND,
            band=256,
            hairpin=Hairpin.EXTERNAL,
            idle=60.0,
        ),
        tcp=TcpBehaviour(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
            allocation=Allocation.PER_SESSION,
            band=256,
            hairpin=Hairpin.EXTERNAL,
        ),
    )
)
"""A carrier's NAT without endpoint-independent mapping: a port block for each customer, and another port of it for
each connection, an identical 5-tuple included. Source: measurements of such a carrier in the notes of the program
tcp-multi-transfer (2026: about 251 ports); Junos "CGN Implementation: Best Practices" (mapping is not
endpoint-independent unless configured)."""

MOBILE = _preset(
    Behaviour(
        name="mobile",
        about="mobile carrier, symmetric, random ports",
        udp=UdpBehaviour(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM, idle=30.0),
        tcp=TcpBehaviour(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
            allocation=Allocation.RANDOM,
            transitory=30.0,
            established=1800.0,
        ),
    )
)
"""A mobile carrier of the difficult third: address-and-port-dependent mapping from the whole port range, short
time-outs. Source: Klinec and Matyas, "Traversing Symmetric NAT with Predictable Port Allocation Function"
(a third of mobile providers), Makinen and Nurminen, "Measurements on the Feasibility of TCP NAT Traversal in
Cellular Networks" (NGI 2008; half of six networks refuse TCP from outside)."""

MOBILE_SEQUENTIAL = _preset(
    replace(
        MOBILE,
        name="mobile-sequential",
        about="mobile carrier, symmetric, ports in order",
        udp=replace(MOBILE.udp, allocation=Allocation.SEQUENTIAL),
        tcp=replace(MOBILE.tcp, allocation=Allocation.SEQUENTIAL),
    )
)
"""The same with ports given in order, as the first of these papers and Junos' round-robin pools have it."""

RFC = _preset(
    Behaviour(
        name="rfc",
        about="what RFC 4787 and 5382 require",
        udp=UdpBehaviour(filtering=Filtering.ADDRESS_DEPENDENT, hairpin=Hairpin.EXTERNAL, idle=300.0),
        tcp=TcpBehaviour(
            filtering=Filtering.ADDRESS_DEPENDENT,
            hairpin=Hairpin.EXTERNAL,
        ),
    )
)
"""What RFC 4787 (REQ-1, 5, 8, 9) and RFC 5382 (REQ-1 to 5, 8) require, with the stricter of the permitted filters."""

FULL_CONE = _preset(
    Behaviour(
        name="full-cone",
        about="RFC 3489's full cone",
        udp=UdpBehaviour(filtering=Filtering.ENDPOINT_INDEPENDENT, hairpin=Hairpin.EXTERNAL),
        tcp=TcpBehaviour(filtering=Filtering.ENDPOINT_INDEPENDENT, hairpin=Hairpin.EXTERNAL),
    )
)
"""RFC 3489's full cone: whatever comes to a mapping gets in."""

SYMMETRIC = _preset(
    Behaviour(
        name="symmetric",
        about="RFC 3489's symmetric NAT, ports in order",
        udp=UdpBehaviour(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.SEQUENTIAL),
        tcp=TcpBehaviour(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.SEQUENTIAL),
    )
)
"""RFC 3489's symmetric NAT with ports in order: delta 1 or 2 in nearly all such that Guha and Francis met.
Source: IMC 2005."""

UDP_BLOCKED = _preset(
    replace(LINUX, name="udp-blocked", about="Linux, lets no UDP out", outward=Outward.NO_UDP)
)
"""An office or hotel that lets no UDP out."""

ONLY_443 = _preset(
    replace(LINUX, name="only-443", about="Linux, lets only TCP to port 443 out", outward=Outward.ONLY_443)
)
"""All but TCP to port 443 blocked."""

PROXY_ONLY = _preset(
    replace(
        LINUX,
        name="proxy-only",
        about="Linux, lets nothing out; an HTTP proxy runs on it",
        outward=Outward.PROXY,
    )
)
"""Nothing but an HTTP proxy (CONNECT) on the router: `Router.proxy`."""


def parse_kind(text: str | NatKind | Behaviour) -> NatKind | Behaviour:
    """The kind of router that a text names.

    A real Linux router (`default`, `reject`, `random-reject`, `firewall`...: `NatKind.parse`), a preset (`cgn`), a
    preset changed by words (`cgn+tcp:rst`), or words alone (`apdm+adf+sequential=2`: `parse_behaviour`). Raises
    ValueError for anything else.
    """
    if not isinstance(text, str):
        return text
    if text in PRESETS:
        return PRESETS[text]
    head, plus, rest = text.partition("+")
    if plus and head in PRESETS:
        return parse_behaviour(rest, PRESETS[head])
    try:
        return NatKind.parse(text)
    except ValueError as error:
        try:
            return parse_behaviour(text)
        except ValueError as reason:
            if plus or ":" in text or "=" in text:
                raise
            presets = ", ".join(PRESETS)
            raise ValueError(f"{error}; or a preset: {presets}; or words joined by +: {WORDS}") from reason
