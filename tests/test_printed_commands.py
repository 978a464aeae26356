"""Each command line that README and guides print for a server is run, as it is printed, where its addresses are."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import Authority
from test_server_operation import PATIENCE

from ntcpsock._state import load_identity
from ntcpsock.testing.natlab.namespace import LabUnavailable, tool

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide" / "servers.md").read_text(encoding="utf-8")
TEXTS = [(ROOT / "README.md").read_text(encoding="utf-8"), GUIDE]
#: Those of the documents, which mean "a public address of this host".
ADDRESSES = ("203.0.113.7", "203.0.113.9")


def printed() -> list[str]:
    """Lines of console blocks, without their prompts; and commands in running text that have no placeholders."""
    found: dict[str, None] = {}
    for text in TEXTS:
        for block in re.findall(r"^```console\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                command = re.sub(r"^\w*\$\s+", "", line).partition("   #")[0]
                if re.match(r"(NTCP_\w+=\S+ )?(ntcp serve|servers/)", command) and command != line:
                    found[command.strip()] = None
        for command in re.findall(r"`((?:ntcp serve|servers/\w+\.py) --[^`\[]+)`", text):
            if not re.search(r"\b[A-Z]{3,}\b", command):
                found[command.replace("\n", " ")] = None
    return list(found)


def test_the_forms_that_users_know_are_among_them() -> None:
    commands = printed()
    for form in (
        "ntcp serve",
        "servers/stun_server.py --listen 203.0.113.7 --port 3478",
        "servers/stun_server.py --listen 203.0.113.7 --port 3478 --other-address 203.0.113.9 --other-port 3479",
        "servers/udp_broker.py --listen 203.0.113.7 --port 6060",
        "servers/tcp_broker.py --listen 203.0.113.7 --port 6060",
        "servers/relay.py --listen 203.0.113.7 --port 6061",
    ):
        assert form in commands


def prepare(folder: Path) -> None:
    """The files that the commands name."""
    certificate, key = Authority(folder).issue(folder, "broker.example.org")
    certificate.rename(folder / "fullchain.pem")
    key.rename(folder / "privkey.pem")
    load_identity(folder / "relay.key")
    load_identity(folder / "link.key")
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
    settings = settings.replace("/etc/ssl/broker.example.org/", f"{folder}/").replace(
        "/var/lib/ntcp", f"{folder}/state"
    )
    (folder / "serve.toml").write_text(settings, encoding="utf-8")


@pytest.mark.lab
@pytest.mark.parametrize("command", printed())
def test_it_runs_as_printed(command: str, tmp_path: Path) -> None:
    try:
        ip, unshare = tool("ip"), tool("unshare", "util-linux")
    except LabUnavailable as error:
        pytest.skip(str(error))
    prepare(tmp_path)
    program = command.replace("?key=KEY", f"?key={'a' * 52}")
    # By their own names and first lines, as a shell does it.
    program = re.sub(r"^servers/", f"{shlex.quote(str(ROOT))}/servers/", program)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    if "--other-address 203.0.113.7" in program:
        here, elsewhere = ADDRESSES[1], ADDRESSES[0]
    else:
        here, elsewhere = ADDRESSES
    # The second address of a linked STUN server is another host's.
    own = [here] if "--link-key" in program else [here, elsewhere]
    set_up = [f"{ip} link set lo up", *(f"{ip} addr add {address}/32 dev lo" for address in own)]
    inner = " && ".join([*set_up, f"cd {tmp_path}", f"exec env {program}"])
    options = ["-n"] if os.geteuid() == 0 else ["-Urn"]
    with subprocess.Popen(
        [unshare, *options, "sh", "-c", inner],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "NTCP_STATE": str(tmp_path)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            if not line and "unshare" in (complaint := process.stderr.read()):
                pytest.skip(complaint)
            assert line.startswith("ready "), process.stderr.read()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
