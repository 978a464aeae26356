"""Against coturn: its clients ask our server, our client asks its server."""

from __future__ import annotations

import itertools
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from stun_support import own_endpoint, serving, udp_socket

from ntcpsock._address import Endpoint
from ntcpsock._traversal.stun.driver import binding_over_tcp, binding_over_udp, exchange_over_udp
from ntcpsock._traversal.stun.machine import Succeeded
from ntcpsock._traversal.stun.message import binding_request
from ntcpsock._traversal.stun.usages import ChangeRequest

DEADLINE = 60


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is missing (Debian: apt install coturn)"
    )


async def run(*argv: str) -> str:
    """Standard output and error of a program."""
    with trio.fail_after(DEADLINE):
        done = await trio.run_process(argv, capture_stdout=True, check=False, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace")


# --- their clients, our server -----------------------------------------------------------------


@needs("turnutils_stunclient")
async def test_turnutils_stunclient() -> None:
    async with serving(other_address="127.0.0.2") as addresses:
        output = await run("turnutils_stunclient", "-p", str(addresses.primary.port), addresses.primary.host)
        assert "UDP reflexive addr: 127.0.0.1:" in output, output
        assert f"Response origin: : {addresses.primary}" in output, output
        assert f"Other addr: : {addresses.other}" in output, output


@needs("turnutils_stunclient")
async def test_turnutils_stunclient_and_a_server_with_one_address() -> None:
    async with serving() as addresses:
        output = await run("turnutils_stunclient", "-p", str(addresses.primary.port), addresses.primary.host)
        assert "UDP reflexive addr: 127.0.0.1:" in output, output


@needs("turnutils_natdiscovery")
@pytest.mark.parametrize("padding", [[], ["-P"]], ids=["plain", "padded"])
async def test_turnutils_natdiscovery(padding: list[str]) -> None:
    """Nothing is between the two: mapping and filtering are endpoint-independent."""
    async with serving(other_address="127.0.0.2") as addresses:
        port, host = str(addresses.primary.port), addresses.primary.host
        output = await run(
            "turnutils_natdiscovery", "-m", "-f", *padding, "-L", "127.0.0.1", "-p", port, host
        )
        assert "Endpoint Independent Filtering" in output, output
        assert "Endpoint Independent Mapping" in output or "No NAT" in output, output
        assert "timeout" not in output, output


# --- our client, their server ------------------------------------------------------------------


def neighbouring_ports() -> int:
    """A port that is free with the next one on both addresses, over UDP and TCP; none that the kernel gives clients."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            for host, number in itertools.product(("127.0.0.1", "127.0.0.2"), (port, port + 1)):
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    with socket.socket(socket.AF_INET, kind) as sock:
                        sock.bind((host, number))
        except OSError:
            continue
        return port


@contextmanager
def turnserver(directory: Path) -> Iterator[Endpoint]:
    port = neighbouring_ports()
    process = subprocess.Popen(
        [
            "turnserver",
            "-n",
            *("-L", "127.0.0.1", "-L", "127.0.0.2"),
            f"--listening-port={port}",
            f"--alt-listening-port={port + 1}",
            *("--lt-cred-mech", "--user=u:p", "--realm=lab"),
            *("--no-tls", "--no-dtls", "--no-cli", "--allow-loopback-peers"),
            *("--log-file=stdout", "--simple-log"),
            f"--pidfile={directory / 'turnserver.pid'}",
        ],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Endpoint("127.0.0.1", port)
    finally:
        process.terminate()
        process.wait()


async def connected(server: Endpoint) -> trio.SocketStream:
    """A connection, as soon as the server listens."""
    while True:
        try:
            return await trio.open_tcp_stream(*server)
        except OSError:
            await trio.sleep(0.05)


@needs("turnserver")
async def test_turnserver(tmp_path: Path) -> None:
    with turnserver(tmp_path) as server, trio.fail_after(DEADLINE):
        async with await connected(server) as stream:
            for _ in range(2):
                result = await binding_over_tcp(stream.socket)
                assert result.mapped == own_endpoint(stream.socket)
        with await udp_socket() as sock:
            result = await binding_over_udp(sock, server)
            assert result.mapped == own_endpoint(sock)
            assert result.response_origin == server
            assert result.other_address == Endpoint("127.0.0.2", server.port + 1)
            event = await exchange_over_udp(
                sock, binding_request(b"from another", ChangeRequest(True, True)), server, answer_from=None
            )
            assert isinstance(event, Succeeded)
