"""Cards, offers and answers: round trips, signatures, bounds, and only one exception out of the decoders."""

import msgspec
import pytest
from fuzz_support import check_decoder
from hypothesis import given
from hypothesis import strategies as st

from ntcpsock._errors import BadMessage
from ntcpsock._identity import SIGNATURE_LENGTH, Identity
from ntcpsock._traversal.broker.fields import MAX_CARD, MAX_SEALED
from ntcpsock._traversal.broker.frame import OVERHEAD
from ntcpsock._traversal.punch.message import (
    MAX_CANDIDATES,
    MAX_CANDIDATES_OF_TRANSPORT,
    MAX_CARD_PORTS,
    MAX_SIGNAL,
    Answer,
    Candidate,
    Card,
    NATProfile,
    Offer,
    decode_candidates_untrusted,
    decode_card_body_untrusted,
    decode_card_untrusted,
    decode_sealed_payload_untrusted,
    encode_candidates,
    encode_card,
    encode_card_within,
    encode_sealed_payload,
)

IDENTITY = Identity.from_seed(bytes(range(32)))

ports = st.integers(1, 65535)
addresses = st.ip_addresses().map(str)
candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(["host", "srflx", "prflx", "relay"]),
        st.sampled_from(["tcp", "udp"]),
        addresses,
        ports,
    ),
    max_size=MAX_CANDIDATES,
).map(tuple)
profiles = st.builds(
    NATProfile,
    st.sampled_from([None, True, False]),
    st.sampled_from(["unknown", "endpoint-independent", "endpoint-dependent"]),
)
seconds = st.floats(0, 60)
cards = st.builds(
    Card,
    st.binary(min_size=32, max_size=32),
    candidates,
    st.lists(ports, max_size=MAX_CARD_PORTS).map(tuple),
    profiles,
    seconds,
)
offers = st.builds(
    Offer,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    ports,
    st.integers(1, 16),
    candidates,
    profiles,
    seconds,
)
answers = st.builds(
    Answer,
    st.binary(min_size=16, max_size=16),
    st.sampled_from(["accepted", "refused", "busy"]),
    st.binary(min_size=32, max_size=32),
    candidates,
    profiles,
    seconds,
)


@given(cards)
def test_card_round_trip(card: Card) -> None:
    data = encode_card(card, IDENTITY)
    assert decode_card_untrusted(data, IDENTITY.public_key) == card


@given(cards)
def test_a_card_that_is_too_long_loses_its_last_candidates(card: Card) -> None:
    data = encode_card_within(MAX_CARD, card, IDENTITY)
    assert len(data) <= MAX_CARD
    fitting = decode_card_untrusted(data, IDENTITY.public_key)
    kept = len(fitting.candidates)
    assert fitting == msgspec.structs.replace(card, candidates=card.candidates[:kept])
    if kept < len(card.candidates):
        one_more = msgspec.structs.replace(card, candidates=card.candidates[: kept + 1])
        assert len(encode_card(one_more, IDENTITY)) > MAX_CARD


@given(st.one_of(offers, answers))
def test_offer_and_answer_round_trip(message: Offer | Answer) -> None:
    data = encode_sealed_payload(message)
    assert len(data) + OVERHEAD <= MAX_SEALED
    assert decode_sealed_payload_untrusted(data) == message


@given(cards, st.data())
def test_altered_card_is_refused(card: Card, data: st.DataObject) -> None:
    encoded = bytearray(encode_card(card, IDENTITY))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadMessage):
        decode_card_untrusted(bytes(encoded), IDENTITY.public_key)


def test_card_of_another_key_is_refused() -> None:
    card = Card(bytes(32), ())
    with pytest.raises(BadMessage):
        decode_card_untrusted(encode_card(card, Identity.generate()), IDENTITY.public_key)


def test_fields_of_a_later_version_are_ignored() -> None:
    card = Card(bytes(32), (Candidate("host", "tcp", "192.0.2.1", 5),), (80,))
    offer = Offer(bytes(16), bytes(32), 80, 1, card.candidates)
    grown = [*msgspec.msgpack.decode(encode_sealed_payload(offer)), "new", {"more": 1}]
    assert decode_sealed_payload_untrusted(msgspec.msgpack.encode(grown)) == offer


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("host", "tcp", "example.org", 80),
        Candidate("host", "tcp", "010.0.0.1", 80),
        Candidate("host", "tcp", "2001:DB8::1", 80),
        Candidate("host", "tcp", "", 80),
        Candidate("host", "tcp", "192.0.2.1", 0),
        Candidate("host", "tcp", "192.0.2.1", 65536),
        Candidate("cone", "tcp", "192.0.2.1", 80),  # type: ignore[arg-type] # what a liar would send
    ],
)
def test_bad_candidates(candidate: Candidate) -> None:
    offer = Offer(bytes(16), bytes(32), 80, 1, (candidate,))
    with pytest.raises(BadMessage):
        decode_sealed_payload_untrusted(encode_sealed_payload(offer))


def test_ten_thousand_candidates_are_refused() -> None:
    crowd = (Candidate("host", "tcp", "192.0.2.1", 80),) * 10_000
    with pytest.raises(BadMessage):
        decode_sealed_payload_untrusted(encode_sealed_payload(Offer(bytes(16), bytes(32), 80, 1, crowd)))


@given(candidates)
def test_candidates_in_a_word(several: tuple[Candidate, ...]) -> None:
    body = encode_candidates(several[:MAX_CANDIDATES_OF_TRANSPORT])
    assert len(body) <= MAX_SIGNAL
    assert decode_candidates_untrusted(body) == several[:MAX_CANDIDATES_OF_TRANSPORT]


SEEDS = [
    encode_sealed_payload(Offer(bytes(16), bytes(32), 80, 1, (Candidate("srflx", "tcp", "192.0.2.1", 5),))),
    encode_sealed_payload(Answer(bytes(16), "accepted", bytes(32), (Candidate("host", "tcp", "::1", 5),))),
]


def test_mutations_leave_only_bad_message() -> None:
    check_decoder(decode_sealed_payload_untrusted, SEEDS, 20_000, 1)
    card = encode_card(Card(bytes(32), ()), IDENTITY)
    check_decoder(lambda data: decode_card_untrusted(data, IDENTITY.public_key), [card], 2_000, 1)
    word = encode_candidates((Candidate("srflx", "udp", "192.0.2.1", 5), Candidate("host", "udp", "::1", 5)))
    check_decoder(decode_candidates_untrusted, [word], 20_000, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_mutations_leave_only_bad_message() -> None:
    check_decoder(decode_sealed_payload_untrusted, SEEDS, 1_000_000, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_mutated_cards_under_a_good_signature() -> None:
    """The signature shields the card's decoder from strangers, not from its own node."""
    encoded = encode_card(Card(bytes(32), (Candidate("srflx", "tcp", "192.0.2.1", 5),), (80,)), IDENTITY)
    check_decoder(decode_card_body_untrusted, [encoded[SIGNATURE_LENGTH:]], 1_000_000, 3)
