"""Programs over UDP that know nothing of names: dnspython, asyncio's endpoints, socketserver, a plain socket."""

from __future__ import annotations

from pathlib import Path

import pytest
from program_support import free_port, run, running

from ntcpsock.cli.stage import open_loopback_stage

DNS_SERVER = """
import socketserver, sys
import dns.flags, dns.message, dns.rdatatype, dns.rrset

class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        query = dns.message.from_wire(data)
        question = query.question[0]
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if question.rdtype == dns.rdatatype.TXT:
            texts = [str(digit) * 200 for digit in range(10)]
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", *texts))
        else:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "192.0.2.7"))
        sock.sendto(response.to_wire(), self.client_address)

with socketserver.ThreadingUDPServer(("alice.ntcp", 53), Answer) as server:
    print("ready", flush=True)
    server.serve_forever()
"""

DNS_CLIENT = """
import socket
import dns.message, dns.query, dns.resolver

where = socket.gethostbyname("alice.ntcp")
query = dns.message.make_query("example.com", "A")
answer = dns.query.udp(query, where, timeout=60)
print(answer.answer[0][0])
large = dns.query.udp(dns.message.make_query("example.com", "TXT", payload=4096), where, timeout=60)
print(len(large.to_wire()) > 2000)
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers = [where]
resolver.lifetime = 60
print([str(found) for found in resolver.resolve("www.example.com", "A")])
try:
    dns.query.udp(query, where, port=54, timeout=0.5)
except (ConnectionRefusedError, dns.exception.Timeout) as error:
    print("nobody at port 54")
"""


def test_dnspython(tmp_path: Path) -> None:
    pytest.importorskip("dns", reason="dnspython is not installed")
    with open_loopback_stage() as stage, running(stage, tmp_path, "alice", DNS_SERVER):
        lines = run(stage, tmp_path, "bob", DNS_CLIENT)
    assert lines == ["192.0.2.7", "True", "['192.0.2.7']", "nobody at port 54"]


ASYNCIO_SERVER = """
import asyncio, sys

class Shout(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data.upper(), address)

async def main():
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Shout, local_addr=(sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""

ASYNCIO_CLIENT = """
import asyncio, sys

class Ask(asyncio.DatagramProtocol):
    def __init__(self):
        self.answers = asyncio.Queue()

    def datagram_received(self, data, address):
        self.answers.put_nowait(data)

    def error_received(self, error):
        self.answers.put_nowait(type(error).__name__)

async def main():
    loop = asyncio.get_running_loop()
    port = int(sys.argv[1])
    transport, ask = await loop.create_datagram_endpoint(Ask, remote_addr=("alice.ntcp", port))
    for word in (b"hello", b"x" * 30_000):
        answer = None
        while answer != word.upper():
            transport.sendto(word)
            try:
                answer = await asyncio.wait_for(ask.answers.get(), 5)
            except TimeoutError:
                pass  # a published port may be there a moment later
            if isinstance(answer, str):
                await asyncio.sleep(0.2)
        print(len(answer))
    transport.close()
    refused, ask = await loop.create_datagram_endpoint(Ask, remote_addr=("alice.ntcp", 9))
    refused.sendto(b"x")
    print(await asyncio.wait_for(ask.answers.get(), 60))
    refused.close()

asyncio.run(main())
"""


def test_asyncio(tmp_path: Path) -> None:
    with (
        open_loopback_stage() as stage,
        running(stage, tmp_path, "alice", ASYNCIO_SERVER, "alice.ntcp", "7000"),
    ):
        lines = run(stage, tmp_path, "bob", ASYNCIO_CLIENT, "7000")
    assert lines == ["5", "30000", "ConnectionRefusedError"]


@pytest.mark.slow
def test_a_server_at_all_addresses_is_one_of_its_name(tmp_path: Path) -> None:
    port = str(free_port())
    with open_loopback_stage() as stage, running(stage, tmp_path, "alice", ASYNCIO_SERVER, "0.0.0.0", port):
        lines = run(stage, tmp_path, "bob", ASYNCIO_CLIENT, port)
    assert lines == ["5", "30000", "ConnectionRefusedError"]


FORKING_SERVER = """
import socketserver

class Shout(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        sock.sendto(data.upper(), self.client_address)

with socketserver.ForkingUDPServer(("alice.ntcp", 7000), Shout) as server:
    print("ready", flush=True)
    server.serve_forever()
"""

PLAIN_CLIENT = """
import socket

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(60)
    for number in range(20):
        sock.sendto(b"hello %d" % number, ("alice.ntcp", 7000))
        data, sender = sock.recvfrom(100)
        assert data == b"HELLO %d" % number, data
    print(socket.getnameinfo(sender, socket.NI_NUMERICSERV))
"""


@pytest.mark.slow
def test_children_answer_over_the_parents_socket(tmp_path: Path) -> None:
    with open_loopback_stage() as stage, running(stage, tmp_path, "alice", FORKING_SERVER):
        lines = run(stage, tmp_path, "bob", PLAIN_CLIENT)
    assert lines == ["('alice.ntcp', '7000')"]
