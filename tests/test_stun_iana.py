"""The numbers of `constants.py` against the registry's own tables (tests/data/iana)."""

from __future__ import annotations

import csv
from pathlib import Path

from ntcpsock._traversal.stun.constants import (
    FIRST_COMPREHENSION_OPTIONAL,
    REASONS,
    AttributeType,
    ErrorCode,
    Method,
)
from ntcpsock._traversal.stun.message import _ATTRIBUTES

TABLES = Path(__file__).parent / "data" / "iana"

# RFC 3489's attributes, of which the registry keeps the numbers under another name.
FORMER = {
    "CHANGE_REQUEST": "Reserved; was CHANGE-REQUEST prior to [RFC5389]",
    "SOURCE_ADDRESS": "Reserved; was SOURCE-ADDRESS prior to [RFC5389]",
    "CHANGED_ADDRESS": "Reserved; was CHANGED-ADDRESS prior to [RFC5389]",
}
# Attributes whose RFCs the codec speaks, and which it has no class for.
WITHOUT_CLASS = {AttributeType.CACHE_TIMEOUT}
SPOKEN = ("[RFC8489]", "[RFC5780]", "[RFC8445]")


def read_table(name: str) -> dict[str, tuple[str, str]]:
    """Value -> (name, reference) of one registry; ranges keep their text."""
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("#"))
        return {row["Value"]: (row["Name"], row["Reference"]) for row in csv.DictReader(lines)}


def test_methods() -> None:
    table = read_table("stun-parameters-2.csv")
    for method in Method:
        assert table[f"0x{method:03X}"][0].upper() == method.name


def test_attribute_types() -> None:
    table = read_table("stun-parameters-4.csv")
    for kind in AttributeType:
        expected = FORMER.get(kind.name, kind.name.replace("_", "-"))
        assert table[f"0x{kind:04X}"][0] == expected


def test_every_attribute_of_the_rfcs_we_speak_has_a_class() -> None:
    table = read_table("stun-parameters-4.csv")
    wanted = {
        int(value, 16)
        for value, (name, reference) in table.items()
        if reference.startswith(SPOKEN) and not name.startswith("Reserved")
    }
    assert len(wanted) > 20  # the table was read
    assert wanted - set(_ATTRIBUTES) == WITHOUT_CLASS


def test_error_codes() -> None:
    table = read_table("stun-parameters-6.csv")
    for code in ErrorCode:
        # RFC 8489 section 14.8 renamed 401; the registry did not follow.
        expected = "Unauthorized" if code == ErrorCode.UNAUTHENTICATED else REASONS[code]
        assert table[str(int(code))][0] == expected


def test_required_and_optional_are_told_apart_by_the_number() -> None:
    assert AttributeType.XOR_MAPPED_ADDRESS < FIRST_COMPREHENSION_OPTIONAL
    assert AttributeType.SOFTWARE >= FIRST_COMPREHENSION_OPTIONAL
