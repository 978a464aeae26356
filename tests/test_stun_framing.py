from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import Software
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.message import binding_request, encode_message

SHORT = encode_message(binding_request(bytes(12)))
LONG = encode_message(binding_request(bytes(range(12)), Software("x" * 333)))


@settings(deadline=None)  # other programs may have the processor
@given(st.lists(st.sampled_from([SHORT, LONG]), max_size=6), st.lists(st.integers(1, 400), max_size=40))
def test_however_the_stream_is_cut_the_messages_are_the_same(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(messages)
    splitter = MessageSplitter()
    found = []
    for cut in [*cuts, len(stream) or 1]:
        found += splitter.receive_data(stream[:cut])
        stream = stream[cut:]
    found += splitter.receive_data(stream)
    assert found == messages
    assert splitter.is_empty


def test_octet_by_octet() -> None:
    splitter = MessageSplitter()
    found = [message for octet in SHORT + LONG for message in splitter.receive_data(bytes([octet]))]
    assert found == [SHORT, LONG]


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1",
        b"\x16\x03\x01\x02",
        b"\x80",
        b"\0\1\0\2",
        b"\0\1\xff\xfc",
        b"\0\1\0\0\x21\x12\xa4\x43",
        b"\0\1\0\0old",
    ],
)
def test_what_is_not_stun_is_refused_at_once(start: bytes) -> None:
    with pytest.raises(BadMessage):
        MessageSplitter().receive_data(start)


def test_the_longest_message() -> None:
    assert MessageSplitter(len(LONG)).receive_data(LONG) == [LONG]
    with pytest.raises(BadMessage, match="at most"):
        MessageSplitter(len(LONG) - 4).receive_data(LONG[:4])


def test_a_half_message_is_kept() -> None:
    splitter = MessageSplitter()
    assert splitter.receive_data(LONG + SHORT[:7]) == [LONG]
    assert not splitter.is_empty
    assert splitter.receive_data(SHORT[7:]) == [SHORT]
