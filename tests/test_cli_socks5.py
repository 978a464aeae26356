"""SOCKS 5 without I/O: the handshakes of RFC 1928 and RFC 1929, in pieces, refused, and damaged."""

from __future__ import annotations

import pytest
from fuzz_support import check_decoder

from ntcpsock._errors import BadMessage
from ntcpsock.cli.socks5 import Machine, Reply, Request, encode_reply

USERS = {"bob": "secret", "carol": "a:b c"}

GREETING = b"\x05\x01\x00"
GREETING_WITH_PASSWORD = b"\x05\x02\x00\x02"
BOB = b"\x01\x03bob\x06secret"
BY_NAME = b"\x05\x01\x00\x03\x0aalice.ntcp\x1f\x40"
BY_IPV4 = b"\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50"
BY_IPV6 = b"\x05\x01\x00\x04" + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x50"


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        (BY_NAME, Request("alice.ntcp", 8000)),
        (BY_IPV4, Request("192.0.2.7", 80)),
        (BY_IPV6, Request("2001:db8::1", 80)),
    ],
)
@pytest.mark.parametrize("with_password", [False, True])
def test_requests_byte_by_byte(message: bytes, request_: Request, with_password: bool) -> None:
    machine = Machine(USERS if with_password else None)
    hello = GREETING_WITH_PASSWORD + BOB if with_password else GREETING
    answers = b""
    for number, byte in enumerate(hello + message):
        assert not machine.done, number
        answers += machine.receive(bytes((byte,)))
    assert machine.request == request_
    assert machine.refusal is None
    assert machine.leftover == b""
    assert answers == (b"\x05\x02\x01\x00" if with_password else b"\x05\x00")


def test_all_at_once_with_data_behind() -> None:
    # A client may not wait for answers that it knows.
    machine = Machine()
    assert machine.receive(GREETING + BY_NAME + b"GET /") == b"\x05\x00"
    assert machine.request == Request("alice.ntcp", 8000)
    assert machine.leftover == b"GET /"


@pytest.mark.parametrize(
    "credentials",
    [
        b"\x01\x03bob\x05wrong",
        b"\x01\x04mary\x06secret",
        b"\x01\x00\x00",
        b"\x01\x04\xff\xfe\xfd\xfc\x01\x80",
    ],
)
def test_wrong_password(credentials: bytes) -> None:
    machine = Machine(USERS)
    assert machine.receive(GREETING_WITH_PASSWORD) == b"\x05\x02"
    assert machine.receive(credentials + BY_NAME) == b"\x01\x01"
    assert machine.refusal == "wrong user name or password"
    assert machine.request is None
    assert machine.leftover == b""
    assert machine.receive(b"more") == b""


@pytest.mark.parametrize(("users", "methods"), [(USERS, b"\x00"), (None, b"\x01\x02"), (None, b"")])
def test_no_common_method(users: dict[str, str] | None, methods: bytes) -> None:
    machine = Machine(users)
    assert machine.receive(bytes((5, len(methods))) + methods) == b"\x05\xff"
    assert machine.done
    assert machine.refusal


@pytest.mark.parametrize(("command", "word"), [(2, "BIND"), (3, "UDP_ASSOCIATE"), (9, "command 9")])
def test_other_commands(command: int, word: str) -> None:
    machine = Machine()
    # UDP ASSOCIATE may come with port 0.
    answer = machine.receive(GREETING + bytes((5, command, 0, 1)) + bytes(6))
    assert answer == b"\x05\x00" + encode_reply(Reply.COMMAND_NOT_SUPPORTED)
    assert machine.refusal is not None
    assert machine.refusal.startswith(word)


def test_unknown_address_type() -> None:
    machine = Machine()
    answer = machine.receive(GREETING + b"\x05\x01\x00\x02\x00")
    assert answer == b"\x05\x00" + encode_reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED)
    assert machine.refusal == "address type 2 is unknown"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x04\x01\x00\x50\xc0\x00\x02\x07\x00", "SOCKS 4"),
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b"CONNECT alice.ntcp:80 HTTP/1.1\r\n", "HTTP"),
        (b"\x00", "version 0"),
        (GREETING + b"\x04\x01", "version 4"),
        (GREETING + b"\x05\x01\x00\x03\x05a b.c\x00\x50", "blanks"),
        (GREETING + b"\x05\x01\x00\x03\x00\x00\x50", "empty"),
        (GREETING + b"\x05\x01\x00\x03\x02\xc3\xa4\x00\x50", "ASCII"),
        (GREETING + b"\x05\x01\x00\x03\x01a\x00\x00", "port 0"),
    ],
)
def test_bad_messages(data: bytes, text: str) -> None:
    with pytest.raises(BadMessage, match=text):
        Machine().receive(data)


def test_bad_authentication() -> None:
    with pytest.raises(BadMessage, match="authentication: version 5"):
        Machine(USERS).receive(GREETING_WITH_PASSWORD + BY_NAME)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((Reply.SUCCEEDED,), b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"),
        ((Reply.SUCCEEDED, "192.0.2.7", 80), b"\x05\x00\x00\x01\xc0\x00\x02\x07\x00\x50"),
        ((Reply.SUCCEEDED, "::1", 1), b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x01"),
        ((Reply.CONNECTION_REFUSED,), b"\x05\x05\x00\x01" + bytes(6)),
    ],
)
def test_replies(arguments: tuple[Reply, str, int], expected: bytes) -> None:
    assert encode_reply(*arguments) == expected


SEEDS = [GREETING + message for message in (BY_NAME, BY_IPV4, BY_IPV6, BY_NAME + b"data")]
SEEDS_WITH_PASSWORD = [GREETING_WITH_PASSWORD + BOB + message for message in (BY_NAME, BY_IPV4)]


def fuzz(count: int) -> None:
    for seeds, users in ((SEEDS, None), (SEEDS_WITH_PASSWORD, USERS)):

        def decode(data: bytes, users: dict[str, str] | None = users) -> None:
            # Whole and in two pieces: the same outcome, so no state hides in the boundaries.
            whole, parts = Machine(users), Machine(users)
            answer = whole.receive(data)
            half = len(data) // 2
            assert parts.receive(data[:half]) + parts.receive(data[half:]) == answer
            assert (parts.request, parts.refusal) == (whole.request, whole.refusal)
            assert whole.done == (whole.request is not None or whole.refusal is not None)
            if whole.request is not None:
                assert whole.request.host
                assert 0 < whole.request.port < 65536
            assert len(answer) <= 14

        check_decoder(decode, seeds, count, random_seed=1928)


def test_fuzz() -> None:
    fuzz(20_000)


@pytest.mark.slow
def test_fuzz_long() -> None:
    fuzz(1_000_000)
