"""The greeting of connections without encryption, as bytes: who knows the token gets through, nobody else."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._session.hello import (
    HELLO_LENGTH,
    MAGIC,
    NOMINATE_LENGTH,
    WELCOME_LENGTH,
    Dialer,
    Listener,
)

DIAL, TOKEN = bytes(range(16)), bytes(range(32))
OTHER = bytes(32)


def test_both_ends_that_know_the_token_agree() -> None:
    dialer = Dialer(DIAL, TOKEN)
    hello = dialer.hello()
    listener = Listener(hello)
    assert listener.dial_id == DIAL
    welcome = listener.welcome(TOKEN)
    dialer.take_welcome(welcome)
    nominate = dialer.nominate()
    listener.take_nominate(TOKEN, nominate)
    assert (len(hello), len(welcome), len(nominate)) == (HELLO_LENGTH, WELCOME_LENGTH, NOMINATE_LENGTH)
    assert TOKEN not in hello + welcome + nominate


def test_the_wire_format() -> None:
    """Written out once more, so that a change of the format is a change of this test."""
    ours, theirs = b"a" * 32, b"b" * 32
    dialer = Dialer(DIAL, TOKEN, ours)
    listener = Listener(dialer.hello(), theirs)

    def proof(name: bytes, *parts: bytes) -> bytes:
        return hmac.new(TOKEN, b"ntcp off 1 " + name + b"\0" + b"".join(parts), hashlib.sha256).digest()

    assert dialer.hello() == MAGIC + DIAL + ours + proof(b"hello", DIAL, ours)
    assert listener.welcome(TOKEN) == theirs + proof(b"welcome", DIAL, ours, theirs)
    dialer.take_welcome(theirs + proof(b"welcome", DIAL, ours, theirs))
    assert dialer.nominate() == proof(b"nominate", DIAL, ours, theirs)


def test_a_dialer_without_the_token_gets_no_welcome() -> None:
    with pytest.raises(BadMessage, match="does not know the token"):
        Listener(Dialer(DIAL, OTHER).hello()).welcome(TOKEN)


def test_a_listener_without_the_token_is_found_out() -> None:
    dialer = Dialer(DIAL, TOKEN)
    with pytest.raises(BadMessage, match="does not know the token"):
        dialer.take_welcome(bytes(WELCOME_LENGTH))
    # The dialer's own words sent back to it prove nothing either.
    with pytest.raises(BadMessage, match="does not know the token"):
        dialer.take_welcome(dialer.hello()[-WELCOME_LENGTH:])


def test_what_was_overheard_is_of_no_use_on_another_connection() -> None:
    dialer = Dialer(DIAL, TOKEN)
    heard = dialer.hello()
    dialer.take_welcome(Listener(heard).welcome(TOKEN))
    second = Listener(heard)
    second.welcome(TOKEN)
    with pytest.raises(BadMessage, match="NOMINATE"):
        second.take_nominate(TOKEN, dialer.nominate())


def test_a_changed_dial_id_is_noticed() -> None:
    hello = bytearray(Dialer(DIAL, TOKEN).hello())
    hello[len(MAGIC)] ^= 1
    with pytest.raises(BadMessage):
        Listener(bytes(hello)).welcome(TOKEN)


@given(st.binary(max_size=HELLO_LENGTH + 8))
def test_noise_is_no_hello(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Listener(data).welcome(TOKEN)


@given(st.binary(min_size=HELLO_LENGTH - len(MAGIC), max_size=HELLO_LENGTH - len(MAGIC)))
def test_noise_behind_the_magic_gets_no_welcome(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Listener(MAGIC + data).welcome(TOKEN)


@given(st.binary(max_size=WELCOME_LENGTH + 8))
def test_noise_is_no_welcome(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Dialer(DIAL, TOKEN).take_welcome(data)
