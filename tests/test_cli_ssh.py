"""ssh and scp by name, as examples/expose_ssh.sh says, where this machine has both ends of ssh."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service_support import DEADLINE, unused_port

from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

EXAMPLE = Path(__file__).parent.parent / "examples" / "expose_ssh.sh"
SSHD = "/usr/sbin/sshd"  # it insists on its absolute path

pytestmark = pytest.mark.skipif(
    not os.access(SSHD, os.X_OK) or shutil.which("scp") is None, reason="no ssh server and client here"
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def ssh_server_command(folder: Path, port: int) -> list[str]:
    """What starts sshd with keys of its own, which this makes, for whoever runs the tests."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    options = [
        f"HostKey={folder / 'host'}",
        f"AuthorizedKeysFile={folder / 'user.pub'}",
        "ListenAddress=127.0.0.1",
        "PidFile=none",
        "StrictModes=no",
        "UsePAM=no",
        "Subsystem=sftp internal-sftp",
    ]
    words = [word for option in options for word in ("-o", option)]
    return [SSHD, "-D", "-e", "-f", "/dev/null", "-p", str(port), *words]


@contextmanager
def ssh_server(folder: Path) -> Iterator[int]:
    """sshd; its port."""
    port = unused_port()
    server = subprocess.Popen(ssh_server_command(folder, port), stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        assert "listening" in server.stderr.readline()
        yield port
    finally:
        stop(server)
        server.stderr.close()


def test_ssh_and_scp(stage: Stage, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = [
        "ProxyCommand=ntcp connect --name laptop %h:%p",
        f"IdentityFile={tmp_path / 'user'}",
        f"UserKnownHostsFile={tmp_path / 'known_hosts'}",
        "StrictHostKeyChecking=no",
        "BatchMode=yes",
    ]
    words = ["-F", "/dev/null", *(word for option in options for word in ("-o", option))]
    host = f"{getpass.getuser()}@box.ntcp"
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    with ssh_server(tmp_path) as port:
        exposed = subprocess.Popen(
            ["sh", EXAMPLE, "box", "--allow", "laptop"],
            env=stage.environment("box", PATH=path, SSH_ADDRESS=f"127.0.0.1:{port}"),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert exposed.stderr is not None
        try:
            assert "is box.ntcp:22" in exposed.stderr.readline()
            environment = stage.environment("laptop", PATH=path)
            done = subprocess.run(
                ["ssh", *words, host, "sha256sum; echo to stderr >&2; exit 7"],
                input=data,
                env=environment,
                capture_output=True,
                timeout=DEADLINE,
                check=False,
            )
            assert done.returncode == 7, done.stderr
            assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
            assert b"to stderr" in done.stderr
            subprocess.run(
                ["scp", "-q", *words, tmp_path / "file", f"{host}:{tmp_path / 'copy'}"],
                env=environment,
                timeout=DEADLINE,
                check=True,
            )
            assert (tmp_path / "copy").read_bytes() == data
        finally:
            stop(exposed)
            exposed.stderr.close()
