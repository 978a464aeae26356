"""Notions about candidates: which are public, which may be dialled, how a pair is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from ntcpsock._address import Endpoint, is_private_address, may_be_dialled, site_of
from ntcpsock._traversal.punch.message import MAX_CANDIDATES_OF_TRANSPORT, Candidate, Transport

DirectTechnique = Literal["public", "lan", "ipv6", "port-mapped", "tcp-open"]
DIRECT_TECHNIQUES: tuple[DirectTechnique, ...] = get_args(DirectTechnique)


def is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def usable_candidates(
    candidates: Iterable[Candidate], transport: Transport, *, loopback_allowed: bool
) -> tuple[Candidate, ...]:
    """Those of a peer's candidates that we are ready to send to, without repetitions. (An endpoint that is both
    reflexive and mapped is two: it may be punched to, and connected to.)

    Loopback is a place on *our* machine: a peer may name it only where the broker, too, was reached
    over loopback, so that peer and we are known to share the machine.
    """
    chosen: dict[tuple[Endpoint, bool], Candidate] = {}
    for candidate in candidates:
        local_machine = loopback_allowed and is_loopback(candidate.host)
        if candidate.transport == transport and (local_machine or may_be_dialled(candidate.endpoint)):
            chosen.setdefault((candidate.endpoint, candidate.type == "mapped"), candidate)
    return tuple(chosen.values())[:MAX_CANDIDATES_OF_TRANSPORT]


def ipv4_host(*hosts: str) -> str:
    """The first IPv4 address, or ""."""
    return next((host for host in hosts if host and ":" not in host), "")


def is_public_host(candidate: Candidate) -> bool:
    """Whether the candidate is an interface of the node itself with an IPv4 address that the Internet routes."""
    return (
        candidate.type == "host" and not candidate.endpoint.is_ipv6 and not is_private_address(candidate.host)
    )


def is_public(candidate: Candidate) -> bool:
    """Whether the candidate may be reached from other networks."""
    return not is_private_address(candidate.host)


def has_public_host(candidates: Sequence[Candidate]) -> bool:
    return any(is_public_host(candidate) for candidate in candidates)


def name_of_pair(local: Sequence[Candidate], remote: Candidate) -> DirectTechnique:
    """The technique that a connection between us and `remote` is. Both ends say the same of one connection
    as long as they know each other's candidates."""
    if (remote.type != "mapped" and is_private_address(remote.host)) or _is_on_our_link(local, remote):
        return "lan"
    if remote.endpoint.is_ipv6:
        return "ipv6"
    if is_public_host(remote) or has_public_host(local):
        return "public"
    return "port-mapped" if remote.type == "mapped" or _is_mapped(local) else "tcp-open"


def _is_mapped(local: Sequence[Candidate]) -> bool:
    """Whether all that leaves our port comes from where it is mapped to, as with routers that keep ports."""
    reflexive = {candidate.endpoint for candidate in local if candidate.type == "srflx"}
    return bool(reflexive) and reflexive <= _mapped(local)


def _mapped(candidates: Sequence[Candidate]) -> set[Endpoint]:
    return {candidate.endpoint for candidate in candidates if candidate.type == "mapped"}


def _is_on_our_link(local: Sequence[Candidate], remote: Candidate) -> bool:
    """Whether both have an IPv6 address of one /64: nothing is between them (RFC 4291 section 2.5.1)."""
    return remote.endpoint.is_ipv6 and any(
        candidate.type == "host"
        and candidate.endpoint.is_ipv6
        and site_of(candidate.host) == site_of(remote.host)
        for candidate in local
    )


def name_of_connection(
    local: Sequence[Candidate], remote: Sequence[Candidate], seen: Endpoint
) -> DirectTechnique:
    """The technique of a connection that came in from `seen`, which may be no announced candidate
    (peer-reflexive, RFC 8445 section 7.3.1.3). Where our port is mapped, that is how it came."""
    known = next((candidate for candidate in remote if candidate.endpoint == seen), None)
    name = name_of_pair(local, known or Candidate("prflx", "tcp", seen.host, seen.port))
    return "port-mapped" if name == "tcp-open" and _mapped(local) else name


def may_share_network(local: Sequence[Candidate], remote: Sequence[Candidate]) -> bool:
    """Unless each side has a public face of its own, and they differ, both may be in one network."""
    ours, theirs = _public_faces(local), _public_faces(remote)
    return not ours or not theirs or bool(ours & theirs)


def _public_faces(candidates: Sequence[Candidate]) -> set[str]:
    return {
        candidate.host
        for candidate in candidates
        if (candidate.type == "srflx" or has_public_host([candidate]))
        and not candidate.endpoint.is_ipv6
        and not is_private_address(candidate.host)
    }
