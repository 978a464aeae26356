"""Programs that know nothing of it stay connected while their host's address changes: ssh, websockets, redis-py.

In the lab, each end behind a NAT. Every program says something, the host gets another lease, and it goes on where it
was: the same connection, as its server sees it.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_cli_services_lab import DEADLINE, Running, command
from test_cli_ssh import ssh_server_command
from test_moving_lab import change_address

from ntcpsock.cli.lab import open_lab_stage
from ntcpsock.cli.stage import NTCP, Stage, stop
from ntcpsock.testing.natlab import Host, Lab, namespaces_available

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


WEBSOCKET_SERVER = """
import asyncio
from websockets.asyncio.server import serve

async def echo(connection):
    async for message in connection:
        await connection.send(f"{message} {connection.id}")
    print(f"{connection.id} was closed with {connection.close_code}")

async def main():
    async with serve(echo, "alice.ntcp", 8000):
        print("ready")
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""
WEBSOCKET_CLIENT = """
import sys
from websockets.sync.client import connect

with connect("ws://alice.ntcp:8000/", open_timeout=60) as connection:
    for line in sys.stdin:
        connection.send(line.strip())
        print(connection.recv(60), connection.socket.path.local[0], len(connection.socket.report.moves))
"""
# A lost connection is an error here: redis-py would connect again by itself.
REDIS_CLIENT = """
import sys, redis, redis.backoff, redis.retry

def connect():
    never = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    return redis.Redis("cache.ntcp", 6379, retry=never, single_connection_client=True)

client, listening = connect(), connect()
with listening.pubsub() as channel:
    channel.subscribe("news")
    assert channel.get_message(timeout=60)["type"] == "subscribe"
    subscribed = channel.connection._sock
    for line in sys.stdin:
        number = client.incr("number")
        client.publish("news", f"news-{number}")
        message = channel.get_message(timeout=60)
        assert channel.connection._sock is subscribed
        identity = client.client_id()
        print(number, identity, message["data"].decode(), end=" ")
        print(client.connection._sock.path.local[0], len(client.connection._sock.report.moves))
"""

# What has no name of its own.
PLAIN_CLIENT = """
import socket, sys

connection = socket.create_connection(("127.0.0.1", 7000))
for line in sys.stdin:
    connection.sendall(line.encode())
connection.shutdown(socket.SHUT_WR)
assert not connection.recv(1)
"""


class Behind:
    """A lab with servers; `stack` ends what was started in it."""

    def __init__(self, lab: Lab, stage: Stage, stack: ExitStack, folder: Path) -> None:
        self.lab = lab
        self.stage = stage
        self.stack = stack
        self.folder = folder

    def start(self, host: Host, node: str, *argv: str) -> Talking:
        """A program in a host, which one talks with line by line."""
        talking = Talking(host, argv, self.stage.environment(node, PATH=PATH), self.folder / f"{node}.stderr")
        self.stack.callback(talking.end)
        return talking

    def run(self, host: Host, node: str, source: str, *options: str) -> Talking:
        """A Python program under `ntcp run`."""
        program = self.folder / f"{node}.py"
        program.write_text(source)
        return self.start(host, node, *NTCP, "run", *options, str(program))

    def expose(self, name: str, port: int, to: int) -> Running:
        return command(
            self.lab.host_b,
            self.stack,
            self.stage.environment(name),
            "expose",
            f"{name}:{port}",
            "--to",
            str(to),
        )


class Talking:
    """A program whose standard input and output are read and written by the test."""

    def __init__(self, host: Host, argv: tuple[str, ...], environment: dict[str, str], errors: Path) -> None:
        self.errors = errors
        with open(errors, "wb") as stderr:
            self._process = host.popen(
                argv,
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                bufsize=1,
            )

        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def say(self, line: str) -> None:
        self._input.write(line + "\n")

    def hear(self) -> str:
        line: str = self._output.readline()
        assert line, self.errors.read_text()
        return line.rstrip("\n")

    def wait(self) -> int:
        """Its exit code, after the end of its input."""
        self._input.close()
        return int(self._process.wait(DEADLINE))

    def end(self) -> None:
        stop(self._process)
        self._input.close()
        self._output.close()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    with open_lab_stage("default", "default", 0.025) as (lab, stage), ExitStack() as stack:
        yield Behind(lab, stage, stack, tmp_path)


@pytest.mark.skipif(
    shutil.which("ssh") is None or not os.access("/usr/sbin/sshd", os.X_OK), reason="no ssh here"
)
def test_ssh(behind: Behind) -> None:
    """A shell over ssh, with `ntcp connect` as its ProxyCommand."""
    folder = behind.folder
    port = 2222
    server = behind.lab.host_b.popen(ssh_server_command(folder, port), stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    behind.stack.callback(server.stderr.close)
    behind.stack.callback(stop, server)
    assert "listening" in server.stderr.readline()
    behind.expose("box", 22, port)
    events = folder / "connect.events"
    options = [
        f"ProxyCommand=ntcp connect --json %h:%p 2>{events}",
        f"IdentityFile={folder / 'user'}",
        f"UserKnownHostsFile={folder / 'known_hosts'}",
        "StrictHostKeyChecking=no",
        "BatchMode=yes",
    ]
    words = [word for option in options for word in ("-o", option)]
    shell = behind.start(
        behind.lab.host_a, "laptop", "ssh", "-F", "/dev/null", *words, f"{getpass.getuser()}@box.ntcp", "sh"
    )
    shell.say("X=kept; echo $SSH_CONNECTION $$")
    before = shell.hear()
    change_address(behind.lab.host_a)
    shell.say("echo $SSH_CONNECTION $$ $X")
    assert shell.hear() == f"{before} kept"
    shell.say("exit 7")
    assert shell.wait() == 7
    # Its ProxyCommand ssh ends by a signal.
    connected, moved = [json.loads(line) for line in events.read_text().splitlines()][:2]
    assert (connected["event"], moved["event"]) == ("connected", "moved")
    assert connected["local"][0] == behind.lab.host_a.address
    assert moved["local"][0] != connected["local"][0]
    assert moved["kind"] in ("tcp", "relay")  # and then to a direct path
    assert moved["reason"]


def test_websocket(behind: Behind) -> None:
    pytest.importorskip("websockets", reason="websockets is not installed")
    server = behind.run(behind.lab.host_b, "alice", WEBSOCKET_SERVER, "--name", "alice")
    assert server.hear() == "ready"
    client = behind.run(behind.lab.host_a, "bob", WEBSOCKET_CLIENT)
    client.say("one")
    word, connection, address, moves = client.hear().split()
    assert (word, address, moves) == ("one", behind.lab.host_a.address, "0")
    change_address(behind.lab.host_a)
    for word in ("two", "three"):
        client.say(word)
        heard = client.hear().split()
        assert heard[:2] == [word, connection]
    assert heard[2] != address
    assert int(heard[3]) > 0
    assert client.wait() == 0
    assert server.hear() == f"{connection} was closed with 1000"


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")
def test_redis(behind: Behind) -> None:
    """Commands, and a subscription that is idle while the address changes."""
    pytest.importorskip("redis", reason="redis-py is not installed")
    argv = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        "6379",
        "--save",
        "",
        "--dir",
        str(behind.folder),
    ]
    server = behind.lab.host_b.popen(argv, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    behind.stack.callback(server.stdout.close)
    behind.stack.callback(stop, server)
    assert any("eady to accept connections" in line for line in server.stdout)
    behind.expose("cache", 6379, 6379)
    client = behind.run(behind.lab.host_a, "bob", REDIS_CLIENT)
    client.say("1")
    number, identity, news, address, moves = client.hear().split()
    assert (number, news, address, moves) == ("1", "news-1", behind.lab.host_a.address, "0")
    change_address(behind.lab.host_a)
    for count in (2, 3):
        client.say(str(count))
        heard = client.hear().split()
        assert heard[:3] == [str(count), identity, f"news-{count}"]
    assert heard[3] != address
    assert int(heard[4]) > 0
    assert client.wait() == 0


def test_both_commands_tell_the_move(behind: Behind) -> None:
    lab, stage = behind.lab, behind.stage
    listening = command(lab.host_b, behind.stack, stage.environment("echo"), "listen", "echo:7000")
    forward = command(lab.host_a, behind.stack, stage.environment("bob"), "forward", "7000", "echo:7000")
    client = behind.start(lab.host_a, "plain", sys.executable, "-c", PLAIN_CLIENT)
    client.say("one")
    before = listening.event("connected")
    assert forward.event("opened")["local"][0] == lab.host_a.address
    change_address(lab.host_a)
    client.say("two")
    there, here = listening.event("moved"), forward.event("moved")
    assert here["connection"] == 1
    for moved in (there, here):
        assert moved["kind"] in ("tcp", "relay")  # and then to a direct path
        assert moved["reason"]
        assert 0 <= moved["pause"] < moved["at"]
    assert here["local"][0] != lab.host_a.address
    assert there["remote"] != before["remote"]
    assert client.wait() == 0
    assert listening.event("closed")["received"] == len("one\ntwo\n")
    assert forward.event("closed")["broken_by"] is None
