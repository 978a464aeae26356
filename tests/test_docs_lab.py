"""The guide to the lab: its pytest file passes, its program runs, its words are all there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ntcpsock.testing.natlab import namespaces_available, parse_kind
from ntcpsock.testing.natlab.router.words import WORDS

GUIDE = (Path(__file__).parent.parent / "docs" / "guide" / "lab.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)

needs_lab = [
    pytest.mark.lab,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]


@pytest.mark.parametrize("number", [0, 1])
class TestPrograms:
    pytestmark = needs_lab

    def test_runs(self, tmp_path: Path, number: int) -> None:
        name = ("test_punch.py", "odd.py")[number]
        (tmp_path / name).write_text(BLOCKS[number])
        argv = [["-m", "pytest", "-q", "-p", "no:cacheprovider", name], [name]][number]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *argv],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("3 passed", "'protocol': 'udp'")[number] in done.stdout


def test_words() -> None:
    table = GUIDE.partition("| words |")[2].partition("In Python")[0]
    first_column = " ".join(line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|"))
    told = set(re.findall(r"`([^`]+)`", first_column))
    for word in told:
        assert str(parse_kind("eim+" + word.replace("=N", "=4"))) != ""
    exact = {"hairpin=none", "hairpin=external"}  # what is the default, and what `hairpin` says
    bare = {word.partition("=")[0] for word in told} | told
    assert set(WORDS.split(", ")) - exact <= bare | {f"{word}=N" for word in bare}
