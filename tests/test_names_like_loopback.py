"""Each question about a name is answered as the system answers it about a loopback address, for every combination of
families, types, protocols, flags and services."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ntcpsock
from ntcpsock import _names, _portal, _resolver

NUMBER = _names.number("alice")
LIKE = "127.9.9.9"  # what the system is asked about
MAPPED = {NUMBER: LIKE, f"::ffff:{NUMBER}": f"::ffff:{LIKE}"}

FAMILIES = (0, socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 999)
TYPES = (0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, 99)
PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP)
PORTS: tuple[Any, ...] = (
    *(None, 0, 80, 65535, 65536, -1, 2**70, True),
    *("80", b"80", "http", b"http", "domain", "no-such-service", "", "65536", "-1", 2.5, [80]),
)
FLAGS = (
    0,
    socket.AI_PASSIVE,
    socket.AI_NUMERICSERV,
    socket.AI_ADDRCONFIG,
    socket.AI_V4MAPPED | socket.AI_ALL,
    socket.AI_PASSIVE | socket.AI_NUMERICSERV | socket.AI_ADDRCONFIG,
    0x8000000,
)


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers alone are compared."""
    for opens_a_gate in ("_open", "_open_for_datagrams"):
        monkeypatch.setattr(_resolver, opens_a_gate, lambda label, port: None)
    before = _portal.current()
    yield
    assert _portal.current() is before


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the type, number and text of its error."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), getattr(error, "errno", None), str(error)


def as_like(answers: Any) -> Any:
    if not isinstance(answers, list):
        return answers
    return [(*entry[:4], (MAPPED.get(entry[4][0], entry[4][0]), *entry[4][1:])) for entry in answers]


def like(family: int) -> str:
    # AF_INET6 gets the mapped form of a name's number.
    return f"::ffff:{LIKE}" if family == socket.AF_INET6 else LIKE


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_getaddrinfo(family: int, flags: int) -> None:
    for port, kind, protocol in itertools.product(PORTS, TYPES, PROTOCOLS):
        # What AI_ADDRCONFIG leaves out depends on the host's interfaces, and a name's path is none of them.
        # (`~` of the enumeration's member would drop the bits that it does not know.)
        asked = flags & ~int(socket.AI_ADDRCONFIG)
        expected = outcome(socket.getaddrinfo, like(family), port, family, kind, protocol, asked)
        found = outcome(ntcpsock.getaddrinfo, "alice.ntcp", port, family, kind, protocol, flags)
        assert as_like(found) == expected, (port, kind, protocol)


def test_entries_have_the_system_s_types() -> None:
    [entry] = ntcpsock.getaddrinfo("alice.ntcp", 80, type=socket.SOCK_STREAM)
    [plain] = socket.getaddrinfo(LIKE, 80, type=socket.SOCK_STREAM)
    assert [type(part) for part in entry] == [type(part) for part in plain]


def test_keywords_and_their_absence() -> None:
    for arguments, keywords in (
        ((), {"host": LIKE, "port": 80, "family": socket.AF_INET, "type": 1, "proto": 6, "flags": 0}),
        ((LIKE,), {}),
        ((LIKE, 80, 0, 0, 0, 0, 0), {}),
        ((LIKE, 80), {"nothing": 1}),
    ):
        named = tuple("alice.ntcp" if part == LIKE else part for part in arguments)
        named_keywords = {key: "alice.ntcp" if part == LIKE else part for key, part in keywords.items()}
        expected = outcome(lambda a=arguments, k=keywords: socket.getaddrinfo(*a, **k))
        found = outcome(lambda a=named, k=named_keywords: ntcpsock.getaddrinfo(*a, **k))
        if isinstance(expected, list):
            assert as_like(found) == expected
        else:
            assert found[0] is expected[0] is TypeError


@pytest.mark.parametrize("name", ["alice.ntcp", "ALICE.Ntcp.", b"alice.ntcp"])
def test_canonical_and_numeric(name: Any) -> None:
    for kind in (0, socket.SOCK_STREAM):
        entries = ntcpsock.getaddrinfo(name, 80, type=kind, flags=socket.AI_CANONNAME)
        assert [entry[3] for entry in entries] == ["alice.ntcp"] + [""] * (len(entries) - 1)
    assert outcome(ntcpsock.getaddrinfo, name, 80, 0, 0, 0, socket.AI_NUMERICHOST) == outcome(
        socket.getaddrinfo, "localhost", 80, 0, 0, 0, socket.AI_NUMERICHOST
    )


@pytest.mark.parametrize(
    "host", [bytearray(b"alice.ntcp"), memoryview(b"alice.ntcp"), 5, ["alice.ntcp"], 1.5]
)
def test_what_is_no_host_is_no_host(host: Any) -> None:
    like_host = bytearray(b"localhost") if isinstance(host, bytearray) else host
    for ours, systems in (
        (ntcpsock.getaddrinfo, socket.getaddrinfo),
        (ntcpsock.gethostbyname, socket.gethostbyname),
        (ntcpsock.gethostbyname_ex, socket.gethostbyname_ex),
        (ntcpsock.gethostbyaddr, socket.gethostbyaddr),
    ):
        arguments = (80,) if ours is ntcpsock.getaddrinfo else ()
        expected = outcome(systems, like_host, *arguments)
        found = outcome(ours, host, *arguments)
        if isinstance(expected, tuple) and isinstance(expected[0], type):
            assert found == expected
        else:
            assert type(found) is type(expected)


@pytest.mark.parametrize("further", [False, True])
def test_a_number_is_a_number(further: bool) -> None:
    """Whatever it stands for; a further number of a name, too."""
    number = _names.table.another("alice", 1) if further else NUMBER
    flags = (0, socket.AI_NUMERICHOST, socket.AI_CANONNAME, socket.AI_V4MAPPED)
    for host in (number, f"::ffff:{number}", number.encode()):
        for family, flag in itertools.product((0, socket.AF_INET, socket.AF_INET6), flags):
            question = (host, 80, family, 0, 0, flag)
            assert outcome(ntcpsock.getaddrinfo, *question) == outcome(socket.getaddrinfo, *question)
    for ours, systems in (
        (ntcpsock.gethostbyname, socket.gethostbyname),
        (ntcpsock.gethostbyname_ex, socket.gethostbyname_ex),
    ):
        assert outcome(ours, number) == outcome(systems, number)
    assert _names.label_of(number) == "alice"
    assert ntcpsock.gethostbyaddr(number)[0] == "alice.ntcp"
    assert ntcpsock.getnameinfo((number, 80), socket.NI_NUMERICHOST) == (number, "http")


@pytest.mark.parametrize("rest", [(80,), (80, 0, 0), (80, 0), (), ("80",), (80, 0, 0, 0), (70000,), (-1,)])
@pytest.mark.parametrize("form", ["{}", "::ffff:{}"])
def test_getnameinfo(form: str, rest: tuple[Any, ...]) -> None:
    for flags in (
        socket.NI_NUMERICHOST,
        socket.NI_NUMERICHOST | socket.NI_NUMERICSERV,
        socket.NI_NUMERICHOST | socket.NI_DGRAM,
    ):
        expected = outcome(socket.getnameinfo, (form.format(LIKE), *rest), flags)
        found = outcome(ntcpsock.getnameinfo, (form.format(NUMBER), *rest), flags)
        if isinstance(expected[0], str):
            found = (MAPPED.get(found[0], found[0]), found[1])
            assert ntcpsock.getnameinfo((form.format(NUMBER), *rest), flags & ~socket.NI_NUMERICHOST) == (
                "alice.ntcp",
                expected[1],
            )
        assert found == expected


def test_a_name_that_is_required_is_there() -> None:
    assert ntcpsock.getnameinfo((NUMBER, 80), socket.NI_NAMEREQD) == ("alice.ntcp", "http")
    with pytest.raises(TypeError):
        ntcpsock.getnameinfo((NUMBER.encode(), 80), 0)
