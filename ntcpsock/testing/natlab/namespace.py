"""Network namespaces by name: make, configure, remove; and whether this process may."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from ntcpsock.testing.natlab.kinds import NatKind

PREFIX = "ntcp-"
DIRECTORY = Path("/run/netns")

_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_TOOLS = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
_MOUNT_SOURCE = "ntcp-lab"
_CLONE_NEWNS = 0x00020000


class LabUnavailable(RuntimeError):
    """This process can have no lab here; the message says why."""


def new_tag() -> str:
    """The beginning of the names of one lab's namespaces: it tells the owner's pid."""
    return f"{PREFIX}{os.getpid()}-{secrets.token_hex(3)}-"


def tool(name: str, package: str | None = None) -> str:
    """The path of `ip`, `nft` or `nsenter`; sbin is searched although a user's PATH may lack it."""
    path = shutil.which(name, path=_SEARCH_PATH)
    if path is None:
        raise LabUnavailable(f"the program {name!r} is missing (Debian package {package or _TOOLS[name]})")
    return path


def enter_command(namespace: str) -> list[str]:
    """The words that, before a command, run it inside `namespace`.

    Not `ip netns exec`: that remounts /sys, and adds a process level on some versions.
    """
    return [tool("nsenter"), f"--net={DIRECTORY / namespace}", "--"]


def run_checked(argv: Sequence[str], *, script: str = "") -> None:
    """Run a configuration tool; its complaint becomes the LabUnavailable that is raised."""
    done = subprocess.run(argv, input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise LabUnavailable(f"{' '.join(argv)}: {complaint}")


def add_namespace(name: str) -> None:
    """Make the namespace `name` with its loopback up."""
    prepare_directory()
    run_checked([tool("ip"), "netns", "add", name])
    run_checked([tool("ip"), "-netns", name, "link", "set", "lo", "up"])


def configure(
    name: str,
    *,
    sysctls: Mapping[str, str] | None = None,
    wishes: Mapping[str, str] | None = None,
    links: Sequence[str] = (),
    links6: Sequence[str] = (),
    rules: str = "",
) -> None:
    """Set sysctls, then apply `ip` (and `ip -6`) batch lines, then an nft script. `wishes` are sysctls that may
    fail."""
    if sysctls or wishes:
        # /proc/sys/net shows the namespace of the process that opens it.
        lines = [_set_sysctl(key, value) for key, value in (sysctls or {}).items()]
        lines += [f"{_set_sysctl(key, value)} 2>/dev/null || true" for key, value in (wishes or {}).items()]
        run_checked([*enter_command(name), "/bin/sh", "-e"], script="\n".join([*lines, ""]))
    if links:
        run_checked([tool("ip"), "-netns", name, "-batch", "-"], script="\n".join([*links, ""]))
    if links6:
        run_checked([tool("ip"), "-6", "-netns", name, "-batch", "-"], script="\n".join([*links6, ""]))
    if rules:
        run_checked([*enter_command(name), tool("nft"), "-f", "-"], script=rules)


def _set_sysctl(key: str, value: str) -> str:
    return f"{{ echo '{value}' > /proc/sys/{key.replace('.', '/')}; }}"


def processes_inside(names: Iterable[str]) -> list[int]:
    """The pids of the processes that run in any of the namespaces."""
    inside = set()
    for name in names:
        with contextlib.suppress(OSError):
            status = os.stat(DIRECTORY / name)
            inside.add((status.st_dev, status.st_ino))
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{entry}/ns/net")
                if (status.st_dev, status.st_ino) in inside:
                    found.append(int(entry))
    return found


def remove_namespaces(names: Sequence[str]) -> None:
    """Kill what runs in the namespaces and remove them. What is gone already is no error."""
    here = [name for name in names if (DIRECTORY / name).exists()]
    deadline = time.monotonic() + 5
    while here and time.monotonic() < deadline:
        inside = [pid for pid in processes_inside(here) if pid != os.getpid()]
        if not inside:
            break
        for pid in inside:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for name in here:
        subprocess.run([tool("ip"), "netns", "del", name], capture_output=True, check=False)


def remove_stale() -> list[str]:
    """Remove the namespaces of labs whose owner is dead, and return their names.

    A lab's own helper process does this within moments of the owner's death; this is for machines where
    somebody killed that one too.
    """
    stale = [name for name in lab_namespaces() if not _alive(_owner(name))]
    remove_namespaces(stale)
    return stale


def lab_namespaces() -> list[str]:
    """The names of all namespaces that labs have made here and not removed yet."""
    try:
        return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(PREFIX))
    except FileNotFoundError:
        return []


def prepare_directory() -> None:
    """Make sure that `ip netns add` can write its names.

    Inside a user namespace /run belongs to somebody else: a tmpfs goes over it, in a private mount namespace.
    """
    if not _in_user_namespace() or _has_own_mount():
        return
    with contextlib.suppress(OSError):
        DIRECTORY.mkdir(exist_ok=True)
    place = DIRECTORY if DIRECTORY.exists() else DIRECTORY.parent
    mount = ["mount", "-t", "tmpfs", "-o", "mode=755", _MOUNT_SOURCE, str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        return
    # Entered by `unshare -Urn` without -m: the mount namespace is not ours yet.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise LabUnavailable(f"no private mount namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
    run_checked(mount)


def _in_user_namespace() -> bool:
    """Whether root here is somebody else outside."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def _has_own_mount() -> bool:
    return any(f" {_MOUNT_SOURCE} " in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def namespaces_available() -> str | None:
    """None where a lab can be opened, else the reason why not, as a sentence for a skip message."""
    if os.geteuid() != 0:
        return "network namespaces need root, or a run under `unshare -Urnm`"
    return _try_namespaces()


@cache
def _try_namespaces() -> str | None:
    name = new_tag() + "try"
    try:
        for word in _TOOLS:
            tool(word)
        try:
            add_namespace(name)
            # Two kinds of device and conntrack may be missing from a kernel or forbidden in a container.
            configure(
                name,
                links=["link add try0 type veth peer name try1"],
                rules=NatKind().ruleset(),
            )
        finally:
            remove_namespaces([name])
    except LabUnavailable as error:
        return f"no network namespaces: {error}"
    return None


def reexec_in_user_namespace() -> None:
    """Start this program again as root of a new user, network and mount namespace, unless it is root already.

    Returns where the process is root. Raises LabUnavailable where the kernel forbids user namespaces, or a
    tool is missing: nothing could be done in there then, and there is no way back to this network.
    """
    if os.geteuid() == 0:
        _raise_loopback()
        return
    for word in _TOOLS:
        tool(word)
    unshare = ["unshare", "-Urnm", "--"]
    run_checked([*unshare, "true"])
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.orig_argv[1:]])


def _raise_loopback() -> None:
    """A new network namespace has its loopback down, and a program expects 127.0.0.1 to be there."""
    flags = Path("/sys/class/net/lo/flags")
    with contextlib.suppress(OSError, ValueError):
        if int(flags.read_text(), 16) & 1:
            return
    subprocess.run([tool("ip"), "link", "set", "lo", "up"], capture_output=True, check=False)


def _owner(name: str) -> int:
    pid = name.removeprefix(PREFIX).split("-")[0]
    return int(pid) if pid.isdecimal() else 0


def _alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()
