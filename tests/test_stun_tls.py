"""STUN over TLS (RFC 8489 section 6.2.3): on a port of its own, and beside plain TCP on the usual one."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import trio
from certificates import Authority
from stun_support import serving

from ntcpsock._address import Endpoint
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._traversal.stun.attributes import XorMappedAddress
from ntcpsock._traversal.stun.framing import MessageSplitter
from ntcpsock._traversal.stun.message import binding_request, decode_message, encode_message


def ask(server: Endpoint, authority: Authority | None, count: int = 1) -> list[Endpoint]:
    """What the server answers to so many requests at once; we are the client that Python has."""
    sock = socket.create_connection(server, 60)
    local = Endpoint(*sock.getsockname()[:2])
    if authority is not None:
        context = ssl.create_default_context(cafile=authority.file)
        sock = context.wrap_socket(sock, server_hostname="localhost")
    with sock:
        sock.sendall(b"".join(encode_message(binding_request(bytes((n,)) * 12)) for n in range(count)))
        splitter, answers = MessageSplitter(2048), list[bytes]()
        while len(answers) < count:
            answers += splitter.receive_data(sock.recv(4096))
    for number, answer in enumerate(answers):
        message = decode_message(answer)
        assert message.transaction_id == bytes((number,)) * 12
        assert message.get(XorMappedAddress) == XorMappedAddress(local)
    return [local] * len(answers)


async def test_tls_on_its_port_and_on_the_usual_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = CertificateFiles(*authority.issue(tmp_path, "localhost"))
    async with serving(certificate=certificate, tls_port=0) as addresses:
        assert addresses.tls is not None
        assert addresses.tls.port != addresses.primary.port
        for server, trust, count in (
            (addresses.tls, authority, 1),
            (addresses.tls, authority, 20),
            (addresses.primary, authority, 3),
            (addresses.primary, None, 3),
            (addresses.tls, None, 1),
        ):
            answers = await trio.to_thread.run_sync(ask, server, trust, count)
            assert len(answers) == count
        assert addresses.counters.tcp_tls == 3
        while addresses.counters.tcp_open:
            await trio.sleep(0.01)
        assert addresses.counters.tcp_broken == 0


async def test_a_handshake_that_comes_to_nothing_is_ended(tmp_path: Path) -> None:
    certificate = CertificateFiles(*Authority(tmp_path).issue(tmp_path, "localhost"))
    async with serving(certificate=certificate, idle_timeout=0.3) as addresses:
        for words in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05hello"):
            async with await trio.open_tcp_stream(*addresses.primary) as stream:
                await stream.send_all(words)
                with trio.fail_after(60):
                    try:
                        while await stream.receive_some(100):
                            pass
                    except trio.BrokenResourceError:
                        pass
        while addresses.counters.tcp_open:
            await trio.sleep(0.01)
        assert addresses.counters.tcp_broken == 3


async def test_without_a_certificate_tls_is_no_stun(tmp_path: Path) -> None:
    async with serving() as addresses, await trio.open_tcp_stream(*addresses.primary) as stream:
        await stream.send_all(b"\x16\x03\x01\x02\x00" + bytes(20))
        with trio.fail_after(60):
            assert await stream.receive_some(100) == b""
        assert addresses.counters.tcp_tls == 0
