"""The user-space NAT as a pure machine: errors, time-outs, sequence checks, fragments, bounds; table by table."""

from __future__ import annotations

import itertools

import natlab_packets as p
import pytest
from natlab_world import INNER, OTHER, PUBLIC, REMOTES, STRANGER, World, both

from ntcpsock.testing.natlab.router.behaviour import (
    Behaviour,
    Filtering,
    Mapping,
    OnError,
    SequenceCheck,
    TcpBehaviour,
    UdpBehaviour,
)
from ntcpsock.testing.natlab.router.words import parse_behaviour

PROTOCOLS = pytest.mark.parametrize("protocol", ["udp", "tcp"])


@pytest.mark.parametrize("on_error", list(OnError))
@pytest.mark.parametrize("error", ["rst", "icmp", "too big"])
@PROTOCOLS
def test_what_an_error_does_to_a_mapping(protocol: str, error: str, on_error: OnError) -> None:
    world = World(
        Behaviour(udp=UdpBehaviour(icmp_error=on_error), tcp=TcpBehaviour(icmp_error=on_error, rst=on_error))
    )
    port = world.mapped(protocol, INNER, REMOTES[0]) or 0
    assert world.lets_in(protocol, REMOTES[0], port)
    if error == "rst":
        if protocol == "udp":
            return
        assert world.into(p.tcp(REMOTES[0], (PUBLIC, port), p.RST | p.ACK, 0, 501)) is not None
    else:
        quoted = (
            p.tcp((PUBLIC, port), REMOTES[0], p.SYN, 500)
            if protocol == "tcp"
            else p.udp((PUBLIC, port), REMOTES[0])
        )
        got = world.into(p.icmp_error("11.22.0.1", PUBLIC, quoted, 3, 4 if error == "too big" else 1))
        assert got is not None
        assert p.ends(got) == (("11.22.0.1", 0), (INNER[0], 0))
        p.assert_sound(got[28:])  # the quoted packet is whole here, and as the host sent it
        assert p.ends(got[28:]) == (INNER, REMOTES[0])
    killed = on_error is OnError.KILLS and error != "too big"
    assert world.lets_in(protocol, REMOTES[0], port) is not killed


def test_short_quotes_are_translated() -> None:
    world = World(Behaviour())
    world.mapped("tcp", INNER, REMOTES[0])
    quoted = p.tcp((PUBLIC, 4001), REMOTES[0], p.SYN, 500)[:28]
    got = world.into(p.icmp_error("11.22.0.1", PUBLIC, quoted, 11, 0))
    assert got is not None
    assert p.ends(got[28:]) == (INNER, REMOTES[0])


def test_errors_from_inside_are_translated() -> None:
    world = World(both(offset=5))
    port = world.mapped("udp", INNER, REMOTES[0]) or 0
    arrived = world.into(p.udp(REMOTES[0], (PUBLIC, port)))
    assert arrived is not None
    got = world.out(p.icmp_error("10.1.0.1", REMOTES[0][0], arrived, 11, 0))
    assert got is not None
    assert p.ends(got) == ((PUBLIC, 0), (REMOTES[0][0], 0))
    assert p.ends(got[28:]) == (REMOTES[0], (PUBLIC, port))
    assert world.out(p.icmp_error("10.1.0.1", STRANGER[0], p.udp(STRANGER, INNER), 3, 3)) is None


def test_errors_about_nothing_are_dropped() -> None:
    world = World(Behaviour())
    world.mapped("udp", INNER, REMOTES[0])
    for quoted in (p.udp((PUBLIC, 4001), STRANGER), p.udp((PUBLIC, 5), REMOTES[0])):
        assert world.into(p.icmp_error("11.22.0.1", PUBLIC, quoted)) is None


def test_ping() -> None:
    world = World(parse_behaviour("random+eif"))
    sent = world.out(p.echo(8, INNER[0], STRANGER[0], 77))
    assert sent is not None
    assert p.ends(sent)[0][0] == PUBLIC
    identifier = int.from_bytes(sent[24:26], "big")
    got = world.into(p.echo(0, STRANGER[0], PUBLIC, identifier))
    assert got is not None
    assert (p.ends(got)[1][0], int.from_bytes(got[24:26], "big")) == (INNER[0], 77)
    assert world.into(p.echo(8, STRANGER[0], PUBLIC, identifier)) is None


@pytest.mark.parametrize("reused", [False, True])
def test_udp_time_out(reused: bool) -> None:
    world = World(parse_behaviour("idle=30+random"))
    port = world.mapped("udp", INNER, REMOTES[0]) or 0
    world.now += 29.9
    if reused:
        assert world.mapped("udp", INNER, REMOTES[0]) == port
        world.now += 29.9
    assert world.lets_in("udp", REMOTES[0], port)
    world.now += 30.0
    assert not world.lets_in("udp", REMOTES[0], port)
    assert world.mapped("udp", INNER, REMOTES[0]) != port


def test_udp_time_out_is_not_refreshed_from_outside() -> None:
    world = World(parse_behaviour("idle=30+refresh-out"))
    world.mapped("udp", INNER, REMOTES[0])
    world.now += 20
    assert world.lets_in("udp", REMOTES[0], 4001)
    world.now += 10
    assert not world.lets_in("udp", REMOTES[0], 4001)


def test_unreplied_time_out() -> None:
    world = World(parse_behaviour("idle=180+unreplied=10"))
    world.mapped("udp", INNER, REMOTES[0])
    world.now += 9
    assert world.lets_in("udp", REMOTES[0], 4001)
    world.now += 179
    assert world.lets_in("udp", REMOTES[0], 4001)


def test_tcp_time_outs() -> None:
    world = World(parse_behaviour("transitory=5+established=60"))
    here = (PUBLIC, 4001)
    world.mapped("tcp", INNER, REMOTES[0])
    world.now += 5
    assert world.into(p.tcp(REMOTES[0], here, p.SYN | p.ACK, 900, 501)) is None
    world.mapped("tcp", INNER, REMOTES[0])
    assert world.into(p.tcp(REMOTES[0], here, p.SYN | p.ACK, 900, 501)) is not None
    assert world.out(p.tcp(INNER, REMOTES[0], p.ACK, 501, 901)) is not None
    world.now += 59
    assert world.into(p.tcp(REMOTES[0], here, p.ACK, 901, 501, b"late")) is not None
    world.now += 60
    assert world.into(p.tcp(REMOTES[0], here, p.ACK, 905, 501, b"too late")) is None


@PROTOCOLS
def test_absolute_lifetime(protocol: str) -> None:
    world = World(parse_behaviour("lifetime=100+random"))
    port = world.mapped(protocol, INNER, REMOTES[0])
    for _ in range(9):
        world.now += 10
        assert world.mapped(protocol, INNER, REMOTES[0]) == port
    world.now += 10
    assert world.mapped(protocol, INNER, REMOTES[0]) != port


SEQUENCES = {
    "handshake": "o:S i:SA o:A i:A",
    "simultaneous open": "o:S i:S o:SA i:SA o:A",
    "closed and listened again (STUNT 2)": "o:S i:S o:SA'",
    "own SYN-ACK after own SYN (NATBlaster)": "o:S o:SA",
    "spoofed answer with a wrong number": "o:S i:SA!",
    "reset, then the peer's SYN": "o:S i:R i:S",
    "reset, then our SYN again": "o:S i:R o:S' i:S o:SA'",
}
REFUSED_BY_CONNTRACK = {
    "closed and listened again (STUNT 2)",
    "own SYN-ACK after own SYN (NATBlaster)",
    "spoofed answer with a wrong number",
    "reset, then the peer's SYN",
}


@pytest.mark.parametrize("check", list(SequenceCheck))
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_check(name: str, check: SequenceCheck) -> None:
    """The last segment of each sequence passes, or conntrack refuses it (measured on Linux)."""
    world = World(Behaviour(tcp=TcpBehaviour(sequence_check=check)))
    *earlier, last = SEQUENCES[name].split()
    for step in earlier:
        assert _step(world, step), step
    assert _step(world, last) is (check is SequenceCheck.NONE or name not in REFUSED_BY_CONNTRACK)


def _step(world: World, step: str) -> bool:
    side, _, what = step.partition(":")
    ours, theirs = (1500 if "'" in what else 500), 900
    flags = sum({"S": p.SYN, "A": p.ACK, "R": p.RST | p.ACK, "'": 0, "!": 0}[letter] for letter in what)
    opening = bool(flags & p.SYN)
    mine, other = (ours, theirs) if side == "o" else (theirs, ours)
    sequence = mine + (not opening)
    acknowledgement = (other + 1 + (77_000 if "!" in what else 0)) if flags & p.ACK else 0
    if flags & p.RST:
        sequence = 0
    if side == "o":
        return world.out(p.tcp(INNER, REMOTES[0], flags, sequence, acknowledgement)) is not None
    return world.into(p.tcp(REMOTES[0], (PUBLIC, 4001), flags, sequence, acknowledgement)) is not None


def test_conntrack_refuses_what_is_out_of_window() -> None:
    world = World(parse_behaviour("conntrack"))
    for step in SEQUENCES["handshake"].split():
        assert _step(world, step)
    here = (PUBLIC, 4001)
    assert world.into(p.tcp(REMOTES[0], here, p.ACK, 901, 501, b"x" * 1000)) is not None
    assert world.into(p.tcp(REMOTES[0], here, p.ACK, 901, 501, b"x" * 1000)) is not None  # again
    assert world.into(p.tcp(REMOTES[0], here, p.ACK, 901 + 70_000, 501, b"x")) is None
    assert world.into(p.tcp(REMOTES[0], here, p.RST, 901 + 500_000)) is None
    assert world.out(p.tcp(INNER, REMOTES[0], p.ACK, 501, 901 + 90_000)) is None
    assert world.out(p.tcp(INNER, REMOTES[0], p.ACK, 501, 1901)) is not None


def test_firewall_translates_nothing() -> None:
    world = World(parse_behaviour("firewall+rst+apdm"))
    inner = ("11.22.33.10", 4001)
    sent = world.out(p.tcp(inner, REMOTES[0], p.SYN, 500))
    assert sent is not None
    assert p.ends(sent) == (inner, REMOTES[0])
    got = world.into(p.tcp(REMOTES[0], inner, p.SYN | p.ACK, 900, 501))
    assert got is not None
    assert p.ends(got) == (REMOTES[0], inner)
    refusal = world.answer(p.tcp(STRANGER, inner, p.SYN, 1))
    assert refusal is not None
    assert p.ends(refusal) == (inner, STRANGER)


@pytest.mark.parametrize(
    ("outward", "udp", "tcp", "https", "router"),
    [
        ("no-udp", False, True, True, True),
        ("only-443", False, False, True, True),
        ("proxy", False, False, False, True),
    ],
)
def test_outward(outward: str, udp: bool, tcp: bool, https: bool, router: bool) -> None:
    world = World(parse_behaviour(outward))
    assert (world.mapped("udp", INNER, REMOTES[0]) is not None) is udp
    assert (world.mapped("tcp", INNER, REMOTES[0]) is not None) is tcp
    assert (world.mapped("tcp", INNER, ("11.22.55.2", 443)) is not None) is https
    assert (world.mapped("tcp", ("10.1.0.1", 4005), REMOTES[0]) is not None) is router


def test_private_addresses_go_nowhere() -> None:
    world = World(Behaviour(udp=UdpBehaviour(filtering=Filtering.ENDPOINT_INDEPENDENT)))
    assert world.mapped("udp", INNER, ("10.2.0.10", 5)) is None
    world.mapped("udp", INNER, REMOTES[0])
    assert not world.lets_in("udp", ("192.168.1.1", 5), 4001)
    assert world.into(p.udp(REMOTES[0], INNER)) is None
    assert world.nat.dropped == {"private target": 1, "private source": 1, "not for us": 1}


def test_fragments_in_any_order() -> None:
    whole = p.udp(INNER, REMOTES[0], bytes(range(200)) * 10)
    payload = whole[20:]
    for order in itertools.permutations(range(3)):
        world = World(parse_behaviour("random"))
        pieces = [
            p.ip(p.UDP, INNER[0], REMOTES[0][0], bytes(payload[at : at + 800]), fragment=field)
            for at, field in ((0, 0x2000), (800, 0x2064), (1600, 200))
        ]
        out = [output for i in order for output in world.nat.outbound(pieces[i], world.now)]
        assert all(output.outward for output in out)
        assert len(out) == 3
        out.sort(key=lambda output: int.from_bytes(output.data[6:8], "big") & 0x1FFF)
        joined = b"".join(bytes(output.data[20:]) for output in out)
        sources = {bytes(output.data[12:16]) for output in out}
        assert sources == {p.number(PUBLIC).to_bytes(4, "big")}
        p.assert_sound(p.ip(p.UDP, PUBLIC, REMOTES[0][0], joined))
        assert joined[8:] == payload[8:]


def test_restart_forgets() -> None:
    world = World(parse_behaviour("random"))
    port = world.mapped("udp", INNER, REMOTES[0]) or 0
    assert [row["outer"] for row in world.nat.mappings(world.now)] == [(p.number(PUBLIC), port)]
    world.nat.forget()
    assert world.nat.mappings(world.now) == []
    assert not world.lets_in("udp", REMOTES[0], port)


@pytest.mark.parametrize("attack", ["out", "in"])
def test_tables_are_bounded(attack: str) -> None:
    behaviour = Behaviour(
        capacity=50,
        udp=UdpBehaviour(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, filtering=Filtering.ENDPOINT_INDEPENDENT
        ),
    )
    world = World(behaviour)
    world.mapped("udp", INNER, REMOTES[0])
    for i in range(200):
        if attack == "out":
            world.mapped("udp", INNER, ("11.22.55.2", 3000 + i))
        else:
            world.into(p.udp(("11.22.55.2", 3000 + i), (PUBLIC, 4001)))
    assert sum(len(row["remotes"]) for row in world.nat.mappings(world.now)) == 50
    world.now += 120  # what has expired makes room
    assert world.mapped("udp", OTHER, REMOTES[0]) is not None


def test_words_round_trip() -> None:
    for text in (
        "apdm+adf+sequential=2+udp:eim+hairpin",
        "tcp:per-session=256+lifetime=3600+no-udp",
        "firewall+eif+rst+rst-kills+icmp-kills+conntrack",
        "preserving=3+udp:unreplied=10+idle=5+refresh-out+transitory=3+established=9+hairpin=internal",
    ):
        behaviour = parse_behaviour(text)
        again = parse_behaviour(behaviour.words)
        assert (again.udp, again.tcp, again.translates, again.lifetime, again.outward) == (
            behaviour.udp,
            behaviour.tcp,
            behaviour.translates,
            behaviour.lifetime,
            behaviour.outward,
        )


@pytest.mark.parametrize(
    "text", ["", "cone", "band=100", "band=x", "sequential=0", "icmp:eim", "udp:conntrack"]
)
def test_wrong_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_behaviour(text)


# Openings: sequences of segments between INNER and one remote, as a row of (direction, flags), and which of them pass.

_OUT, _IN = "out", "in"
_SYN, _SYN_ACK, _ACK, _RST = p.SYN, p.SYN | p.ACK, p.ACK, p.RST | p.ACK
_ERROR = -1  # ICMP time exceeded about what left


def _passes(world: World, steps: list[tuple[str, int]]) -> list[bool]:
    outside = (PUBLIC, INNER[1])
    passed = []
    for number, (direction, flags) in enumerate(steps):
        if flags == _ERROR:
            quoted = p.tcp(outside, REMOTES[0], p.SYN, 500)
            passed.append(world.into(p.icmp_error("11.22.0.1", PUBLIC, quoted, 11, 0)) is not None)
        elif direction == _OUT:
            passed.append(world.out(p.tcp(INNER, REMOTES[0], flags, 500 + number)) is not None)
        else:
            passed.append(world.into(p.tcp(REMOTES[0], outside, flags, 900 + number)) is not None)
    return passed


@pytest.mark.parametrize(
    ("words", "steps", "passed"),
    [
        # A connection from inside passes everywhere.
        *(
            (words, [(_OUT, _SYN), (_IN, _SYN_ACK), (_OUT, _ACK)], [True] * 3)
            for words in ("any-opening", "one-sided", "no-syn-in")
        ),
        # Crossing SYNs.
        ("any-opening", [(_OUT, _SYN), (_IN, _SYN)], [True, True]),
        ("one-sided", [(_OUT, _SYN), (_IN, _SYN)], [True, False]),
        ("no-syn-in", [(_OUT, _SYN), (_IN, _SYN)], [True, False]),
        ("no-syn-in+eif", [(_OUT, _SYN), (_IN, _SYN)], [True, False]),
        # A SYN after an attempt that an error or a reset has ended; the answer has another number.
        *(
            (words, [(_OUT, _SYN), (_IN, end), (_IN, _SYN), (_OUT, _SYN_ACK), (_IN, _ACK)], passed)
            for end in (_ERROR, _RST)
            for words, passed in (
                ("any-opening", [True] * 5),
                ("one-sided", [True] * 5),
                ("no-syn-in", [True, True, False, True, True]),
            )
        ),
        # A SYN that is repeated stands in the way again.
        ("one-sided", [(_OUT, _SYN), (_IN, _ERROR), (_OUT, _SYN), (_IN, _SYN)], [True, True, True, False]),
        # SYN-ACKs from both sides.
        ("any-opening", [(_OUT, _SYN), (_OUT, _SYN_ACK), (_IN, _SYN_ACK)], [True] * 3),
        ("no-syn-in", [(_OUT, _SYN), (_OUT, _SYN_ACK), (_IN, _SYN_ACK)], [True] * 3),
        ("one-sided", [(_OUT, _SYN), (_OUT, _SYN_ACK), (_IN, _SYN_ACK)], [True, False, True]),
        (
            "one-sided",
            [(_OUT, _SYN), (_IN, _ERROR), (_OUT, _SYN_ACK), (_IN, _SYN_ACK)],
            [True, True, False, False],
        ),
        ("conntrack", [(_OUT, _SYN), (_OUT, _SYN_ACK)], [True, False]),
        ("one-sided", [(_OUT, _SYN_ACK)], [False]),
    ],
)
def test_which_openings_pass(words: str, steps: list[tuple[str, int]], passed: list[bool]) -> None:
    assert _passes(World(parse_behaviour(words)), steps) == passed
