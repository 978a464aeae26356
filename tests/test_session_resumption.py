"""Who may move a stream to another carrier: its dialer, once with each word, and nobody else."""

from __future__ import annotations

import random
import sys
import tracemalloc
from dataclasses import replace

import pytest
from fuzz_support import check_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._session.frames import (
    HEADER_LENGTH,
    LARGEST_EPOCH,
    LARGEST_OFFSET,
    RESUME_LENGTH,
    Reset,
    Resume,
    decode_resume,
    decode_resumed,
    encode_frame,
    encode_resumed,
)
from ntcpsock._session.resumption import Resumable, Resuming

SESSION = bytes(range(16))
TOKEN = b"sealed from node to node, secret"
DIALER = b"d" * 32
STRANGER = b"s" * 32
FIRST, SECOND = b"1" * 16, b"2" * 16


def both() -> tuple[Resuming, Resumable]:
    return Resuming(SESSION, TOKEN), Resumable(SESSION, TOKEN, DIALER)


def refuse(resumable: Resumable, resume: Resume, dial_id: bytes, peer: bytes, reason: str) -> None:
    epoch = resumable.epoch
    with pytest.raises(BadMessage, match=reason):
        resumable.take(resume, dial_id, peer)
    assert resumable.epoch == epoch


def test_the_dialer_moves_its_stream_again_and_again() -> None:
    resuming, resumable = both()
    for number in range(1, 6):
        resume = decode_resume(resuming.resume(100 * number, FIRST))
        assert (resume.received, resume.session_id, resume.epoch) == (100 * number, SESSION, number)
        resumable.take(resume, FIRST, DIALER)
        assert resumable.epoch == number


def test_attempts_that_never_arrived_are_skipped() -> None:
    resuming, resumable = both()
    words = [decode_resume(resuming.resume(0, FIRST)) for _ in range(5)]
    resumable.take(words[3], FIRST, DIALER)
    for late in words[:4]:
        refuse(resumable, late, FIRST, DIALER, "said before")
    resumable.take(words[4], FIRST, DIALER)


def test_a_listener_that_never_heard_of_an_attempt_is_not_late() -> None:
    resuming, resumable = both()
    resumable.take(decode_resume(resuming.resume(0, FIRST)), FIRST, DIALER)
    resuming.has_moved()
    resuming.resume(0, SECOND)  # never arrives
    assert not resuming.is_late(resumable.epoch)
    assert resuming.is_late(0)
    resumable.take(decode_resume(resuming.resume(0, FIRST)), FIRST, DIALER)
    assert not resuming.is_late(resumable.epoch)  # the answer never arrives


def test_a_replay_is_refused() -> None:
    resuming, resumable = both()
    resume = decode_resume(resuming.resume(7, FIRST))
    resumable.take(resume, FIRST, DIALER)
    refuse(resumable, resume, FIRST, DIALER, "said before")


def test_a_word_is_of_no_use_on_another_carrier() -> None:
    resuming, resumable = both()
    resume = decode_resume(resuming.resume(7, FIRST))
    refuse(resumable, resume, SECOND, DIALER, "wrong proof")
    resumable.take(resume, FIRST, DIALER)


def test_another_key_is_refused_although_it_heard_the_word() -> None:
    resuming, resumable = both()
    resume = decode_resume(resuming.resume(7, FIRST))
    refuse(resumable, resume, FIRST, STRANGER, "another node's stream")
    resumable.take(resume, FIRST, DIALER)


def test_the_session_id_alone_is_worth_nothing() -> None:
    _, resumable = both()
    for token in (bytes(32), TOKEN[::-1], b"", SESSION):
        stolen = Resuming(SESSION, token)
        refuse(resumable, decode_resume(stolen.resume(0, FIRST)), FIRST, DIALER, "wrong proof")
        refuse(resumable, decode_resume(stolen.resume(0, FIRST)), FIRST, STRANGER, "wrong proof")


def test_a_proof_of_another_stream_is_refused() -> None:
    """The same two nodes, the same token even: the proof is over the session's id."""
    other = Resuming(SECOND, TOKEN)
    _, resumable = both()
    word = decode_resume(other.resume(0, FIRST))
    refuse(resumable, word, FIRST, DIALER, "wrong proof")
    refuse(resumable, replace(word, session_id=SESSION), FIRST, DIALER, "wrong proof")


@settings(deadline=None)
@given(st.integers(0, LARGEST_OFFSET), st.integers(0, 256 + 2 * 63 - 1))
def test_every_bit_of_the_word_is_proven(received: int, bit: int) -> None:
    resuming, resumable = both()
    resume = decode_resume(resuming.resume(received, FIRST))
    if bit < 256:
        proof = (int.from_bytes(resume.proof, "big") ^ 1 << bit).to_bytes(32, "big")
        changed = replace(resume, proof=proof)
    elif bit < 256 + 63:
        changed = replace(resume, epoch=resume.epoch ^ 1 << bit - 256)
    else:
        changed = replace(resume, received=resume.received ^ 1 << bit - 256 - 63)
    refuse(resumable, changed, FIRST, DIALER, "wrong proof")
    resumable.take(resume, FIRST, DIALER)


def test_ten_thousand_guesses_of_a_stranger() -> None:
    """All refused, for a countable number of reasons; nothing grows, and the dialer still gets through."""
    resuming, resumable = both()
    overheard = decode_resume(resuming.resume(7, FIRST))
    chance = random.Random(5)
    reasons: dict[str, int] = {}
    keys = (STRANGER, DIALER)
    tracemalloc.start()
    before = 0
    for number in range(10_500):
        if number == 500:
            before = tracemalloc.get_traced_memory()[0]
        guess = Resume(chance.randrange(2**40), SESSION, chance.randrange(2**50), chance.randbytes(32))
        if number % 3 == 0:
            guess = replace(overheard, epoch=number)
        elif number % 3 == 1:
            guess = overheard
        try:
            resumable.take(guess, chance.randbytes(16) if number % 2 else FIRST, keys[number % 3 == 2])
        except BadMessage as refusal:
            reasons[str(refusal)] = reasons.get(str(refusal), 0) + 1
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert sum(reasons.values()) == 10_500
    assert set(reasons) == {"RESUME: wrong proof", "RESUME: another node's stream"}
    assert grown < 20_000
    assert resumable.epoch == 0
    resumable.take(overheard, FIRST, DIALER)


def test_a_stream_costs_little() -> None:
    _, resumable = both()
    assert sys.getsizeof(resumable.__dict__) + sys.getsizeof(resumable._secret) < 1000


def test_the_answer() -> None:
    assert decode_resumed(encode_resumed(LARGEST_OFFSET)) == LARGEST_OFFSET
    assert decode_resumed(encode_resumed(0)) == 0
    assert decode_resumed(encode_frame(Reset(0))) is None
    for word in (b"", bytes(13), encode_resumed(5) + b"x", b"\x12" + b"\xff" * 8 + bytes(4)):
        with pytest.raises(BadMessage):
            decode_resumed(word)


def test_the_word_at_its_limits() -> None:
    largest = Resume(LARGEST_OFFSET, SESSION, LARGEST_EPOCH, bytes(32))
    assert decode_resume(encode_frame(largest)) == largest
    for wrong in (replace(largest, received=-1), replace(largest, epoch=LARGEST_EPOCH + 1)):
        with pytest.raises(ValueError, match="out of range"):
            encode_frame(wrong)
    with pytest.raises(ValueError, match="16 bytes"):
        encode_frame(replace(largest, proof=b""))


def read(data: bytes) -> None:
    _, resumable = both()
    try:
        decode_resumed(data)
    except BadMessage:
        resume = decode_resume(data)
        assert encode_frame(resume) == data
        assert len(data) == HEADER_LENGTH + RESUME_LENGTH
        resumable.take(resume, FIRST, DIALER)


def test_damaged_words() -> None:
    seeds = [Resuming(SESSION, TOKEN).resume(7, FIRST), encode_resumed(7), encode_frame(Reset(0))]
    check_decoder(read, seeds, 20_000, 11)
