"""The resolver functions over `.ntcp` names; everything else goes to the system untouched."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import ntcpsock
from ntcpsock import _names, _resolver

NUMBER = _names.number("alice")


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only answers are looked at; nobody has to listen there."""
    monkeypatch.setattr(_resolver, "_open", lambda label, port: None)


@pytest.mark.parametrize("name", ["alice.ntcp", "ALICE.ntcp", "alice.NTCP.", b"alice.ntcp", b"Alice.NTCP"])
def test_every_spelling_is_one_name(name: Any) -> None:
    assert ntcpsock.getaddrinfo(name, 80, type=socket.SOCK_STREAM) == [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (NUMBER, 80))
    ]


def test_answers_have_the_system_s_form() -> None:
    plain = socket.getaddrinfo("127.0.0.1", "http", 0, socket.SOCK_STREAM)
    named = ntcpsock.getaddrinfo("alice.ntcp", "http", 0, socket.SOCK_STREAM)
    assert [entry[:4] for entry in named] == [entry[:4] for entry in plain]
    assert isinstance(named[0][0], socket.AddressFamily)
    assert len(ntcpsock.getaddrinfo("alice.ntcp", 80)) == len(socket.getaddrinfo("127.0.0.1", 80))


def test_ipv6_asked_for_is_the_mapped_form() -> None:
    [entry] = ntcpsock.getaddrinfo("alice.ntcp", 80, socket.AF_INET6, socket.SOCK_STREAM)
    assert entry[0] == socket.AF_INET6
    assert entry[4] == (f"::ffff:{NUMBER}", 80, 0, 0)
    assert _names.label_of(entry[4][0]) == "alice"


def test_flags() -> None:
    with pytest.raises(socket.gaierror) as caught:
        ntcpsock.getaddrinfo("alice.ntcp", 80, flags=socket.AI_NUMERICHOST)
    assert caught.value.errno == socket.EAI_NONAME
    assert ntcpsock.getaddrinfo(NUMBER, 80, flags=socket.AI_NUMERICHOST)
    entries = ntcpsock.getaddrinfo("alice.ntcp", 80, flags=socket.AI_CANONNAME)
    assert [entry[3] for entry in entries] == ["alice.ntcp", "", ""]
    assert ntcpsock.getaddrinfo("alice.ntcp", 80, flags=socket.AI_ADDRCONFIG | socket.AI_PASSIVE)
    with pytest.raises(socket.gaierror):
        ntcpsock.getaddrinfo("alice.ntcp", "no-such-service")


@pytest.mark.parametrize("name", ["-.ntcp", "a b.ntcp", ".ntcp", "a..ntcp", f"{'a' * 64}.ntcp", "ä.ntcp"])
def test_what_cannot_be_a_name_does_not_resolve(name: str) -> None:
    # Empty and too long labels cannot even be asked for.
    unspeakable = name.startswith(".") or ".." in name or len(name) > 64
    with pytest.raises(UnicodeError if unspeakable else socket.gaierror) as caught:
        ntcpsock.getaddrinfo(name, 80)
    assert getattr(caught.value, "errno", socket.EAI_NONAME) == socket.EAI_NONAME
    with ntcpsock.NTCPSocket() as client, pytest.raises(socket.gaierror):
        client.connect((name, 80))


def test_the_old_functions() -> None:
    assert ntcpsock.gethostbyname("alice.ntcp") == NUMBER
    assert ntcpsock.gethostbyname_ex("alice.ntcp") == ("alice.ntcp", [], [NUMBER])
    assert ntcpsock.gethostbyaddr(NUMBER) == ("alice.ntcp", [], [NUMBER])
    assert ntcpsock.gethostbyaddr("alice.ntcp") == ("alice.ntcp", [], [NUMBER])
    assert ntcpsock.getfqdn("alice.ntcp") == "alice.ntcp"
    assert ntcpsock.getfqdn(NUMBER) == "alice.ntcp"


def test_getnameinfo_turns_numbers_back() -> None:
    assert ntcpsock.getnameinfo((NUMBER, 80), 0) == ("alice.ntcp", "http")
    assert ntcpsock.getnameinfo((NUMBER, 80), socket.NI_NUMERICSERV) == ("alice.ntcp", "80")
    assert ntcpsock.getnameinfo((NUMBER, 80), socket.NI_NUMERICHOST) == (NUMBER, "http")
    assert ntcpsock.getnameinfo((f"::ffff:{NUMBER}", 80, 0, 0), 0) == ("alice.ntcp", "http")


def test_everything_else_is_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ntcpsock.getaddrinfo("127.0.0.1", 80) == socket.getaddrinfo("127.0.0.1", 80)
    assert ntcpsock.getaddrinfo(None, 80) == socket.getaddrinfo(None, 80)
    assert ntcpsock.getaddrinfo(b"localhost", "80") == socket.getaddrinfo(b"localhost", "80")
    assert ntcpsock.gethostbyname("127.0.0.1") == "127.0.0.1"
    assert ntcpsock.getnameinfo(("127.0.0.1", 80), 3) == socket.getnameinfo(("127.0.0.1", 80), 3)
    assert ntcpsock.getnameinfo(("127.64.0.3", 80), socket.NI_NUMERICHOST) == ("127.64.0.3", "http")
    for bad in (5, ["alice.ntcp"], object()):
        with pytest.raises(TypeError):
            ntcpsock.getaddrinfo(bad, 80)
    with pytest.raises(TypeError):
        ntcpsock.getnameinfo("alice.ntcp", 0)
    # It takes numbers only, as the system's does.
    with pytest.raises(socket.gaierror):
        ntcpsock.getnameinfo(("alice.ntcp", 80), 0)
    entries = ntcpsock.getaddrinfo(NUMBER, 80, flags=socket.AI_CANONNAME)
    assert [entry[3] for entry in entries] == [NUMBER, "", ""]
    assert ntcpsock.getaddrinfo(NUMBER.encode(), 80, flags=socket.AI_NUMERICHOST)


def test_a_number_that_was_never_given_out_is_an_address() -> None:
    assert _names.label_of("127.64.0.3") is None
    assert _names.label_of("127.0.0.1") is None
    assert _names.label_of_address(("alice.ntcp",)) is None
    assert _names.label_of_address("/run/socket") is None
