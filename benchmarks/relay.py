"""The relay, one stream over loopback: bytes per second and the CPU time that they cost it, plain and in TLS.

The relay is a process of its own, the two nodes' ends are threads of this one that send and receive by the kernel.
TLS ends are OpenSSL's, through `ssl.SSLSocket`.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntcpsock._address import Endpoint
from ntcpsock._state import load_identity
from ntcpsock._traversal.http.message import encode_request, upgrade_request
from ntcpsock._traversal.relay.message import SESSION_LENGTH, TICKET_HEADER, UPGRADE, issue_pair, to_header

SERVERS = Path(__file__).parents[1] / "servers"
AMOUNT = 256 * 1024 * 1024
_CHUNK = 256 * 1024
ROUNDS = 3

#: Which ends of the relayed connection speak TLS to the relay.
KINDS = {
    "plain, both ends": (False, False),
    "TLS at one end": (False, True),
    "TLS at both ends": (True, True),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        direct = _median(_direct() for _ in range(ROUNDS))
        print(f"direct loopback TCP       {direct / 1e6:6.0f} MB/s")
        with _relay(Path(folder)) as (address, process, secret):
            for number, (name, tls) in enumerate(KINDS.items()):
                rates, costs = [], []
                for turn in range(ROUNDS):
                    before = _cpu(process)
                    rates.append(_relayed(address, secret, number * ROUNDS + turn, tls))
                    costs.append((_cpu(process) - before) / AMOUNT * 1e8)
                rate, cost = _median(rates), _median(costs)
                print(
                    f"relay, {name:18} {rate / 1e6:6.0f} MB/s  {rate / direct:.2f} of direct, "
                    f"{cost * 1000:.0f} ms of the relay's CPU per 100 MB"
                )


def _median(values: Iterator[float] | list[float]) -> float:
    return sorted(values)[ROUNDS // 2]


def _direct() -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    return _rate(one, two)


def _relayed(relay: Endpoint, secret: bytes, number: int, tls: tuple[bool, bool]) -> float:
    ends = []
    session = number.to_bytes(SESSION_LENGTH, "big")
    tickets = issue_pair(secret, session, b"d" * 32, b"l" * 32, time.time())
    for ticket, in_tls in zip(tickets, tls, strict=True):
        end = socket.create_connection(relay)
        if in_tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            end = context.wrap_socket(end)
        request = upgrade_request("relay", "/relay", UPGRADE, {TICKET_HEADER: to_header(ticket).decode()})
        end.sendall(encode_request(request))
        ends.append(end)
    for end in ends:
        head = b""
        while b"\r\n\r\n" not in head:
            head += end.recv(1)
    return _rate(*ends)


def _rate(source: socket.socket, sink: socket.socket) -> float:
    def send() -> None:
        block = bytes(_CHUNK)
        for _ in range(AMOUNT // _CHUNK):
            source.sendall(block)

    with source, sink:
        sender = threading.Thread(target=send)
        begin = time.perf_counter()
        sender.start()
        left, buffer = AMOUNT, bytearray(_CHUNK)
        while left:
            left -= sink.recv_into(buffer)
        seconds = time.perf_counter() - begin
        sender.join()
    return AMOUNT / seconds


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _relay(folder: Path) -> Iterator[tuple[Endpoint, int, bytes]]:
    certificate, key = _certificate(folder)
    secret = load_identity(folder / "relay.key").seed
    command = [sys.executable, str(SERVERS / "relay.py"), "--listen", "127.0.0.1", "--port", "0"]
    command += ["--relay-key", str(folder / "relay.key"), "--certificate", certificate, "--key", key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().split()[1].rpartition(":")
        try:
            yield Endpoint(host, int(port)), process.pid, secret
        finally:
            process.send_signal(signal.SIGINT)


def _certificate(folder: Path) -> tuple[str, str]:
    files = str(folder / "certificate.pem"), str(folder / "key.pem")
    words = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=relay -days 1"
    )
    subprocess.run([*words.split(), "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


if __name__ == "__main__":
    main()
