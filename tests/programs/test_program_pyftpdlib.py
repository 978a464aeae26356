"""FTP, which sends its own addresses along: pyftpdlib and ftplib, active and passive, by name at both ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")

# Each session in a thread: the plain FTPServer's sessions of active transfers unregister each other's descriptors,
# by a number that is closed and taken again (plain TCP only hides it: its connects take no time).
SERVER = """
import pathlib
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

pathlib.Path("store").mkdir()
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user("me", "secret", "store", perm="elradfmwMT")
server = ThreadedFTPServer(("alice.ntcp", 2121), FTPHandler)
print("ready")
server.serve_forever()
"""

CLIENT = (
    PAYLOAD
    + """
import ftplib, io, sys, threading

def session(number, data, passive):
    with ftplib.FTP() as ftp:
        ftp.connect("alice.ntcp", 2121, timeout=60)
        ftp.login("me", "secret")
        ftp.set_pasv(passive)
        ftp.storbinary(f"STOR file{number}", io.BytesIO(data))
        assert ftp.size(f"file{number}") == len(data)
        back = io.BytesIO()
        ftp.retrbinary(f"RETR file{number}", back.write)
        assert back.getvalue() == data
        names = ftp.nlst()
        ftp.delete(f"file{number}")
        assert ftp.nlst() != names
        return names

passive = sys.argv[1] == "passive"
print(session("", PAYLOAD, passive))
done = []
threads = [
    threading.Thread(target=lambda n=n: done.append(session(n, bytes([n]) * 50_000, passive))) for n in range(8)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done))
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("mode", ["passive", "active"])
def test_transfer(stage: Stage, tmp_path: Path, mode: str) -> None:
    # Active, the server connects to what the client listens on, so that one has a name too.
    with running(stage, tmp_path, "alice", SERVER):
        told = run(stage, tmp_path, "bob", CLIENT, mode, named=mode == "active")
        assert told == ["['file']", "8"]
