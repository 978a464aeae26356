"""Twisted: server and client endpoints, protocols that half-close and abort, its own HTTP on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run, running

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("twisted", reason="twisted is not installed")

SERVER = (
    PAYLOAD
    + """
from twisted.internet import endpoints, interfaces, protocol, reactor
from twisted.web import resource, server
from zope.interface import implementer

@implementer(interfaces.IHalfCloseableProtocol)
class Digest(protocol.Protocol):
    # Answers after the client's half-close.
    def connectionMade(self):
        self.digest = hashlib.sha256()

    def dataReceived(self, data):
        self.digest.update(data)

    def readConnectionLost(self):
        self.transport.write(self.digest.hexdigest().encode())
        self.transport.loseConnection()

    def writeConnectionLost(self):
        pass

class Abort(protocol.Protocol):
    # Not before: a reset may come while the client still connects.
    def dataReceived(self, data):
        self.transport.abortConnection()

class Page(resource.Resource):
    isLeaf = True

    def render_GET(self, request):
        return PAYLOAD

    def render_POST(self, request):
        return hashlib.sha256(request.content.read()).hexdigest().encode()

def listen(port, factory):
    return endpoints.TCP4ServerEndpoint(reactor, port, interface="alice.ntcp").listen(factory)

listen(8000, protocol.Factory.forProtocol(Digest))
listen(8001, protocol.Factory.forProtocol(Abort))
endpoints.serverFromString(reactor, "tcp:8002:interface=alice.ntcp").listen(server.Site(Page()))
reactor.callWhenRunning(print, "ready")
reactor.run()
"""
)

CLIENT = (
    PAYLOAD
    + """
from twisted.internet import defer, endpoints, error, protocol, reactor, task
from twisted.web import client
import io, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # readBody's about Twisted's own Agent

class Ask(protocol.Protocol):
    def __init__(self, data):
        self.data, self.answer, self.done = data, b"", defer.Deferred()

    def connectionMade(self):
        self.transport.write(self.data)
        self.transport.loseWriteConnection()

    def dataReceived(self, data):
        self.answer += data

    def connectionLost(self, reason):
        self.done.callback((self.answer.decode(), reason.type.__name__))

async def ask(endpoint, data=b""):
    asking = await endpoints.connectProtocol(endpoint, Ask(data))
    return await asking.done

def endpoint(port):
    return endpoints.HostnameEndpoint(reactor, "alice.ntcp", port)

async def main(reactor):
    assert await ask(endpoint(8000), PAYLOAD) == (DIGEST, "ConnectionDone")
    assert await ask(endpoints.TCP4ClientEndpoint(reactor, "alice.ntcp", 8000), PAYLOAD) == (DIGEST, "ConnectionDone")
    many = await defer.gatherResults([defer.ensureDeferred(ask(endpoint(8000), bytes([n]))) for n in range(20)])
    print(len(set(many)))
    print(await ask(endpoint(8001), b"x"))
    try:
        await ask(endpoint(8009))
    except error.ConnectionRefusedError as refused:
        print("refused")
    pool = client.HTTPConnectionPool(reactor)
    agent = client.Agent(reactor, pool=pool)
    body = await client.readBody(await agent.request(b"GET", b"http://alice.ntcp:8002/"))
    assert hashlib.sha256(body).hexdigest() == DIGEST
    answer = await agent.request(
        b"POST", b"http://alice.ntcp:8002/", bodyProducer=client.FileBodyProducer(io.BytesIO(PAYLOAD), readSize=65536)
    )
    assert (await client.readBody(answer)).decode() == DIGEST
    await pool.closeCachedConnections()

task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
"""
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


def test_endpoints_and_http(stage: Stage, tmp_path: Path) -> None:
    with running(stage, tmp_path, "alice", SERVER):
        told = run(stage, tmp_path, "bob", CLIENT)
    assert told == ["20", "('', 'ConnectionLost')", "refused"]
