"""Processes that share a listener or a connection: pre-forked workers, multiprocessing, passed descriptors.

Each test is a program of its own, as in test_sync_process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import multiprocessing, os, signal, socket, sys, threading, traceback
signal.alarm(100)
sys.path.insert(0, {tests!r})
import ntcpsock
from fake_node import FakeNetwork
from ntcpsock import _portal
network = FakeNetwork()
_portal.node_opener = network.open_node

def fork(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child

def wait(child):
    assert os.waitpid(child, 0)[1] == 0

def describe(sock, address):
    return (sock.peer and sock.peer.name, sock.path and sock.path.kind, sock.report and sock.report.role,
            ntcpsock.getnameinfo(address, 0)[0].split(".")[-1], sock.getsockname()[1])
"""


def run(body: str, folder: Path, **variables: str) -> str:
    program = HEAD.format(tests=str(Path(__file__).parent)) + body
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "program.py"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "NTCP_STATE": str(folder),
            "PYTHONPATH": str(Path(__file__).parent.parent),
            **variables,
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


ACCEPT_IN_A_WORKER = """
def work():
    for _ in range(3):
        accepted, address = server.accept()
        print(*describe(accepted, address), accepted.recv(10))
        accepted.close()
child = fork(work)
for number in range(3):
    with ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60) as client:
        client.sendall(b"%d" % number)
        assert client.recv(1) == b""
wait(child)
"""


def test_a_worker_accepts_what_arrives_after_the_fork(tmp_path: Path) -> None:
    body = "server = ntcpsock.create_server(('alice.ntcp', 8000))\n" + ACCEPT_IN_A_WORKER
    expected = "".join(f"alice tcp listener ntcp 8000 b'{number}'\n" for number in range(3))
    assert run(body, tmp_path) == expected


def test_a_worker_lets_no_stranger_in(tmp_path: Path) -> None:
    body = (
        """
server = ntcpsock.create_server(("alice.ntcp", 8000))
stranger = socket.create_connection(socket.socket.getsockname(server))
"""
        + ACCEPT_IN_A_WORKER
    )
    assert run(body, tmp_path).count("alice tcp listener") == 3


@pytest.mark.parametrize("blocking", [True, False])
def test_several_workers_share_the_work(blocking: bool, tmp_path: Path) -> None:
    body = f"""
server = ntcpsock.create_server(("alice.ntcp", 8000))
server.setblocking({blocking})
def work():
    import select
    while True:
        select.select([server], [], [])
        try:
            accepted, _ = server.accept()
        except BlockingIOError:
            continue
        word = accepted.recv(10)
        if word == b"end":
            return
        accepted.sendall(accepted.peer.name.encode())
        accepted.close()
children = [fork(work) for _ in range(3)]
def ask(word):
    with ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60) as client:
        client.sendall(word)
        return client.recv(10)
print({{ask(b"x") for _ in range(30)}})
for _ in children:
    ask(b"end")
for child in children:
    wait(child)
"""
    assert run(body, tmp_path) == "{b'alice'}\n"


def test_a_published_listener_in_a_worker(tmp_path: Path) -> None:
    body = """
ntcpsock.install()
server = socket.create_server(("", 0))
port = server.getsockname()[1]
def work():
    for _ in range(2):
        accepted, address = server.accept()
        with accepted:
            print(accepted.peer and accepted.peer.name, accepted.recv(10))
child = fork(work)
# The name is registered in the background.
while not network.listeners:
    threading.Event().wait(0.01)
for host in ("127.0.0.1", "alice.ntcp"):
    with socket.create_connection((host, port), 60) as client:
        client.sendall(host.encode())
        client.recv(1)
wait(child)
"""
    assert run(body, tmp_path, NTCP_NAME="alice") == "None b'127.0.0.1'\nalice b'alice.ntcp'\n"


def test_a_worker_of_another_user_still_knows_who_arrives(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can change users")
    tmp_path.chmod(0o755)
    body = "server = ntcpsock.create_server(('alice.ntcp', 8000))\n" + ACCEPT_IN_A_WORKER.replace(
        "def work():", "def work():\n    os.setgid(65534); os.setuid(65534)"
    )
    assert run(body, tmp_path).count("alice tcp listener") == 3


PASSED = """
def work(queue, sock):
    sock.settimeout(60)
    print(type(sock).__name__, sock.peer.name, sock.path.kind, sock.report.role, sock.getpeername()[1],
          ntcpsock.getnameinfo(sock.getpeername(), 0)[0])
    sock.sendall(b"from the child")
    queue.put("done")
    sock.close()

if __name__ == "__main__":
    server = ntcpsock.create_server(("alice.ntcp", 8000))
    client = ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60)
    accepted, _ = server.accept()
    context = multiprocessing.get_context({method!r})
    queue = context.Queue()
    child = context.Process(target=work, args=(queue, client))
    child.start()
    print(accepted.recv(20))
    assert queue.get(timeout=60) == "done"
    child.join()
    client.close()
    print(accepted.recv(20))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_connection_for_a_child_of_multiprocessing(method: str, tmp_path: Path) -> None:
    output = run(PASSED.format(method=method), tmp_path)
    assert sorted(output.splitlines()) == [
        "NTCPSocket alice tcp dialer 8000 alice.ntcp",
        "b''",
        "b'from the child'",
    ]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_listener_for_a_child_of_multiprocessing(method: str, tmp_path: Path) -> None:
    body = f"""
def work(server):
    server.settimeout(60)
    accepted, address = server.accept()
    accepted.sendall(repr(describe(accepted, address)).encode())
    accepted.close()

if __name__ == "__main__":
    server = ntcpsock.create_server(("alice.ntcp", 8000))
    child = multiprocessing.get_context({method!r}).Process(target=work, args=(server,))
    child.start()
    with ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60) as client:
        print(client.recv(200).decode())
    child.join()
    # The child's close ended nothing. Its time-out made the shared descriptor non-blocking.
    server.settimeout(60)
    with ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60) as client:
        print(server.accept()[0].peer.name)
"""
    assert run(body, tmp_path) == "('alice', 'tcp', 'listener', 'ntcp', 8000)\nalice\n"


@pytest.mark.parametrize("published", [False, True])
def test_a_socket_bound_here_for_children_that_listen(published: bool, tmp_path: Path) -> None:
    """uvicorn and hypercorn bind, and spawn workers that listen. One engine serves the name: ours."""
    body = f"""
ntcpsock.install()

def work(server):
    server.listen(10)
    server.settimeout(60)
    accepted, address = server.accept()
    accepted.sendall(repr(accepted.peer.name).encode())
    accepted.close()

if __name__ == "__main__":
    server = socket.socket()
    server.bind(("", 0) if {published} else ("alice.ntcp", 0))
    port = server.getsockname()[1]
    children = [multiprocessing.get_context("spawn").Process(target=work, args=(server,)) for _ in range(2)]
    for child in children:
        child.start()
    while not network.listeners:
        threading.Event().wait(0.01)
    for child in children:
        with socket.create_connection(("alice.ntcp", port), timeout=60) as client:
            print(client.recv(200).decode())
    for child in children:
        child.join()
    print(len(network.listeners), server.getsockname()[1] == port)
    server.close()
    print(len(network.listeners))
"""
    names = {"NTCP_NAME": "alice"} if published else {}
    assert run(body, tmp_path, **names) == "'alice'\n'alice'\n1 True\n0\n"


def test_a_queue_carries_sockets_and_pickle_does_not(tmp_path: Path) -> None:
    body = """
import pickle
from multiprocessing.reduction import ForkingPickler
server = ntcpsock.create_server(("alice.ntcp", 8000))
client = ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60)
copy = pickle.loads(ForkingPickler.dumps(client))
print(type(copy).__name__, copy.peer == client.peer, copy.getpeername() == client.getpeername())
plain = pickle.loads(ForkingPickler.dumps(ntcpsock.NTCPSocket(socket.AF_INET, socket.SOCK_DGRAM)))
print(plain.type.name, plain.peer)
try:
    pickle.dumps(client)
except TypeError as error:
    print(error)
"""
    assert run(body, tmp_path) == (
        "NTCPSocket True True\nSOCK_DGRAM None\ncannot pickle 'NTCPSocket' object\n"
    )


def test_a_descriptor_sent_over_a_unix_socket(tmp_path: Path) -> None:
    body = """
server = ntcpsock.create_server(("alice.ntcp", 8000))
client = ntcpsock.create_connection(("alice.ntcp", 8000), timeout=60)
accepted, _ = server.accept()
left, right = socket.socketpair()
def work():
    _, [descriptor], _, _ = socket.recv_fds(right, 10, 1)
    with ntcpsock.NTCPSocket(fileno=descriptor) as mine:
        mine.sendall(b"sent")
child = fork(work)
socket.send_fds(left, [b"x"], [client.fileno()])
wait(child)
client.close()
print(accepted.recv(10), accepted.recv(10))
"""
    assert run(body, tmp_path) == "b'sent' b''\n"


def test_multiprocessing_s_own_connections_by_name(tmp_path: Path) -> None:
    body = """
from multiprocessing.connection import Client, Listener
ntcpsock.install()
with Listener(("alice.ntcp", 8000), authkey=b"key") as listener:
    def serve():
        with listener.accept() as connection:
            connection.send(connection.recv() + 1)
    thread = threading.Thread(target=serve)
    thread.start()
    with Client(("alice.ntcp", 8000), authkey=b"key") as connection:
        connection.send(41)
        print(connection.recv())
    thread.join()
"""
    assert run(body, tmp_path) == "42\n"


def test_fork_during_connect(tmp_path: Path) -> None:
    """The dial is the parent's: the child's copy neither hinders it nor keeps the connection open."""
    body = """
import select
"x".encode("idna")  # imported before threads do it: a fork in between would leave it locked in the child
network.silent.add("bob")
server = ntcpsock.create_server(("alice.ntcp", 8000))
ready, go = os.pipe()
client = ntcpsock.NTCPSocket()
client.setblocking(False)
lost = ntcpsock.NTCPSocket()
lost.setblocking(False)
assert lost.connect_ex(("bob.ntcp", 1)) == 115
blocked = threading.Thread(target=ntcpsock.create_connection, args=(("bob.ntcp", 1),), daemon=True)
blocked.start()
assert client.connect_ex(("alice.ntcp", 8000)) == 115
def work():
    client.close()
    lost.close()
    fresh = ntcpsock.NTCPSocket()
    try:
        ntcpsock.create_connection(("nobody.ntcp", 1), timeout=20)
    except ntcpsock.NameNotFound:
        print("child dials")
child = fork(work)
wait(child)
assert select.select([], [client], [], 60)[1]
assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
accepted, _ = server.accept()
client.sendall(b"x")
print(accepted.recv(1), client.peer.name)
client.close()
print(accepted.recv(1))
"""
    assert run(body, tmp_path) == "child dials\nb'x' alice\nb''\n"
