"""Fork, exit, and what a process leaves behind. Each test is a program of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from process_support import run


@pytest.mark.parametrize(
    "body",
    [
        "",
        "network.silent.add('bob')\n"
        "threading.Thread(target=ntcpsock.create_connection, args=(('bob.ntcp', 1),), daemon=True).start()\n",
        "threading.Thread(target=server.accept, daemon=True).start()\n",
        "del _portal, ntcpsock\n",
        "sys.exit(0)\n",
        "client.sendall(b'x'); keep = client.makefile()\n",
    ],
    ids=["open sockets", "a dial", "an accept", "modules deleted", "sys.exit", "a file"],
)
@pytest.mark.parametrize("encrypted", [False, True])
def test_exit_is_silent_and_does_not_hang(body: str, encrypted: bool, tmp_path: Path) -> None:
    started = time.monotonic()
    result = run(body, tmp_path, encrypted=encrypted)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - started < 20


def test_a_child_of_multiprocessing_brings_out_what_was_written(tmp_path: Path) -> None:
    # Its end is os._exit, which calls no exit handlers.
    body = """
import multiprocessing

kept = []

def child():
    server = ntcpsock.create_server(("alice.ntcp", 8001))
    client = ntcpsock.create_connection(("alice.ntcp", 8001), timeout=20)
    kept.extend((server, client, server.accept()))
    stream = network.streams[-2]
    send_all = stream.send_all
    async def slowly(data):
        import trio
        await trio.sleep(0.2)
        os.write(1, data)
    stream.send_all = slowly
    client.sendall(b"written")

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
"""
    result = run(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "written", "")


def test_exit_brings_out_what_was_written(tmp_path: Path) -> None:
    body = """
import atexit
network.window = 1 << 24
client, accepted = pair()
stream = network.streams[-2]
seen = []
put = stream._out.put
async def watch(data):
    seen.append(len(data))
    await put(data)
stream._out.put = watch
client.sendall(b"x" * 2_000_000)
# Before ours in the order of exit: what this prints was read after the engine's handler had been asked.
atexit.unregister(_portal._at_exit)
atexit.register(lambda: print(sum(seen), stream._out.ended))
atexit.register(_portal._at_exit)
"""
    assert run(body, tmp_path).stdout == "2000000 True\n"


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_exit_handler_can_still_use_its_sockets(encrypted: bool, tmp_path: Path) -> None:
    body = """
import atexit
def last_words():
    client.sendall(b"bye")
    print(accepted.recv(10))
    fresh, _ = pair()
    print(fresh.peer.name)
atexit.register(last_words)
"""
    assert run(body, tmp_path, encrypted=encrypted).stdout == "b'bye'\nalice\n"


def test_after_the_end_names_are_refused(tmp_path: Path) -> None:
    body = """
import atexit
def too_late():
    try:
        ntcpsock.create_connection(("alice.ntcp", 8000))
    except OSError as error:
        print(type(error).__name__)
atexit.unregister(_portal._at_exit)
atexit.register(too_late)
atexit.register(_portal._at_exit)
"""
    assert run(body, tmp_path).stdout == "ConnectionAbortedError\n"


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_forked_child_can_connect_again(encrypted: bool, tmp_path: Path) -> None:
    body = """
sys.stdout.flush()
child = os.fork()
if child == 0:
    # The parent's directory is in the parent; this engine has its own.
    network.listeners.clear()
    mine = ntcpsock.create_server(("bob.ntcp", 1))
    one = ntcpsock.create_connection(("bob.ntcp", 1), timeout=20)
    two, _ = mine.accept()
    one.sendall(b"child")
    print(two.recv(10), two.peer is not None)
    # What the parent connected goes on through the parent's engine.
    client.sendall(b"inherited")
    sys.exit(0)
_, status = os.waitpid(child, 0)
print(accepted.recv(20), os.waitstatus_to_exitcode(status))
other, again = pair()
other.sendall(b"parent")
print(again.recv(10))
"""
    result = run(body, tmp_path, encrypted=encrypted)
    assert result.stderr == ""
    assert result.stdout == "b'child' True\nb'inherited' 0\nb'parent'\n"


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_child_keeps_no_connection_of_the_parent_open(encrypted: bool, tmp_path: Path) -> None:
    body = """
child = os.fork()
if child == 0:
    client.close(); accepted.close(); server.close()
    signal.pause()
# The child's close ended neither the connection nor the listener of the parent.
client.sendall(b"x")
print(accepted.recv(1))
accepted.close()
print(client.recv(1))
client.close()
fresh, again = pair()
fresh.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
fresh.close()
try:
    again.recv(1)
except ConnectionResetError:
    print("reset")
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
    result = run(body, tmp_path, encrypted=encrypted)
    assert result.stderr == ""
    assert result.stdout == "b'x'\nb''\nreset\n"


@pytest.mark.parametrize("encrypted", [False, True])
def test_fork_while_the_engine_is_busy(encrypted: bool, tmp_path: Path) -> None:
    body = """
def traffic():
    while True:
        client.sendall(b"x" * 10000)
        accepted.recv(10000)
threading.Thread(target=traffic, daemon=True).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        try:
            ntcpsock.create_connection(("nobody.ntcp", 1), timeout=20)
        except ntcpsock.NameNotFound:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
print("done")
"""
    result = run(body, tmp_path, encrypted=encrypted)
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_fork_while_the_engine_imports_what_logs(tmp_path: Path) -> None:
    """logging holds its lock during a fork, and modules want it while they are imported."""
    body = """
import logging
from ntcpsock import _portal
forking, importing = threading.Event(), threading.Event()
os.register_at_fork(before=forking.set)
def imports():
    with _portal._importing:
        importing.set()
        forking.wait()
        for number in range(20000):
            logging.getLogger(f"module{number}")
threading.Thread(target=imports).start()
importing.wait()
child = os.fork()
if child == 0:
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    result = run(body, tmp_path, encrypted=False)
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.mark.parametrize("encrypted", [False, True])
def test_children_of_subprocess_inherit_nothing(encrypted: bool, tmp_path: Path) -> None:
    body = """
import subprocess
ls = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False)
print(ls.stdout.count("socket:"))
"""
    assert run(body, tmp_path, encrypted=encrypted).stdout == "0\n"
