"""How a lab begins and ends: nothing stays, whatever ended its owner; and it needs no real root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lab_programs as programs
import pytest

from ntcpsock.testing import natlab
from ntcpsock.testing.natlab import namespace
from ntcpsock.testing.pytest_plugin import NatLabFactory

ROOT = Path(natlab.__file__).parents[3]
OWNER = textwrap.dedent(
    """
    import signal, sys
    from ntcpsock.testing.natlab import open_lab
    with open_lab("default", "reject") as lab:
        lab.host_a.popen(["sleep", "1000"])
        print(*(place.namespace for place in lab.places), flush=True)
        signal.pause()
    """
)
IN_USER_NAMESPACE = textwrap.dedent(
    """
    import sys
    sys.path[:0] = sys.argv[1:]
    import lab_programs as programs
    from ntcpsock.testing.natlab import (
        Link, lab_namespaces, namespaces_available, open_lab, reexec_in_user_namespace
    )
    reexec_in_user_namespace()
    reason = namespaces_available()
    if reason:
        sys.exit("unavailable: " + reason)
    real = {"nat_a": "default", "nat_b": "random"}
    exact = {"nat_a": "linux", "nat_b": "symmetric", "cgn_b": "cgn", "ipv6": "firewall", "link_b": Link(mtu=1400)}
    for kinds in (real, exact):
        with open_lab(**kinds) as lab:
            server = (lab.server_addresses[0], 7000)
            lab.server.start(programs.tell_addresses, [server[0]], 7000)
            assert lab.host_a.call(programs.seen_by_tcp, server, 4001) == (lab.public_address_a, 4001)
            assert lab.host_b.call(programs.seen_by_udp, server, 4001)[0] == lab.public_address_b
    assert not {place.namespace for place in lab.places} & set(lab_namespaces())
    print("passed")
    """
)


def wait_gone(namespaces: list[str]) -> None:
    deadline = time.monotonic() + programs.PATIENCE
    while still := set(namespaces) & set(natlab.lab_namespaces()):
        assert time.monotonic() < deadline, f"not removed: {still}"
        time.sleep(0.05)


@pytest.mark.lab
def test_leaves_nothing(nat_lab: NatLabFactory) -> None:
    nat_lab("none")  # skips where no lab is possible
    with natlab.open_lab("default", "default") as lab:
        names = [place.namespace for place in lab.places]
        assert set(names) <= set(natlab.lab_namespaces())
        program = lab.host_a.popen(["sleep", "1000"])
        deaf = lab.host_b.popen(
            ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1000; done"], stdout=subprocess.PIPE
        )
        assert deaf.stdout is not None
        with deaf.stdout:
            assert deaf.stdout.readline() == b"deaf\n"
    assert program.returncode == -signal.SIGTERM
    assert deaf.returncode == -signal.SIGKILL
    wait_gone(names)
    lab.close()


@pytest.mark.lab
def test_leaves_nothing_after_an_error(nat_lab: NatLabFactory) -> None:
    nat_lab("none")
    names: list[str] = []

    def failing() -> None:
        with natlab.open_lab() as lab:
            names.extend(place.namespace for place in lab.places)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert names
    wait_gone(names)


@pytest.mark.lab
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_leaves_nothing_when_its_owner_dies(nat_lab: NatLabFactory, number: signal.Signals) -> None:
    nat_lab("none")
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as owner:
        assert owner.stdout is not None
        names = owner.stdout.readline().split()
        assert len(names) == 6
        owner.send_signal(number)
        owner.wait(programs.PATIENCE)
    wait_gone(names)


@pytest.mark.lab
def test_stale_namespaces_are_removed_and_living_ones_stay(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("none")
    with subprocess.Popen(["true"]) as dead:
        pass
    stale = f"ntcp-{dead.pid}-abcdef-a"
    subprocess.run(["ip", "netns", "add", stale], check=True)
    assert stale in natlab.remove_stale()
    names = natlab.lab_namespaces()
    assert stale not in names
    assert lab.host_a.namespace in names


@pytest.mark.lab
def test_call_brings_back_errors(nat_lab: NatLabFactory) -> None:
    lab = nat_lab("none")
    with pytest.raises(ValueError, match="invalid literal"):
        lab.host_a.call(int, "x")
    with pytest.raises(RuntimeError, match="without an outcome"):
        lab.host_a.call(os._exit, 3)
    with pytest.raises(subprocess.TimeoutExpired):
        lab.host_a.call(time.sleep, 1000, timeout=0.2)


@pytest.mark.lab
@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize("way", ["unshare -Urnm --", "unshare -Urn --", "reexec"])
def test_in_a_user_namespace(nat_lab: NatLabFactory, user: str, way: str) -> None:
    # What a sandbox allows to root and to nobody differs: each skips with its own reason.
    become: list[str] = []
    if user == "nobody":
        if os.geteuid() != 0:
            pytest.skip("only root can become nobody")
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python, reason = interpreter_for([*become, "unshare", "-Urnm", "--"])
    if python is None:
        pytest.skip(f"no user namespace for {user}: {reason}")
    enter = [] if way == "reexec" else way.split()
    with readable_copy() as modules:
        done = subprocess.run(
            [*become, *enter, python, "-c", IN_USER_NAMESPACE, modules],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=os.environ | {"PYTHONPATH": modules, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=120,
        )
    if "unavailable: " in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.strip() == "passed", done.stderr


@contextmanager
def readable_copy() -> Iterator[str]:
    """A folder with the modules of the test that everybody may read; the originals may lie in root's home."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(ROOT / "ntcpsock", Path(folder, "ntcpsock"))
        shutil.copy(programs.__file__, folder)
        yield folder


def interpreter_for(unshare: list[str]) -> tuple[str | None, str]:
    """A Python that the command's user may run (root's own may lie in root's home), or the reason why none."""
    complaint = ""
    for python in (sys.executable, "/usr/bin/python3"):
        check = [*unshare, python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        done = subprocess.run(check, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode == 0:
            return python, ""
        complaint = complaint or done.stderr.strip()
    return None, complaint


def test_a_missing_tool_is_found_before_the_network_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `ip` there is not even a loopback in there: whoever falls back to it must still be outside."""

    def never(*args: object) -> None:
        raise AssertionError(f"left by {args}")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "execvp", never)
    monkeypatch.setattr(namespace, "_SEARCH_PATH", "/nowhere")
    with pytest.raises(natlab.LabUnavailable, match="iproute2"):
        natlab.reexec_in_user_namespace()


def test_availability_has_a_reason_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    reason = natlab.namespaces_available()
    assert reason is not None
    assert "unshare -Urnm" in reason
    with pytest.raises(natlab.LabUnavailable, match="unshare"), natlab.open_lab():
        pass
