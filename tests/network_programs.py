"""What the lab tests of changing networks run inside hosts: nodes that listen and dial while theirs changes.

The test and they speak by files of one directory: `ready` of a program that may begin, `go` when something has changed.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from peer_programs import PATIENCE, PORT, answer, read_all, wait_registered

from ntcpsock._config import Config
from ntcpsock._errors import NTCPError
from ntcpsock._node import Node
from ntcpsock._node_network import NetworkChange
from ntcpsock._traversal.network.driver import NetlinkSource, NetworkWatcher, PollingSource
from ntcpsock.trio import open_node

# linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class Moved:
    """What a node did after a change. seconds: from the change until a dial had succeeded, and until the broker knew
    it again; transport: how it is reached then; changes: what it was told."""

    seconds: float
    registered: float
    transport: str
    path: str
    changes: tuple[NetworkChange, ...]


def run_listener(config: Config, signals: Path, unprivileged: bool = False) -> None:
    """A node that answers on PORT, and writes down when the broker knows it again, in `registered`. Until killed."""
    config = _prepared(config, unprivileged)

    async def main() -> None:
        changes: list[NetworkChange] = []
        async with open_node(config) as node, await node.open_listener(PORT) as listener:
            node.network.subscribe(changes.append)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, answer, [listener])
                (signals / "listening").touch()
                await _wait_for(signals / "go")
                seconds = await _until_seen(node, signals)
                (signals / "registered").write_text(str(seconds))

    trio.run(main)


def dial_after(config: Config, name: str, signals: Path, unprivileged: bool = False) -> Moved:
    """Be ready, wait until something has changed, and dial until it works."""
    config = _prepared(config, unprivileged)

    async def main() -> Moved:
        changes: list[NetworkChange] = []
        async with open_node(config) as node:
            node.network.subscribe(changes.append)
            await wait_registered(node, name)
            await node.wait_warm()
            (signals / "ready").touch()
            await _wait_for(signals / "go")
            async with trio.open_nursery() as nursery:
                seen: list[float] = []

                async def look() -> None:
                    seen.append(await _until_seen(node, signals))

                nursery.start_soon(look)
                path = await _dial_until_it_works(node, name)
                seconds = _since(signals / "go")
            return Moved(seconds, seen[0], node._session.transport, path, tuple(changes))

    return trio.run(main)


async def _until_seen(node: Node, signals: Path) -> float:
    """Seconds until the broker has answered after the change, from the address that leads to it now."""
    session = node._session
    machine, link = session._machine, session._link
    with trio.fail_after(PATIENCE):
        while (
            link._transport.is_stale()
            or not machine.connected
            or machine._keep_alives.request in machine._requests
        ):
            await trio.sleep(0.01)
    return _since(signals / "go")


async def _dial_until_it_works(node: Node, name: str) -> str:
    with trio.fail_after(PATIENCE):
        while True:
            with suppress(NTCPError, trio.BrokenResourceError):
                async with await node.open_stream(name, PORT, timeout=4.0) as stream:
                    await stream.send_all(b"ehello")
                    await stream.send_eof()
                    if (await read_all(stream)).startswith(b"hellolast word"):
                        return f"{stream.path.kind} {stream.path.technique}"
            await trio.sleep(0.05)


async def _wait_for(file: Path) -> None:
    with trio.fail_after(PATIENCE):
        while not await trio.Path(file).exists():
            await trio.sleep(0.005)


def wait_for(file: Path) -> None:
    """Until the file is there."""
    trio.run(_wait_for, file)


def _since(file: Path) -> float:
    return time.time() - file.stat().st_mtime


def _prepared(config: Config, unprivileged: bool) -> Config:
    if unprivileged:
        _give_up_capabilities()
    return config


def _give_up_capabilities() -> None:
    """All of this thread's, and so of all that it starts: what is left of root is the name."""
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


Told = tuple[set[str], set[str], bool]

# What an administrator of host A does, and what is to be told of it (gone, new, whether routes have changed): where the
# kernel tells news, and where the own addresses are looked at now and then.
_STEPS: tuple[tuple[str, Told | None, Told | None], ...] = (
    ("link add docker0 type bridge; addr add 172.17.0.1/16 dev docker0; link set docker0 up", None, None),
    ("link add veth7 type veth peer name veth8; link set veth7 master docker0 up", None, None),
    (
        "addr add 10.1.0.77/24 dev eth0; addr del 10.1.0.10/24 dev eth0; addr replace 10.1.0.77/24 dev eth0;"
        " route replace default via 10.1.0.1",
        ({"10.1.0.10"}, {"10.1.0.77"}, True),
        ({"10.1.0.10"}, {"10.1.0.77"}, True),
    ),
    ("route replace default via 10.1.0.254", (set(), set(), True), None),
    ("route del default", ({"10.1.0.77"}, set(), True), ({"10.1.0.77"}, set(), True)),
    (
        "route add default via 10.1.0.1",
        (set(), {"10.1.0.77"}, True),
        (set(), {"10.1.0.77"}, True),
    ),
)


def watch(polls: bool) -> tuple[list[Told], list[Told]]:
    """What an unprivileged watcher tells of each of the steps, and what it should have told."""
    script = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _give_up_capabilities()
    changes: list[Told] = []
    expected: list[Told] = []

    def do(commands: str) -> None:
        assert script.stdin is not None
        assert script.stdout is not None
        for command in commands.split(";"):
            script.stdin.write(f"ip {command}; echo $?\n")
            script.stdin.flush()
            assert script.stdout.readline() == "0\n", command

    async def main() -> None:
        watcher = NetworkWatcher(
            lambda found: changes.append((set(found.gone), set(found.new), found.route_changed)),
            lambda: ("11.22.55.2",),
            open_source=PollingSource if polls else NetlinkSource,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(watcher.run)
            for commands, *told in _STEPS:
                do(commands)
                if (wanted := told[polls]) is not None:
                    expected.append(wanted)
                    with trio.fail_after(PATIENCE):
                        while len(changes) < len(expected):
                            await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        script.communicate()
    return changes, expected
