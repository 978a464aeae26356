"""Servers that listen at all addresses, as most do: under `ntcp run --name alice` they are reached by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import free_port, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

# Library, what its server says of its address, its ports, arguments of both programs.
SERVERS = [
    ("twisted", ('interface="alice.ntcp"', ":interface=alice.ntcp"), ("8000", "8001", "8002"), ()),
    ("tornado", (', address="alice.ntcp"',), ("8000", "8001"), ()),
    ("anyio", ('local_host="alice.ntcp", ',), ("8000",), ("asyncio",)),
    ("anyio", ('local_host="alice.ntcp", ',), ("8000",), ("trio",)),
    ("rpyc", ('hostname="alice.ntcp", ',), ("18861",), ()),
]
SAMPLE = (0, 3)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize(
    ("library", "addresses", "ports", "arguments"),
    [
        pytest.param(*server, marks=[] if number in SAMPLE else pytest.mark.slow)
        for number, server in enumerate(SERVERS)
    ],
)
def test_published(
    stage: Stage,
    tmp_path: Path,
    library: str,
    addresses: tuple[str, ...],
    ports: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    programs = importlib.import_module(f"test_program_{library}")
    server, client = programs.SERVER, programs.CLIENT
    for address in addresses:
        assert address in server
        server = server.replace(address, 'interface=""' if address.startswith("interface") else "")
    for port in ports:
        # At all addresses a port may be another program's.
        free = str(free_port())
        server, client = server.replace(port, free), client.replace(port, free)
    with running(stage, tmp_path, "alice", server, *arguments):
        told = run(stage, tmp_path, "bob", client, *arguments)
    assert told[0] in ("20", "21", "[1, 4, 9]")
    assert "efused" in "".join(told)
