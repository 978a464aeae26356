"""`ntcp lab matrix` and `ntcp lab draw` in real labs, and what `ntcp connect` tells of itself."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ntcpsock.cli.lab import DIRECT, open_lab_stage, start_echo
from ntcpsock.cli.stage import Stage, open_loopback_stage
from ntcpsock.testing.natlab import lab_namespaces, namespaces_available

LAB = [sys.executable, "-m", "ntcpsock", "lab"]
DEADLINE = 240

needs_lab = [
    pytest.mark.lab,
    pytest.mark.timeout(600),
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAB, *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )


class TestInTheLab:
    pytestmark = needs_lab

    def test_matrix(self, tmp_path: Path) -> None:
        file, picture = tmp_path / "matrix.json", tmp_path / "matrix.svg"
        arguments = ("matrix", "--kinds", "none,cgn", "--tries", 1, "--delay-ms", 2, "--json", file)
        done = run(*arguments, "--svg", picture, "--technique", "public,tcp-open")
        assert done.returncode == 0, done.stderr
        data = json.loads(file.read_text())
        assert [(pair["nat_a"], pair["nat_b"]) for pair in data["pairs"]] == [
            ("none", "none"),
            ("none", "cgn"),
            ("cgn", "none"),
            ("cgn", "cgn"),
        ]
        assert [pair["technique"] for pair in data["pairs"]] == ["public"] * 3 + ["tcp-open"]
        assert data["summary"]["share_expected"] == 1.0
        ElementTree.parse(picture)
        assert "pairs connected" in done.stdout
        assert done.stderr.count("1 of 1") == 4
        # All pairs are there: a resumed run opens no lab.
        again = run(*arguments, "--resume", "--technique", "public,tcp-open")
        assert again.returncode == 0
        assert again.stderr == ""
        # Another setting is another matrix.
        other = run(*arguments, "--resume")
        assert other.returncode == 2
        assert "--resume" in other.stderr

    @pytest.mark.skipif(
        shutil.which("miniupnpd", path="/usr/sbin:/usr/bin") is None, reason="no miniupnpd here"
    )
    def test_routers_that_map_ports(self, tmp_path: Path) -> None:
        file = tmp_path / "matrix.json"
        pairs = "mobile:fully-random,none:none"
        done = run(
            "matrix", "--port-mapping", "--pairs", pairs, "--tries", 1, "--delay-ms", 2, "--json", file,
            "--technique", "port-mapped",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(file.read_text())["pairs"]  # nobody maps between two public hosts
        assert [(entry["connected"], entry["maps"]) for entry in found["tries"]] == [(True, "a"), (True, "b")]

    def test_everything_is_direct_or_relayed(self, tmp_path: Path) -> None:
        file = tmp_path / "matrix.json"
        pairs = "only-443:default,none:default"
        done = run("matrix", "--everything", "--pairs", pairs, "--tries", 1, "--delay-ms", 2, "--json", file)
        assert done.returncode == 0, done.stderr
        relayed, direct = json.loads(file.read_text())["pairs"]
        assert relayed["technique"] == "relay"
        assert direct["technique"] in ("public", "udp-punch")
        assert "directly" in done.stdout

    def test_networks_with_more_than_a_router_for_each_host(self, tmp_path: Path) -> None:
        file, picture = tmp_path / "matrix.json", tmp_path / "matrix.svg"
        names = "same-carrier,ipv6-one-side"
        done = run(
            "matrix", "--everything", "--topologies", names, "--kinds", "cgn,firewall", "--tries", 1,
            "--delay-ms", 2, "--jobs", 2, "--json", file, "--svg", picture,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        data = json.loads(file.read_text())
        assert data["pairs"] == []
        found = {(cell["topology"], cell["nat_a"]): cell["technique"] for cell in data["topologies"]}
        assert set(found) == {
            ("same-carrier", "cgn"), ("ipv6-one-side", "cgn"), ("ipv6-one-side", "firewall")
        }  # fmt: skip
        assert found["same-carrier", "cgn"] == "tcp-open"  # by way of the carrier's public address
        assert "same-carrier, cgn: 1 of 1" in done.stderr
        ElementTree.parse(picture)

    def test_a_pair_that_is_below_expectation(self, tmp_path: Path) -> None:
        done = run(
            "matrix", "--pairs", "default:symmetric", "--technique", "public", "--tries", 1, "--delay-ms", 1
        )
        assert done.returncode == 1
        assert "below expectation: each side" in done.stderr
        assert "symmetric" in done.stdout

    def test_interrupted_it_leaves_nothing(self, tmp_path: Path) -> None:
        before = set(lab_namespaces())
        file = tmp_path / "matrix.json"
        argv = [*LAB, "matrix", "--pairs", "none:none,none:cgn", "--tries", "200", "--json", str(file)]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
        ours: set[str] = set()
        while not (
            ours := {name for name in set(lab_namespaces()) - before if _is_of_child(name, process.pid)}
        ):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
        assert process.stderr is not None
        process.stderr.close()
        tag = ours.pop().removesuffix("server")
        assert not [name for name in lab_namespaces() if name.startswith(tag)]
        assert not file.exists()

    def test_drawing_has_the_syns_that_cross(self, tmp_path: Path) -> None:
        picture, data = tmp_path / "punch.svg", tmp_path / "punch.json"
        done = run("draw", picture, "--nat-a", "linux", "--nat-b", "openwrt", "--json", data)
        assert done.returncode == 0, done.stderr
        assert "by tcp-open" in done.stdout
        arrows = json.loads(data.read_text())["arrows"]
        assert crossing(arrows), arrows
        assert {"broker", "syn", "tls"} <= {arrow["kind"] for arrow in arrows}
        places = [place for arrow in arrows for place, _ in arrow["hops"]]
        assert {"host-a", "nat-a", "server", "nat-b", "host-b"} == set(places)
        ElementTree.parse(picture)

    def test_drawing_through_real_linux_routers(self, tmp_path: Path) -> None:
        data = tmp_path / "punch.json"
        kinds = ("--nat-a", "default", "--nat-b", "default")
        done = run("draw", tmp_path / "punch.svg", *kinds, "--technique", "tcp-open", "--json", data)
        assert done.returncode == 0, done.stderr
        assert crossing(json.loads(data.read_text())["arrows"])

    def test_a_failing_connect_explains_itself(self, tmp_path: Path) -> None:
        picture = tmp_path / "connect.svg"
        with open_lab_stage("mobile", "mobile", 0.005) as (lab, stage):
            start_echo(lab, stage)
            argv = [
                sys.executable,
                "-m",
                "ntcpsock",
                "connect",
                "b:7000",
                "--explain",
                "--draw",
                str(picture),
            ]
            done = lab.host_a.run(
                argv,
                env=stage.environment("a", **DIRECT),
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
        assert done.returncode == 1
        text = done.stderr
        assert "this side   NAT with endpoint-dependent mapping" in text
        assert "other side  NAT with endpoint-dependent mapping" in text
        assert re.search(r"tcp-open: no answer\n +\d+ SYNs? sent from port \d+ to 11\.22\.44\.2:\d+", text)
        assert "theirs: anywhere from" in text
        assert (
            "probable cause: Both NATs give every connection another port (symmetric), out of too many"
            in text
        )
        assert "what would help: Give either side a public address or a forwarded port" in text
        assert "no direct path to b.ntcp" in text.splitlines()[-2]
        assert "tcp-predict" in picture.read_text()


def crossing(arrows: list[dict[str, Any]]) -> bool:
    """Whether a SYN of each host was under way to the other one at one moment, and both arrived."""
    syns = [arrow for arrow in arrows if arrow["kind"] == "syn" and arrow["fate"] == "arrived"]
    return any(
        one["source"] == other["target"]
        and one["target"] == other["source"]
        and one["hops"][0][1] < other["hops"][-1][1]
        and other["hops"][0][1] < one["hops"][-1][1]
        for one in syns
        for other in syns
        if one["hops"][0][0] == "host-a"
    )


def _is_of_child(namespace: str, parent: int) -> bool:
    """Whether a namespace is the server's of a lab of a child of `parent`: its name has the number of its owner."""
    found = re.search(r"-(\d+)-\w+-server$", namespace)
    try:
        status = Path(f"/proc/{found[1]}/status").read_text() if found else ""
    except OSError:
        return False
    return f"PPid:\t{parent}\n" in status


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_a_connect_that_works_explains_itself_too(stage: Stage, tmp_path: Path) -> None:
    picture = tmp_path / "connect.svg"
    argv = [sys.executable, "-m", "ntcpsock", "listen", "carol:7000", "--json"]
    process = subprocess.Popen(
        argv, env=stage.environment("carol"), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "listening"
        done = subprocess.run(
            [sys.executable, "-m", "ntcpsock", "connect", "carol:7000", "--explain", "--draw", str(picture)],
            env=stage.environment("dave"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        process.terminate()
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("connect to carol:7000\n")
    assert "connected, and proved its key" in done.stderr
    assert "connected after" in picture.read_text()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("matrix", "--kinds", "nonsense"), "--kinds"),
        (("matrix", "--pairs", "default"), "--pairs"),
        (("matrix", "--pairs", "default:nonsense"), "--pairs"),
        (("matrix", "--pairs", "default:default", "--kinds", "default"), "--pairs"),
        (("matrix", "--technique", "magic"), "--technique"),
        (("matrix", "--resume"), "--resume"),
        (("matrix", "--port-mapping", "--kinds", "none,firewall"), "--port-mapping"),
        (("matrix", "--everything", "--technique", "relay"), "--everything"),
        (("matrix", "--topologies", "all"), "--topologies"),
        (("matrix", "--everything", "--topologies", "same-moon"), "--topologies"),
        (("matrix", "--everything", "--topologies", "all", "--pairs", "none:none"), "--topologies"),
        (("pair", "--same-cgn"), "--same-cgn"),
        (("pair", "--ipv6", "open,maybe"), "--ipv6"),
        (("pair", "--second-a", "nonsense"), "--second-a"),
        (("pair", "--nat-b", "firewall", "--maps", "b"), "--maps"),
        (("pair", "--maps", "c"), "--maps"),
        (("draw", "x.svg", "--nat-b", "nonsense"), "--nat-b"),
        (("pair", "--technique", "magic"), "--technique"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], option: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert option in done.stderr
