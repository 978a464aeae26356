"""Streams over QUIC: bytes a second over loopback, and on a path of 50 ms that loses 1 % of its packets.

`python -m benchmarks.quic loopback` and `... lossy` are its parts."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks import quic_ends
from benchmarks.harness import Series, alternate, save, show
from ntcpsock._session.quic.accepting import Acceptance
from ntcpsock._session.quic.configuration import ServerIdentity
from ntcpsock._session.quic.machine import QuicMachine
from ntcpsock._session.tls import make_certificate
from ntcpsock.cli.lab import enter_namespaces
from ntcpsock.testing.natlab import Lab, Link, open_lab

SECONDS = 3.0
LOSSY_SECONDS = 12.0
ROUNDS = 5
LOSSY_ROUNDS = 3
DATAGRAM = 1400
LOSS = 0.01
ROUND_TRIP = 0.05
PORT = 7100
PATIENCE = 120.0


def over_loopback(receive: Callable[..., float], send: Callable[..., Any], *send_arguments: Any) -> float:
    """MB/s between two processes. `receive` takes its port from outside, `send` host and port first."""
    context = multiprocessing.get_context("spawn")
    global PORT
    PORT += 1
    with context.Pool(2) as pool:
        receiver = pool.apply_async(receive, (PORT,))
        pool.apply_async(send, ("127.0.0.1", PORT, *send_arguments))
        return receiver.get(PATIENCE)


def in_memory(size: int = 100_000_000) -> float:
    """MB/s between two connection cores of qh3 in one thread, without sockets."""
    certificate = make_certificate()
    identity = ServerIdentity(certificate.certificate_pem, certificate.key_pem)
    accepting = Acceptance(identity, DATAGRAM, 30, 0.1, is_ipv6=False)
    client = QuicMachine.client(
        certificate.fingerprint, 0.0, datagram_size=DATAGRAM, idle_timeout=30, initial_rtt=0.1
    )
    while not client.handshake_done:
        for datagram in client.datagrams_to_send(0.0, 100):
            accepting.receive(datagram, 0.0)
        for datagram in accepting.machines[0].datagrams_to_send(0.0, 100):
            client.receive(datagram, len(datagram), 0.0)
    (server,) = accepting.machines
    chunk, buffer, got, now = bytes(262144), memoryview(bytearray(1 << 20)), 0, 0.0
    started = time.perf_counter()
    while got < size:
        now += 0.001  # so that it is the computing that takes time, and not the pacing
        client.send(chunk)
        for source, target in ((client, server), (server, client)):
            for datagram in source.datagrams_to_send(now, 200):
                target.receive(datagram, len(datagram), now)
        got += server.receive_into(buffer)
    return got / (time.perf_counter() - started) / 1e6


def in_lab(lab: Lab, receive: Callable[..., float], send: Callable[..., Any], *send_arguments: Any) -> float:
    """MB/s from host A to host B."""
    global PORT
    PORT += 1
    receiver = lab.host_b.start(receive, PORT)
    sender = lab.host_a.start(send, lab.host_b.address, PORT, *send_arguments)
    speed = receiver.result(PATIENCE)
    sender.process.kill()
    sender.process.wait()
    return speed


def loopback(seconds: float = SECONDS, rounds: int = ROUNDS) -> list[Series]:
    cases: dict[str, Callable[[], float]] = {
        "plain TCP (reno)": partial(
            over_loopback, partial(quic_ends.tcp_receive, seconds=seconds), quic_ends.tcp_send, "reno"
        ),
        "qh3 in memory": in_memory,
        "QUIC": partial(
            over_loopback,
            partial(quic_ends.quic_receive, seconds=seconds, size=DATAGRAM),
            quic_ends.quic_send,
            DATAGRAM,
        ),
    }
    return alternate(cases, rounds, "MB/s")


def lossy(seconds: float = LOSSY_SECONDS, rounds: int = LOSSY_ROUNDS) -> list[Series]:
    link = Link(ROUND_TRIP / 4, loss=LOSS)
    with open_lab("none", "none", link_a=link, link_b=Link(ROUND_TRIP / 4)) as lab:
        tcp = partial(quic_ends.tcp_receive, seconds=seconds)
        cases: dict[str, Callable[[], float]] = {
            f"TCP ({name})": partial(in_lab, lab, tcp, quic_ends.tcp_send, name) for name in ("cubic", "bbr")
        }
        cases["QUIC"] = partial(
            in_lab,
            lab,
            partial(quic_ends.quic_receive, seconds=seconds, size=DATAGRAM),
            quic_ends.quic_send,
            DATAGRAM,
        )
        cases["aiortc data channel"] = partial(
            in_lab, lab, partial(quic_ends.channel_receive, seconds=seconds), quic_ends.channel_send
        )
        return alternate(cases, rounds, "MB/s")


def show_loopback() -> None:
    series = loopback()
    show(f"QUIC over loopback, {DATAGRAM}-byte datagrams", series, relative_to="qh3 in memory")
    print(save("quic", series))


def show_lossy() -> None:
    series = lossy()
    title = f"Round trip {ROUND_TRIP * 1000:g} ms, {LOSS:.0%} of packets lost"
    for name in ("TCP (cubic)", "TCP (bbr)"):
        show(title, series, relative_to=name)
    print(save("quic-lossy", series))


PARTS = {"loopback": show_loopback, "lossy": show_lossy}


def main(parts: Sequence[str] = tuple(PARTS)) -> None:
    enter_namespaces()
    for part in parts:
        PARTS[part]()


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(PARTS))
