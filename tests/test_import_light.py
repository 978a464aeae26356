"""`import ntcpsock` is `import socket` and a little more; its face is complete and typed."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ntcpsock

HEAVY = ("trio", "nacl", "msgspec", "cryptography", "typer", "asyncio", "ssl")


@pytest.mark.parametrize(
    "statement",
    ["import ntcpsock", "import ntcpsock as socket; socket.socket().close(); socket.install()"],
)
def test_nothing_heavy_is_loaded_and_nothing_runs(statement: str) -> None:
    program = f"{statement}\nimport sys, threading\nprint(*sys.modules)\nassert threading.active_count() == 1"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(run.stdout.split())


def test_every_public_name_of_socket_is_there() -> None:
    missing = [name for name in dir(socket) if not name.startswith("_") and not hasattr(ntcpsock, name)]
    assert missing == []
    assert set(socket.__all__) <= set(ntcpsock.__all__)
    assert all(hasattr(ntcpsock, name) for name in ntcpsock.__all__)
    assert ntcpsock.socket is ntcpsock.NTCPSocket
    assert set(dir(socket.socket)) <= set(dir(ntcpsock.NTCPSocket))


def test_functions_of_the_module_use_ours_and_leave_the_module_alone() -> None:
    with ntcpsock.create_server(("127.0.0.1", 0)) as server:
        assert type(server) is ntcpsock.NTCPSocket
        with ntcpsock.create_connection(server.getsockname()) as client:
            assert type(client) is ntcpsock.NTCPSocket
            accepted, address = server.accept()
            with accepted:
                assert type(accepted) is ntcpsock.NTCPSocket
                assert address == client.getsockname()
    for end in ntcpsock.socketpair():
        assert type(end) is ntcpsock.NTCPSocket
        end.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert type(server) is socket.socket


def test_plain_sockets_start_no_engine() -> None:
    before = threading.active_count()
    with ntcpsock.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(OSError, match=r"."):
            ntcpsock.create_connection(("127.0.0.1", 1))
        assert server.getsockname()[0] == "127.0.0.1"
    assert threading.active_count() == before


def test_type_checkers_see_our_class(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import ntcpsock as socket\n"
        "s = socket.socket()\n"
        "reveal_type(s)\n"
        "reveal_type(s.peer)\n"
        "reveal_type(socket.AF_INET)\n"
        "reveal_type(socket.start(socket.Config()))\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert run.returncode == 0, run.stdout
    assert "NTCPSocket" in run.stdout
    assert "PeerInfo | None" in run.stdout
