"""Three connected pairs over the same loopback: a plain TCP socket, an SSLSocket, an NTCPSocket."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.peer import CHUNK, ORDER, read_exactly
from ntcpsock.cli.stage import Stage, open_loopback_stage, stop

KINDS = ("plain TCP", "SSLSocket", "NTCPSocket")


@contextmanager
def open_pairs() -> Iterator[dict[str, socket.socket]]:
    """A connection to a peer process of each kind; both benchmarks' orders go over them."""
    with ExitStack() as stack:
        stage = stack.enter_context(open_loopback_stage())
        certificate = stage.folder / "certificate.pem"
        write_certificate(certificate)
        pairs = {}
        for name, connect in zip(KINDS, (_plain, _ssl, _ntcp), strict=True):
            connection = connect(stack, stage, certificate)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs[name] = stack.enter_context(connection)
        yield pairs


def send_bulk(connection: socket.socket, size: int) -> None:
    """Send `size` bytes and wait until the peer has taken them."""
    connection.sendall(ORDER.pack(b"T", size))
    chunk = memoryview(bytes(CHUNK))
    for offset in range(0, size, CHUNK):
        connection.sendall(chunk[: min(CHUNK, size - offset)])
    if read_exactly(connection, 1) != b"k":
        raise ConnectionError("the peer went away")


def open_three_hops(stack: ExitStack) -> socket.socket:
    """Plain TCP to a peer through two forwarders, as through an engine at either end."""
    environment = dict(os.environ)
    port = start_peer(stack, ["plain", "127.0.0.1"], environment)
    for _ in range(2):
        port = start_peer(stack, [str(port)], environment, module="benchmarks.forwarder")
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def start_peer(
    stack: ExitStack, arguments: list[str], environment: dict[str, str], module: str = "benchmarks.peer"
) -> int:
    """Start a program of this package; the port on which it listens. The stack ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    stack.callback(stop, process)
    assert process.stdout is not None
    stack.enter_context(process.stdout)
    return int(process.stdout.readline())


def _start(stack: ExitStack, stage: Stage, arguments: list[str], name: str | None = None) -> int:
    environment = stage.environment("bench-peer", **({"NTCP_NAME": name} if name else {}))
    return start_peer(stack, arguments, environment)


def _plain(stack: ExitStack, stage: Stage, certificate: Path) -> socket.socket:
    port = _start(stack, stage, ["plain", "127.0.0.1"])
    return socket.create_connection(("127.0.0.1", port))


def _ssl(stack: ExitStack, stage: Stage, certificate: Path) -> socket.socket:
    port = _start(stack, stage, ["ssl", "127.0.0.1", str(certificate)])
    context = ssl.create_default_context(cafile=certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")


def _ntcp(stack: ExitStack, stage: Stage, certificate: Path) -> socket.socket:
    import ntcpsock

    port = _start(stack, stage, ["ntcp", "bench.ntcp"], name="bench")
    os.environ.update({"NTCP_BROKER": stage.broker, "NTCP_STATE": str(stage.folder / "bench-client")})
    return ntcpsock.create_connection(("bench.ntcp", port))


def write_certificate(path: Path) -> None:
    """A self-signed certificate for localhost and its key, ECDSA P-256 as NTCP's own, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
