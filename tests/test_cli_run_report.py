"""`ntcp run --report`: a line for each NTCP connection, whichever way it was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ntcpsock.cli.stage import open_loopback_stage

RUN = [sys.executable, "-m", "ntcpsock", "run"]

PROGRAM = """
import asyncio, contextlib, socket, sys, threading

plain = socket.create_server(("127.0.0.1", 0))
socket.create_connection(plain.getsockname()).close()      # none of the report's business

listener = socket.create_server(("self.ntcp", 7000))
def serve():
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(100))
threading.Thread(target=serve, daemon=True).start()

with socket.create_connection(("self.ntcp", 7000)) as first:
    copy = first.dup()
    first.sendall(b"blocking")
    assert first.recv(100) == b"blocking"
    copy.close()

second = socket.socket()
assert second.connect_ex(("self.ntcp", 7000)) == 0
second.sendall(b"ex")
assert second.recv(100) == b"ex"
second.close()

async def main():
    reader, writer = await asyncio.open_connection("self.ntcp", 7000)
    writer.write(b"asyncio")
    assert await reader.read(100) == b"asyncio"
    writer.close()
asyncio.run(main())

with contextlib.suppress(OSError):
    socket.create_connection(("self.ntcp", 7001))
print("done")
"""


def test_lines(tmp_path: Path) -> None:
    program, report = tmp_path / "program.py", tmp_path / "report.jsonl"
    program.write_text(PROGRAM)
    with open_loopback_stage() as stage:
        done = subprocess.run(
            [*RUN, "--report", str(report), "--name", "self", str(program)],
            env=stage.environment("self"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    events: list[dict[str, Any]] = [json.loads(line) for line in report.read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("connected") == 3, kinds
    assert kinds.count("accepted") == 3, kinds
    assert kinds.count("error") == 1, kinds
    assert len({event["pid"] for event in events}) == 1
    assert os.stat(report).st_mode & 0o777 == 0o600
    failed = events[kinds.index("error")]
    assert failed["target"] == "self:7001"
    assert failed["stage"]
    for event in events:
        assert event["report"]["stages"] or event["event"] == "accepted"
        if event["event"] != "error":
            assert event["peer"]["name"] == "self"
            assert event["technique"]
