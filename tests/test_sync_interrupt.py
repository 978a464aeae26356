"""Ctrl-C and other signals while a program waits by name; each test is a program of its own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from process_support import run

# Sends a signal when the main thread has come to wait in one of the engine's calls, or in the system's.
WHEN = """
network.silent.add("bob")

def when_waiting(number=signal.SIGINT, *more):
    main = threading.main_thread()
    def watch():
        seen = None
        while True:
            frame = sys._current_frames()[main.ident]
            place = (frame.f_code.co_name, frame.f_lineno, frame.f_lasti)
            if place == seen:
                break
            seen = place if place[0] in ("wait", "accept", "recv_once") else None
            threading.Event().wait(0.2)
        os.kill(os.getpid(), number)
        for function in more:
            function()
    threading.Thread(target=watch, daemon=True).start()

def recv_once(sock):
    return sock.recv(1)
"""

WAITS = {
    "connect": "ntcpsock.create_connection(('bob.ntcp', 1))",
    "connect with a time-out": "ntcpsock.create_connection(('bob.ntcp', 1), 60)",
    "connect_ex": "ntcpsock.NTCPSocket().connect_ex(('bob.ntcp', 1))",
    "accept": "server.accept()",
    "accept with a time-out": "server.settimeout(60); server.accept()",
    "recv": "client.settimeout(None); recv_once(client)",
    "recv of the accepted": "recv_once(accepted)",
    "start": "node_is_slow(); ntcpsock.start()",
}

SLOW_START = """
def node_is_slow():
    import trio
    async def for_ever(self):
        await trio.sleep_forever()
    import fake_node
    fake_node.FakeNode.wait_warm = for_ever
"""


@pytest.mark.parametrize(
    ("what", "encrypted"),
    [
        ("connect", False),
        ("connect_ex", True),
        ("accept", False),
        ("accept", True),
        ("recv", True),
        ("start", False),
    ],
)
def test_ctrl_c_ends_the_program(what: str, encrypted: bool, tmp_path: Path) -> None:
    result = run(f"{WHEN}{SLOW_START}when_waiting()\n{WAITS[what]}\n", tmp_path, encrypted=encrypted)
    assert result.returncode == -signal.SIGINT
    assert result.stdout == ""
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.endswith("\nKeyboardInterrupt\n")
    assert "ignored" not in result.stderr


def test_a_caught_ctrl_c_leaves_everything_usable(tmp_path: Path) -> None:
    body = f"""{WHEN}{SLOW_START}
import gc

def is_back(descriptors):
    for _ in range(3000):
        gc.collect()
        if len(os.listdir("/proc/self/fd")) <= descriptors:
            return True
        time.sleep(0.01)
    return False

# Once bytes pass, the engine has all descriptors of the first connection.
client.sendall(b"x")
assert accepted.recv(1) == b"x"
for what, wait in {WAITS!r}.items():
    descriptors = len(os.listdir("/proc/self/fd"))
    network.events.clear()
    when_waiting()
    try:
        exec(compile(wait, what, "exec"))  # of a text it would be remembered as an end by Ctrl-C
        print("not interrupted:", what)
    except KeyboardInterrupt:
        pass
    # Only now: the traceback held the socket that was made within.
    if not is_back(descriptors):
        print("descriptors are left after", what)
    if ("cancelled dial of bob" in network.events) != ("connect" in what):
        print("events after", what, network.events)
    server.settimeout(None)
    client.sendall(b"x")
    fresh, again = pair()
    again.sendall(b"y")
    if (accepted.recv(1), fresh.recv(1)) != (b"x", b"y"):
        print("nothing works after", what)
    fresh.close()
    again.close()
"""
    result = run(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_interrupted_socket_itself_connects_again(tmp_path: Path) -> None:
    body = f"""{WHEN}
sock = ntcpsock.NTCPSocket()
when_waiting()
try:
    sock.connect(("bob.ntcp", 1))
except KeyboardInterrupt:
    pass
sock.connect(("alice.ntcp", 8000))
other, _ = server.accept()
sock.sendall(b"hello")
print(other.recv(10), sock.peer.name)
"""
    result = run(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "b'hello' alice\n", "")


@pytest.mark.parametrize("what", ["connect", "accept", "recv"])
def test_a_handler_that_returns_lets_the_call_go_on(what: str, tmp_path: Path) -> None:
    """PEP 475: no InterruptedError reaches the program."""
    body = f"""{WHEN}
from fake_node import FakeNode
import trio
gate = trio.Event()
dial = FakeNode.open_stream
async def wait(self, name, port, **options):
    await gate.wait()
    return await dial(self, name, port, **options)
def go_on():
    if {what!r} == "connect":
        _portal.get().soon(gate.set)
    elif {what!r} == "accept":
        kept.append(ntcpsock.create_connection(("alice.ntcp", 8000), 20))
    else:
        accepted.sendall(b"x")
kept = []
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
if {what!r} == "connect":
    FakeNode.open_stream = wait
when_waiting(signal.SIGUSR1, lambda: [time.sleep(0.01) for _ in iter(lambda: bool(handled), True)], go_on)
if {what!r} == "connect":
    done = ntcpsock.create_connection(("alice.ntcp", 8000))
elif {what!r} == "accept":
    done = server.accept()[0]
else:
    client.settimeout(None)
    done = recv_once(client)
print(len(handled), bool(done))
"""
    result = run(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 True\n", "")


def test_a_handler_that_exits(tmp_path: Path) -> None:
    body = f"""{WHEN}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
when_waiting(signal.SIGTERM)
ntcpsock.create_connection(("bob.ntcp", 1))
"""
    result = run(body, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (5, "", "")
