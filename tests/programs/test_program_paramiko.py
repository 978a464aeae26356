"""paramiko at both ends, with sockets that it is given and with those that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("paramiko", reason="paramiko is not installed")

SERVER = """
import hashlib, paramiko, socket, threading

KEY = paramiko.ECDSAKey.generate()

class Server(paramiko.ServerInterface):
    def check_auth_password(self, username, password):
        return paramiko.AUTH_SUCCESSFUL if password == "secret" else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, number):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=digest, args=(channel,)).start()
        return True

def digest(channel):
    result = hashlib.sha256()
    while data := channel.recv(65536):
        result.update(data)
    channel.sendall(result.hexdigest().encode())
    channel.send_exit_status(3)
    channel.close()

listener = socket.create_server(("alice.ntcp", 2222))
print("ready")
while True:
    connection, address = listener.accept()
    transport = paramiko.Transport(connection)
    transport.add_server_key(KEY)
    transport.start_server(event=threading.Event(), server=Server())
"""

CLIENT = (
    PAYLOAD
    + """
import paramiko, threading

def session(data):
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect("alice.ntcp", 2222, "me", "secret", allow_agent=False, look_for_keys=False)
        stdin, stdout, _ = client.exec_command("digest")
        stdin.write(data)
        stdin.channel.shutdown_write()
        return stdout.read().decode(), stdout.channel.recv_exit_status()

assert session(PAYLOAD) == (DIGEST, 3)
answers = []
threads = [threading.Thread(target=lambda n=n: answers.append(session(bytes([n])))) for n in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(set(answers)))

transport = paramiko.Transport(("alice.ntcp", 2222))
try:
    transport.connect(username="me", password="wrong")
except paramiko.AuthenticationException as error:
    print(error)
transport.close()
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_sessions(stage: Stage, tmp_path: Path) -> None:
    with running(stage, tmp_path, "alice", SERVER):
        assert run(stage, tmp_path, "bob", CLIENT) == ["8", "Authentication failed."]
