"""The words that name a kind of NAT."""

from __future__ import annotations

import itertools

import pytest

from ntcpsock.testing.natlab import Answer, NatKind, Translation


@pytest.mark.parametrize(
    ("text", "translation", "answer"),
    [
        ("default", Translation.PRESERVING, Answer.DROP),
        ("drop", Translation.PRESERVING, Answer.DROP),
        ("reject", Translation.PRESERVING, Answer.REJECT),
        ("accept", Translation.PRESERVING, Answer.ACCEPT),
        ("random", Translation.RANDOM, Answer.DROP),
        ("fully-random", Translation.FULLY_RANDOM, Answer.DROP),
        ("random-reject", Translation.RANDOM, Answer.REJECT),
        ("fully-random-accept", Translation.FULLY_RANDOM, Answer.ACCEPT),
        ("firewall-reject", Translation.FIREWALL, Answer.REJECT),
        ("none", Translation.NONE, Answer.DROP),
    ],
)
def test_words(text: str, translation: Translation, answer: Answer) -> None:
    assert NatKind.parse(text) == NatKind(translation, answer)


@pytest.mark.parametrize(
    "text", ["", "cone", "reject-random", "-reject", "default-", "randomreject", "Default"]
)
def test_unknown_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown kind of NAT"):
        NatKind.parse(text)


@pytest.mark.parametrize(("translation", "answer"), list(itertools.product(Translation, Answer)))
def test_text_round_trip(translation: Translation, answer: Answer) -> None:
    kind = NatKind(translation, answer)
    assert NatKind.parse(str(kind)) == kind
    assert NatKind.parse(kind) is kind
