"""ssh without a system's ssh: an asyncssh server by name; asyncssh and paramiko as clients, with sftp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("asyncssh", reason="asyncssh is not installed")
pytest.importorskip("paramiko", reason="paramiko is not installed")

SERVER = """
import asyncio, asyncssh, hashlib

async def shell(process):
    digest = hashlib.sha256()
    while data := await process.stdin.read(65536):
        digest.update(data)
    process.stdout.write(digest.hexdigest().encode())
    process.stderr.write(b"to stderr")
    process.exit(7)

async def main():
    server = await asyncssh.listen(
        "alice.ntcp", 2222, server_host_keys=["host"], authorized_client_keys="user.pub", encoding=None,
        process_factory=shell, sftp_factory=asyncssh.SFTPServer,
    )
    print("ready")
    await server.wait_closed()

asyncio.run(main())
"""

WITH_ASYNCSSH = (
    PAYLOAD
    + """
import asyncio, asyncssh, pathlib

async def main():
    options = dict(username="me", client_keys=["user"], known_hosts=None)
    async with asyncssh.connect("alice.ntcp", 2222, **options) as connection:
        done = await connection.run("digest", input=PAYLOAD, encoding=None)
        assert done.stdout.decode() == DIGEST
        print(done.exit_status, done.stderr.decode())
        async with connection.start_sftp_client() as sftp:
            pathlib.Path("up").write_bytes(PAYLOAD)
            await sftp.put("up", "stored")
            await sftp.get("stored", "down")
        assert hashlib.sha256(pathlib.Path("down").read_bytes()).hexdigest() == DIGEST
        several = await asyncio.gather(
            *(connection.run("digest", input=bytes([n]) * 10_000, encoding=None) for n in range(10))
        )
        print(len({one.stdout for one in several}))

    async def one(number):
        async with asyncssh.connect("alice.ntcp", 2222, **options) as connection:
            return (await connection.run("digest", input=b"x", encoding=None)).exit_status

    print(await asyncio.gather(*map(one, range(5))))

asyncio.run(main())
"""
)

WITH_PARAMIKO = (
    PAYLOAD
    + """
import paramiko, io

client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect("alice.ntcp", 2222, "me", key_filename="user", allow_agent=False, look_for_keys=False)
stdin, stdout, stderr = client.exec_command("digest")
stdin.write(PAYLOAD)
stdin.channel.shutdown_write()
assert stdout.read().decode() == DIGEST
print(stdout.channel.recv_exit_status(), stderr.read().decode())
with client.open_sftp() as sftp:
    sftp.putfo(io.BytesIO(PAYLOAD), "from-paramiko")
    back = io.BytesIO()
    sftp.getfo("from-paramiko", back)
    print(sftp.stat("from-paramiko").st_size)
assert hashlib.sha256(back.getvalue()).hexdigest() == DIGEST
client.close()
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def make_keys(folder: Path) -> None:
    import asyncssh

    for name in ("host", "user"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(folder / name))
        key.write_public_key(str(folder / f"{name}.pub"))


def test_commands_and_sftp(stage: Stage, tmp_path: Path) -> None:
    make_keys(tmp_path)
    with running(stage, tmp_path, "alice", SERVER):
        told = run(stage, tmp_path, "bob", WITH_ASYNCSSH)
        assert told == ["7 to stderr", "10", "[7, 7, 7, 7, 7]"]
        assert run(stage, tmp_path, "carol", WITH_PARAMIKO) == ["7 to stderr", "5000000"]
