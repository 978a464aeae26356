"""`ntcp admin` and its socket: who may, what it says, what it does; of ntcp serve and of the scripts."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from broker_support import make_identity
from hypothesis import given
from hypothesis import strategies as st
from local_users import as_nobody
from relay_support import PATIENCE, running_broker
from test_server_operation import SERVERS, running
from world import open_world

from ntcpsock._errors import BadMessage, BrokerRefused, BrokerUnreachable
from ntcpsock._servers.admin import message
from ntcpsock._servers.admin.desk import AdminDesk
from ntcpsock._servers.admin.driver import ask, serve_admin
from ntcpsock._servers.admin.machine import Lines
from ntcpsock._servers.bans import BanFile
from ntcpsock._servers.broker import BrokerServer
from ntcpsock._servers.names import NameStore

ALICE = make_identity(1)

ASK = """
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(arguments)
        sock.sendall(b'{"command":"status"}' + bytes([10]))
        result = ["received", sock.recv(100).decode()]
    except OSError as error:
        result = ["error", errno.errorcode[error.errno]]
"""


# Pure.


def test_requests_and_answers_round_trip() -> None:
    for request in (
        message.Status(),
        message.ListNodes("al", 5),
        message.AddBan("192.0.2.1", 3600.0, "why"),
        message.GiveName("alice", ALICE.node_id),
        message.Drain(),
    ):
        assert message.decode_request(message.encode(request).rstrip(b"\n")) == request
    answer = message.Answer({"nodes": [1]}, "")
    assert message.decode_answer(message.encode(answer).rstrip(b"\n")) == answer


@given(st.binary(max_size=200))
def test_only_one_exception_leaves_the_decoders(data: bytes) -> None:
    for decode in (message.decode_request, message.decode_answer):
        with suppress(BadMessage):
            decode(data)


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b'{"command":"what"}', b'{"command":"list","limit":0}', b'{"command":"status","x":1}'],
)
def test_what_is_no_request(line: bytes) -> None:
    with pytest.raises(BadMessage):
        message.decode_request(line)


@given(
    st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"")), max_size=10),
    st.integers(1, 7),
)
def test_lines_come_out_however_they_are_cut(texts: list[bytes], size: int) -> None:
    lines, data = Lines(32), b"".join(text + b"\n" for text in texts)
    found: list[bytes] = []
    for start in range(0, len(data), size):
        found += lines.receive(data[start : start + size])
    assert found == texts


def test_a_line_without_end_is_refused() -> None:
    lines = Lines(32)
    assert lines.receive(b"x" * 31 + b"\n") == [b"x" * 31]
    with pytest.raises(BadMessage):
        lines.receive(b"x" * 32)
    with pytest.raises(BadMessage):
        Lines(32).receive(b"x" * 40 + b"\n")


def test_names_are_found_given_and_freed() -> None:
    names = NameStore(None)
    names.claim(("alice", "al_ce", "bob"), b"a" * 32, None)
    assert [row[:2] for row in names.search("l", 10)] == [("al_ce", b"a" * 32), ("alice", b"a" * 32)]
    assert [row[0] for row in names.search("l_c", 10)] == ["al_ce"], "no pattern"
    assert [row[0] for row in names.search("", 2)] == ["al_ce", "alice"]
    assert names.assign("alice", b"b" * 32) == b"a" * 32
    assert names.assign("carol", b"b" * 32) is None
    assert names.names_of(b"b" * 32) == ("alice", "carol")
    assert names.release("bob") == b"a" * 32
    assert names.release("bob") is None
    assert names.count == 3
    names.close()


# The socket.


@asynccontextmanager
async def with_admin(
    path: Path, server: BrokerServer, ban_file: BanFile | None = None
) -> AsyncIterator[Callable[..., Any]]:
    """Asks a broker of this process as the command does."""
    drained: list[bool] = []
    desk = AdminDesk(
        "tests",
        lambda: {"pid": os.getpid()},
        lambda: drained.append(True),
        server.core,
        server.relay,
        server.core.gate.bans,
        ban_file or BanFile(None),
    )

    async def say(request: message.Request) -> dict[str, Any]:
        answer = await trio.to_thread.run_sync(ask, path, request, PATIENCE)
        if answer.error:
            raise OSError(answer.error)
        return answer.result

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_admin, path, desk)
        yield say
        nursery.cancel_scope.cancel()


async def test_the_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with running_broker() as server:
        for _ in range(2):
            async with with_admin(path, server) as say:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert (await say(message.Status()))["program"] == "tests"
            assert not path.exists()


async def test_another_user_is_not_answered_whatever_the_mode() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "admin.sock")
        os.chmod(folder, 0o755)
        async with running_broker() as server, with_admin(path, server):
            assert await trio.to_thread.run_sync(as_nobody, ASK, str(path)) == ["error", "EACCES"]
            os.chmod(path, 0o666)
            answer = await trio.to_thread.run_sync(as_nobody, ASK, str(path))
            assert answer in (["received", ""], ["error", "EPIPE"], ["error", "ECONNRESET"])


async def test_a_dead_servers_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running_broker() as server:
        async with with_admin(path, server) as say:
            with pytest.raises(OSError, match="choose one with --socket"):
                await serve_admin(path, None)  # type: ignore[arg-type]
            assert await say(message.Bans()) == {"bans": []}
    path.write_text("something")
    with pytest.raises(OSError, match="something else"):
        await serve_admin(path, None)  # type: ignore[arg-type]
    assert path.read_text() == "something"


async def test_a_path_may_be_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with running_broker() as server, with_admin(folder / "admin.sock", server) as say:
        assert (await say(message.ListNodes()))["total"] == 0


async def test_garbage_and_silence_at_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with running_broker() as server, with_admin(path, server) as say:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\n", b"x" * 5000, b'{"command":"list","limit":1e9}\n'):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(data)
                with trio.fail_after(PATIENCE):
                    answer = b"".join([bytes(part) async for part in stream])
                assert message.decode_answer(answer.rstrip(b"\n")).error
        silent = [await trio.open_unix_socket(path) for _ in range(20)]
        for stream in silent[16:]:
            with trio.fail_after(PATIENCE):
                assert await stream.receive_some(1) == b"", "one too many"
        for stream in silent:
            await stream.aclose()
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    await say(message.Status())
                    break
                except OSError:
                    await trio.sleep(0.01)


# What it does.


async def test_nodes_are_listed_shown_and_dropped_and_come_back(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world, with_admin(tmp_path / "a", world.server) as say:
        async with world.node("alice") as alice, world.node() as bob:
            async with await alice.open_listener(8000):
                listed = await say(message.ListNodes())
                assert (listed["total"], listed["more"]) == (2, False)
                (row,) = (await say(message.ListNodes("ALICE.ntcp")))["nodes"]
                assert (row["node_id"], row["names"], row["ports"]) == (alice.node_id, ["alice"], [8000])
                assert row["host"] == "127.0.0.1"
                assert (await say(message.ListNodes("", 1)))["more"]
                shown = await say(message.Show("alice.ntcp"))
                assert shown["instances"][0]["card_bytes"] > 0
                assert not shown["banned"]
                with pytest.raises(OSError, match="nobody has this name"):
                    await say(message.Show("carol"))
                assert await say(message.Drop("alice")) == {"sessions": 1, "relayed_connections": 0}
                # Its next frame tells it, and it is registered again at once.
                await alice.registration.send()
                (await bob.open_stream("alice", 8000)).reset()
                assert (await say(message.Drop("127.0.0.0/8")))["sessions"] == 2
                assert (await say(message.ListNodes()))["total"] == 0


async def test_a_ban_ends_what_there_is_and_keeps_away(tmp_path: Path) -> None:
    file = BanFile(tmp_path / "bans.json")
    async with open_world(tmp_path, tcp=True) as world, with_admin(tmp_path / "a", world.server, file) as say:
        assert world.server.relay is not None
        async with world.node("alice", relay="only") as alice, world.node(relay="only") as bob:
            async with await alice.open_listener(8000) as listening:
                mine = await bob.open_stream("alice", 8000)
                theirs = await listening.accept()
                banned = await say(message.AddBan("alice", 3600.0, "noise"))
                assert (banned["ban"]["who"], banned["relayed_connections"]) == (alice.node_id, 1)
                assert banned["sessions"] == 1
                for stream in (mine, theirs):
                    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some(1)
                    stream.reset()
                with pytest.raises(BrokerRefused, match="has banned this node"):
                    await alice.registration.send()
                # Nobody is sent to it, nor has it a ticket.
                with pytest.raises(ConnectionRefusedError):
                    await bob.open_stream("alice", 8000)
        with pytest.raises(BrokerRefused, match=alice.node_id):
            async with world.node("alice"):
                raise AssertionError("it was let in")
        assert json.loads((tmp_path / "bans.json").read_text())[0]["subject"] == alice.node_id
        assert (await say(message.Bans()))["bans"][0]["why"] == "noise"
        await say(message.LiftBan(alice.node_id))
        assert json.loads((tmp_path / "bans.json").read_text()) == []
        async with world.node("alice"):
            pass
        with pytest.raises(OSError, match="is not banned"):
            await say(message.LiftBan("192.0.2.1"))


async def test_a_banned_address_has_no_answer_and_no_seat(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world, with_admin(tmp_path / "a", world.server) as say:
        await say(message.AddBan("127.0.0.1"))
        with pytest.raises(BrokerUnreachable):
            async with world.node(broker_timeout=1.0):
                raise AssertionError("it was let in")
        desk = world.server.relay
        assert desk is not None
        assert desk._is_banned(desk._verify_untrusted(tickets_of(world.server)), "127.0.0.1")
        await say(message.LiftBan("127.0.0.1"))
        async with world.node():
            pass


def tickets_of(server: BrokerServer) -> bytes:
    issued = server.core._tickets(b"d" * 32, b"l" * 32, trio.current_time())
    assert issued is not None
    return issued[0]


async def test_a_name_is_given_and_freed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, with_admin(tmp_path / "a", world.server) as say:
        async with world.node("alice") as alice:
            other = make_identity(7).node_id
            given = await say(message.GiveName("Alice", other))
            assert (given["before"], given["node_id"], given["sessions"]) == (alice.node_id, other, 1)
            assert (await say(message.ListNames()))["names"][0]["node_id"] == other
            with pytest.raises(OSError, match="belongs to another key"):
                await alice.registration.send()
            freed = await say(message.FreeName("alice.ntcp"))
            assert freed["before"] == other
            await alice.registration.send()
            assert (await say(message.ListNames("lic")))["names"][0]["node_id"] == alice.node_id
            for request in (message.FreeName("bob"), message.GiveName("bob", "no id"), message.FreeName("*")):
                with pytest.raises(OSError):  # noqa: PT011 (its words are another test's)
                    await say(request)


# The command.


def admin(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ntcpsock", "admin", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=PATIENCE,
    )


SERVE = ("-m", "ntcpsock", "serve", "--broker-port", "0", "--stun-port", "0", "--listen", "127.0.0.1")


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("serve", SERVE),
        *(
            (name, (str(SERVERS / f"{name}.py"), "--listen", "127.0.0.1", "--port", "0"))
            for name in ("udp_broker", "tcp_broker", "relay", "stun_server")
        ),
    ],
)
def test_every_server_has_it(program: str, command: tuple[str, ...], tmp_path: Path) -> None:
    with running(*command, NTCP_STATE=str(tmp_path)) as (_, process):
        assert process.stdout is not None
        path = tmp_path / f"admin-{program}.sock"
        assert process.stdout.readline() == f"admin {path}\n"
        done = admin("status", "--json", NTCP_STATE=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        told = json.loads(done.stdout)
        assert (told["program"], told["pid"]) == (program, process.pid)
        text = admin("status", "--socket", str(path)).stdout
        assert f"{program}, process {process.pid}" in text
        is_broker = program in ("serve", "udp_broker", "tcp_broker")
        done = admin("list", NTCP_STATE=str(tmp_path))
        assert done.returncode == (0 if is_broker else 1)
        assert is_broker or "is no broker" in done.stderr
        done = admin("ban", "192.0.2.0/24", "--for", "2h", NTCP_STATE=str(tmp_path))
        assert done.returncode == (1 if program == "stun_server" else 0)
        if is_broker:
            bans = json.loads(admin("bans", "--json", NTCP_STATE=str(tmp_path)).stdout)["bans"]
            assert [entry["who"] for entry in bans] == ["192.0.2.0/24"]
            assert 7100 < bans[0]["seconds_left"] <= 7200
        assert admin("drain", NTCP_STATE=str(tmp_path)).returncode == 0
        assert process.wait(PATIENCE) == 0
        assert not path.exists()


def test_bans_are_there_after_a_restart(tmp_path: Path) -> None:
    command = (str(SERVERS / "udp_broker.py"), "--listen", "127.0.0.1", "--port", "0")
    for run in range(2):
        with running(*command, NTCP_STATE=str(tmp_path)) as (_, process):
            if not run:
                assert admin("ban", ALICE.node_id, "--why", "noise", NTCP_STATE=str(tmp_path)).returncode == 0
            done = admin("bans", NTCP_STATE=str(tmp_path))
            assert ALICE.node_id in done.stdout
            assert "for ever" in done.stdout
            assert "noise" in done.stdout
            process.terminate()
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("status",), 1, "is one running?"),
        (("status", "--socket", "/nowhere/at/all"), 1, "no server is there"),
        (("ban", "alice", "--for", "soon", "--socket", "/x"), 2, "30m, 12h or 7d"),
        (("list", "--limit", "0"), 2, "--limit"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    done = admin(*arguments, NTCP_STATE=str(tmp_path), COLUMNS="200")
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_several_servers_of_one_state_directory(tmp_path: Path) -> None:
    for name in ("admin-serve.sock", "admin-relay.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / name))
    done = admin("status", NTCP_STATE=str(tmp_path))
    assert done.returncode == 1
    assert "several servers" in done.stderr
    done = admin("status", "--socket", str(tmp_path / "admin-relay.sock"))
    assert "has ended without goodbye" in done.stderr


def test_tables_fit_and_show_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ntcpsock.cli import admin_view

    admin_view.nodes(
        {
            "nodes": [
                {
                    "names": ["[red]x"],
                    "node_id": ALICE.node_id,
                    "host": "2001:db8::1",
                    "port": 1,
                    "hidden": True,
                    "transport": "udp",
                    "ports": [],
                    "registered": False,
                    "seconds_left": 7000.0,
                }
            ],
            "total": 5,
            "more": True,
        }
    )
    shown = capsys.readouterr().out
    for words in (
        "[red]x",
        ALICE.node_id,
        "2001:db8::1 1 hidden",
        "not registered",
        "there are more, 5 nodes",
    ):
        assert words in shown
