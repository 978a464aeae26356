"""The words that name a kind of NAT."""

from __future__ import annotations

import itertools

import pytest

from ntcpsock.testing.natlab import PRESETS, Answer, Behaviour, NatKind, Translation, parse_kind
from ntcpsock.testing.natlab.router.words import parse_behaviour


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


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_words(name: str) -> None:
    preset = PRESETS[name]
    assert parse_kind(name) is preset
    assert preset.name == name
    assert preset.about
    again = parse_behaviour(preset.words)
    assert (again.udp, again.tcp, again.outward) == (preset.udp, preset.tcp, preset.outward)
    with pytest.raises(ValueError, match="unknown kind of NAT"):
        NatKind.parse(name)  # or one name would mean two things


def test_presets_can_be_changed() -> None:
    changed = parse_kind("cgn+tcp:rst")
    assert isinstance(changed, Behaviour)
    assert changed.name == str(changed) == "cgn+tcp:rst"
    assert changed.tcp.answer.value == "rst"
    assert changed.udp == PRESETS["cgn"].udp


@pytest.mark.parametrize("text", ["reject", "random-accept", "firewall"])
def test_words_of_real_routers_come_first(text: str) -> None:
    assert parse_kind(text) == NatKind.parse(text)


@pytest.mark.parametrize("text", ["cone", "cgn+cone", "", "linux-reject", "eim+delta=2"])
def test_unknown_kinds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        parse_kind(text)
