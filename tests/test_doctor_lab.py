"""`ntcp doctor --json` names the lab's NATs rightly, each kind and topology, and says what it cannot know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import doctor_programs as programs
import lab_programs
import pytest

from ntcpsock.cli.stage import NTCP, Stage, open_stage
from ntcpsock.testing.natlab import (
    PRESETS,
    Allocation,
    Behaviour,
    Filtering,
    Hairpin,
    Lab,
    Mapping,
    Outward,
    StrayAnswer,
    TcpBehaviour,
    UdpBehaviour,
    parse_behaviour,
    port_mapper,
)
from ntcpsock.testing.pytest_plugin import NatLabFactory

pytestmark = pytest.mark.lab

DELAY = 0.01
EIM, ADM, APDM = "endpoint-independent", "address-dependent", "address-and-port-dependent"

MAPPINGS = dict(zip(Mapping, (EIM, ADM, APDM), strict=True))
FILTERINGS = dict(zip(Filtering, (EIM, ADM, APDM), strict=True))
ALLOCATIONS = {
    Allocation.PRESERVING: "preserving",
    Allocation.SEQUENTIAL: "sequential",
    Allocation.RANDOM: "random",
    Allocation.BAND: "band",
    Allocation.PER_SESSION: "band",
}
STRAYS = {StrayAnswer.DROP: "drop", StrayAnswer.RST: "reset", StrayAnswer.ICMP: "icmp"}
WIDEST_BAND = 4096


def diagnose(lab: Lab, stage: Stage, *options: str, code: int = 0) -> dict[str, Any]:
    """What `ntcp doctor --json` says on host A."""
    done = lab.host_a.run(
        [*NTCP, "doctor", "--json", *options],
        env=stage.environment("a"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def examine(
    nat_lab: NatLabFactory, kind: str | Behaviour, *, two: bool = True, **more: Any
) -> dict[str, Any]:
    """Host A behind `kind`, and what it finds; `two`: the server has a second address; serving: its other options."""
    code, serving = more.pop("code", 0), more.pop("serving", ())
    lab = nat_lab(kind, "none", delay=DELAY, **more)
    first, second = lab.server_addresses
    options = ["--listen", first, *(("--other-address", second) if two else ()), *serving]
    with open_stage(lab.server, *options) as stage:
        return diagnose(lab, stage, code=code)


def words_of(words: UdpBehaviour | TcpBehaviour) -> dict[str, str]:
    """What must be found of a user-space router."""
    mapping, allocation = MAPPINGS[words.mapping], ALLOCATIONS[words.allocation]
    if words.allocation is Allocation.PER_SESSION and isinstance(words, TcpBehaviour):
        mapping = "session-dependent"
    if words.allocation in (Allocation.BAND, Allocation.PER_SESSION) and words.band > WIDEST_BAND:
        allocation = "random"
    if words.allocation is Allocation.PRESERVING and words.offset:
        allocation = "offset"
    filtering = FILTERINGS[words.filtering]
    found = {"mapping": mapping, "filtering": filtering, "allocation": allocation}
    if isinstance(words, TcpBehaviour):
        found["stray"] = "none" if filtering == EIM else STRAYS[words.answer]
    else:
        found["fragments"] = "yes"
    # `INTERNAL` shows a host its own address as the sender: its kernel drops that, and RFC 4787 forbids it.
    turns = words.hairpin is Hairpin.EXTERNAL
    # Where ports change with the destination, the other port's public endpoint is not the one that was opened.
    reachable_turn = turns and (mapping == EIM or filtering == EIM)
    found["hairpin"] = "yes" if reachable_turn else "no" if mapping == EIM else "unknown"
    return found


def check(found: dict[str, Any], transport: str, words: dict[str, str]) -> None:
    said = {name: found[transport][name]["value"] for name in words}
    assert said == words, f"{transport}: {found['evidence']}"


def check_behaviour(found: dict[str, Any], behaviour: Behaviour) -> None:
    check(found, "tcp", words_of(behaviour.tcp))
    assert found["tcp"]["translated"]["value"] == "yes"
    if behaviour.sends_udp:
        check(found, "udp", words_of(behaviour.udp))
    else:
        assert found["udp"]["reachable"]["value"] == "no"
    if behaviour.tcp.allocation is Allocation.SEQUENTIAL:
        assert found["tcp"]["allocation"]["step"] == behaviour.tcp.delta
    if found["tcp"]["allocation"]["value"] == "band":
        low, high = found["tcp"]["allocation"]["low"], found["tcp"]["allocation"]["high"]
        assert behaviour.tcp.band / 4 <= high - low + 1 <= 4 * behaviour.tcp.band


USUAL = [name for name, preset in PRESETS.items() if preset.outward is Outward.ALL]
# What the others consist of, once.
IN_EVERY_RUN = ("cgn-session",)


@pytest.mark.parametrize(
    "name", [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in USUAL]
)
def test_presets(nat_lab: NatLabFactory, name: str) -> None:
    found = examine(nat_lab, name)
    check_behaviour(found, PRESETS[name])
    assert found["works"]
    assert found["broker"]["reached"]
    assert found["double_nat"]["value"] == "unknown"


KINDS = [
    "adm+adf+sequential=-3+icmp+hairpin",
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in (
            "eim+eif+random+rst",
            "eim+adf+preserving=1000",
            "eim+apdf+sequential=1+hairpin=internal+icmp",
            "adm+apdf+band=64",
            "apdm+eif+random+hairpin",
            "apdm+adf+per-session=64+rst",
            "udp:apdm+tcp:eim+udp:random+tcp:rst",
        )
    ),
]


@pytest.mark.parametrize("words", KINDS)
def test_words(nat_lab: NatLabFactory, words: str) -> None:
    check_behaviour(examine(nat_lab, words), parse_behaviour(words))


LINUX = {
    "default": (EIM, APDM, "preserving", "drop", "yes"),
    "reject": (EIM, APDM, "preserving", "reset", "yes"),
    "default-accept": (EIM, APDM, "preserving", "reset", "yes"),
    # Linux forgets a connection that was reset, and draws another port for the next one between the same ends.
    "random": ("session-dependent", APDM, "random", "drop", "yes"),
    "fully-random-reject": ("session-dependent", APDM, "random", "reset", "yes"),
    "firewall": (EIM, APDM, "none", "drop", "no"),
    "firewall-reject": (EIM, APDM, "none", "reset", "no"),
    "none": (EIM, EIM, "none", "none", "no"),
}


@pytest.mark.parametrize(
    "kind",
    ["none", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LINUX if kind != "none")],
)
def test_real_routers(nat_lab: NatLabFactory, kind: str) -> None:
    mapping, filtering, allocation, stray, translated = LINUX[kind]
    found = examine(nat_lab, kind)
    words = {"filtering": filtering, "allocation": allocation, "translated": translated}
    check(found, "tcp", {**words, "mapping": mapping, "stray": stray})
    check(found, "udp", {**words, "mapping": APDM if mapping == "session-dependent" else mapping})
    if kind == "none":
        assert found["double_nat"]["value"] == "no"
        assert {one["verdict"] for one in found["prospects"][:-1]} == {"yes"}


def test_without_udp_a_broker_is_met_over_tcp(nat_lab: NatLabFactory) -> None:
    found = examine(nat_lab, "udp-blocked")
    assert found["broker"]["reached"]
    assert found["broker"]["transport"] == "tcp"
    assert found["udp"]["reachable"]["value"] == "no"
    assert {one["verdict"] for one in found["prospects"]} & {"yes"}
    assert not any("broker" in line for line in found["advice"])


@pytest.mark.parametrize(("kind", "serving"), [("udp-blocked", ["--no-tcp"]), ("only-443", [])])
def test_blocked_networks(nat_lab: NatLabFactory, kind: str, serving: list[str]) -> None:
    found = examine(nat_lab, kind, code=1, serving=serving)
    assert not found["works"]
    assert not found["broker"]["reached"]
    assert "no answer" in found["broker"]["why"]
    assert found["servers_guessed"]
    assert found["https"]["value"] == "yes"
    assert found["udp"]["reachable"]["value"] == "no"
    assert {one["verdict"] for one in found["prospects"]} == {"no"}
    if kind == "udp-blocked":
        assert found["tcp"]["reachable"]["value"] == "yes"
        assert found["tcp"]["stray"]["value"] == "drop"
        assert any("Let UDP or TCP out" in line for line in found["advice"])
    else:
        assert found["tcp"]["reachable"]["value"] == "no"
        assert "443" in found["summary"]


def test_a_router_that_maps_ports(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("random", "none", delay=DELAY)
    first, second = lab.server_addresses
    with port_mapper(lab.nat_a, ["pcp"]):
        with open_stage(lab.server, "--listen", first, "--other-address", second) as stage:
            found = diagnose(lab, stage)
    assert found["port_mapping"]["value"] == "yes"
    assert "pcp" in found["port_mapping"]["why"]
    assert not any("Turn on" in line for line in found["advice"])
    drawing = next(one for one in found["prospects"] if "all ports" in one["peer"])
    assert (drawing["verdict"], drawing["technique"]) == ("yes", "port-mapped")


@pytest.mark.parametrize(
    ("nat", "cgn"),
    [
        pytest.param("linux", "cgn", marks=pytest.mark.slow),
        ("default", "mobile"),
        pytest.param("default", "random", marks=pytest.mark.slow),
    ],
)
def test_two_nats_in_a_row(nat_lab: NatLabFactory, nat: str, cgn: str) -> None:
    found = examine(nat_lab, nat, cgn_a=cgn)
    assert found["double_nat"]["value"] == "yes"
    assert "100.64.0.0/10" in found["double_nat"]["why"]
    assert "CGN" in found["summary"]
    assert found["tcp"]["public"] == ["11.22.33.2"]
    if cgn == "cgn":
        # The outer NAT shows its mapping, the inner one its filter.
        check(found, "tcp", {"mapping": EIM, "filtering": APDM, "allocation": "band", "stray": "drop"})
        assert not any("NAT-PMP" in line for line in found["advice"])
    else:
        assert found["tcp"]["allocation"]["value"] == "random"
        assert any("CGN" in line for line in found["advice"])


@pytest.mark.parametrize("kind", ["rfc", pytest.param("symmetric", marks=pytest.mark.slow)])
def test_one_server_address(nat_lab: NatLabFactory, kind: str) -> None:
    found = examine(nat_lab, kind, two=False)
    unknown = {entry["what"] for entry in found["unknown"]}
    for transport in ("udp", "tcp"):
        mapping, filtering = found[transport]["mapping"], found[transport]["filtering"]
        if kind == "rfc":
            assert mapping["possible"] == filtering["possible"] == [EIM, ADM]
            assert "one address" in mapping["why"]
            assert {f"{transport.upper()}: mapping", f"{transport.upper()}: filtering"} <= unknown
        else:
            assert (mapping["value"], filtering["value"]) == (APDM, APDM)


@pytest.mark.parametrize(
    ("ipv6", "filtering"),
    [
        ("reject", APDM),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("open", EIM), ("firewall", APDM))),
    ],
)
def test_ipv6(nat_lab: NatLabFactory, ipv6: str, filtering: str) -> None:
    with ExitStack() as stack:
        lab = nat_lab("default", "none", delay=DELAY, ipv6=ipv6)
        first, second = lab.server_addresses
        stage = stack.enter_context(open_stage(lab.server, "--listen", first, "--other-address", second))
        first6, second6 = lab.server_addresses6
        ports = ["--broker-port", "0", "--stun-port", "3490", "--other-stun-port", "3491"]
        stack.enter_context(open_stage(lab.server, "--listen", first6, "--other-address", second6, *ports))
        found = diagnose(lab, stage, "--stun", f"{first}:3478", "--stun", f"[{first6}]:3490")
        assert found["ipv6"]["value"] == "yes"
        assert found["ipv6_filtering"]["value"] == filtering, found["evidence"]
        assert found["tcp"]["mapping"]["value"] == EIM
        assert found["udp"]["filtering"]["value"] == APDM


@pytest.mark.slow
def test_ipv6_that_no_server_could_try(nat_lab: NatLabFactory) -> None:
    found = examine(nat_lab, "default", ipv6="open")
    assert found["ipv6"]["value"] == "unknown"
    assert "2001:db8:33::10" in found["ipv6"]["why"]


def test_lifetime_sets_the_keep_alive(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("eim+idle=3", "none", delay=DELAY)
    first, _ = lab.server_addresses
    with open_stage(lab.server, "--listen", first) as stage:
        found = diagnose(lab, stage, "--lifetime")
        lifetime = found["udp"]["lifetime"]
        assert (lifetime["longest_alive"], lifetime["shortest_dead"]) == (2.0, 4.0)
        assert json.loads((stage.folder / "a" / "lifetimes.json").read_text()) == {"11.22.33.2": 2.0}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("turnserver") is None, reason="the Debian package coturn is missing")
def test_by_a_server_of_others(nat_lab: NatLabFactory, tmp_path: Path) -> None:
    """coturn speaks RFC 5780 over UDP; it does not connect back, and the reason is told."""
    lab = nat_lab("adm+adf+random", "none", delay=DELAY)
    first, second = lab.server_addresses
    listen = [*("-L", first), *("-L", second), "--listening-port", "3478"]
    quiet = ["--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--pidfile", "/dev/null"]
    lab.server.popen(
        ["turnserver", "-n", *listen, *quiet, "--log-file", "/dev/null"], stdout=subprocess.DEVNULL
    )
    while lab.server.call(lab_programs.knock, (second, 3479), lab_programs.PATIENCE) != "connected":
        continue
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("NTCP_")}
    done = lab.host_a.run(
        [*NTCP, "doctor", "--json", "--stun", first],
        env={**inherited, "NTCP_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check(found, "udp", {"mapping": ADM, "filtering": ADM, "allocation": "random", "fragments": "yes"})
    check(found, "tcp", {"mapping": ADM, "filtering": "unknown", "allocation": "random", "stray": "unknown"})
    assert "did not connect back" in found["tcp"]["filtering"]["why"]


def test_a_node_completes_its_card(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("rfc+tcp:icmp", "none", delay=DELAY)
    first, second = lab.server_addresses
    with open_stage(lab.server, "--listen", first, "--other-address", second) as stage:
        settings = {name: stage.environment("a")[name] for name in ("NTCP_BROKER", "NTCP_STATE")}
        assert lab.host_a.call(programs.learned_profile, settings) == (True, EIM, ADM, "icmp")


def test_a_page_for_people(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("symmetric+tcp:rst", "none", delay=DELAY)
    first, second = lab.server_addresses
    with open_stage(lab.server, "--listen", first, "--other-address", second) as stage:
        environment = {**stage.environment("a"), "COLUMNS": "120"}
        done = lab.host_a.run(
            [*NTCP, "doctor"], env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        )
    page = done.stdout
    for words in (
        '("symmetric"), in steps of 1',
        "another port for each peer",
        "answered with a RST",
        "only answers get in",
        "tcp-predict",
        "Turn on NAT-PMP",
        "OpenWrt",
        "What could not be found out",
        "TCP: hairpin",
    ):
        assert words in page, page
