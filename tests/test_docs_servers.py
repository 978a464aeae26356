"""What the pages for operators say is so: flags, files, metrics, and the tests that the table of attacks names."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ntcpsock._servers.options import OPTIONS, read_settings
from ntcpsock.cli import serve

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide" / "servers.md").read_text(encoding="utf-8")
CLUSTER = (ROOT / "docs" / "guide" / "cluster.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
UNITS = sorted((ROOT / "servers" / "systemd").glob("*.service"))
ANALYZE = shutil.which("systemd-analyze")


def test_each_attack_and_each_fault_has_a_test_that_is_there() -> None:
    attacks, faults = (re.findall(r"`(test_\w+\.py)::(test_\w+)`", page) for page in (SECURITY, CLUSTER))
    assert len(attacks) > 40
    assert len(faults) > 8
    for file, name in attacks + faults:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        found = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in found, f"{file}::{name}"
    section = SECURITY.partition("## Attacks and answers")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 15
    assert all("::test_" in row for row in rows)


def test_the_printed_nginx_configuration_is_the_shipped_one() -> None:
    (printed,) = re.findall(r"^```nginx\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
    assert printed == (ROOT / "servers" / "nginx.conf").read_text(encoding="utf-8")


def test_the_printed_settings_and_the_example_file_are_taken(tmp_path: Path) -> None:
    (printed,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
    example = (ROOT / "servers" / "ntcp-serve.toml").read_text(encoding="utf-8")
    whole = re.sub(r"^#(?=\w+ =)", "", example, flags=re.MULTILINE)
    assert len(tomllib.loads(whole)) > len(tomllib.loads(example))
    for number, text in enumerate((printed, example, whole)):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, encoding="utf-8")
        assert read_settings(file, serve._SETTINGS, {})


def flags(program: list[str]) -> set[str]:
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


def test_flags_in_texts_are_flags() -> None:
    known = {
        "ntcp serve": flags(["-m", "ntcpsock", "serve"]),
        **{
            f"servers/{name}.py": flags([f"servers/{name}.py"])
            for name in ("relay", "stun_server", "udp_broker", "tcp_broker")
        },
    }
    texts = [GUIDE, CLUSTER, *(unit.read_text(encoding="utf-8") for unit in UNITS)]
    count = 0
    for line in "\n".join(texts).splitlines():
        for program, theirs in known.items():
            if program in line and "--" in line and not line.startswith("|"):
                _, _, rest = line.partition(program)
                for flag in re.findall(r"(?<= )--[a-z][a-z-]+", rest):
                    assert flag in theirs, line
                    count += 1
    assert count > 15
    for name in OPTIONS:
        assert any(
            {f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"} & theirs
            for theirs in known.values()
        )


def test_metrics_in_the_guide_exist() -> None:
    source = (ROOT / "ntcpsock" / "_servers" / "metrics.py").read_text(encoding="utf-8")
    stun = (ROOT / "ntcpsock" / "_servers" / "stun.py").read_text(encoding="utf-8")
    for name in re.findall(r"`(ntcp_\w+)", GUIDE + CLUSTER):
        bare = name.removesuffix("_total")
        assert f'"{bare}"' in source or f"    {bare.removeprefix('ntcp_stun_')}: int" in stun, name


def test_the_image_has_what_the_cluster_asks_of_it() -> None:
    """The store's client, and a health that others wait for, which an image has with some builders only."""
    folder = ROOT / "servers" / "container"
    image, cluster = (
        (folder / name).read_text(encoding="utf-8") for name in ("Containerfile", "cluster.yaml")
    )
    assert "--store" in cluster
    assert "'.[redis]'" in image
    first = cluster.partition("  broker1:\n")[2].partition("  broker2:\n")[0]
    assert "condition: service_healthy" in cluster
    assert "healthcheck:\n      test:" in first


def test_the_servers_can_be_run_by_their_names() -> None:
    for script in (ROOT / "servers").glob("*.py"):
        assert os.access(script, os.X_OK), script


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_units(unit: Path, tmp_path: Path) -> None:
    """With programs that exist, it has nothing to say about them; and calls them well hardened."""
    assert ANALYZE is not None
    text = unit.read_text(encoding="utf-8")
    for program in ("/opt/ntcp/bin/ntcp", "/opt/ntcp/bin/python"):
        text = text.replace(program, sys.executable)
    copy = tmp_path / unit.name
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run([ANALYZE, "verify", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([ANALYZE, "security", "--offline=true", str(copy)], capture_output=True, text=True)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) < 2.5
