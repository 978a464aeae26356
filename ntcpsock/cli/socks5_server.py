"""What `ntcp proxy` does with a client: the handshake, the connection it asks for, the answer."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import suppress

import trio

from ntcpsock._address import is_ntcp_name
from ntcpsock._errors import BadMessage, IdentityMismatch
from ntcpsock.cli.bridge import Bridge, End, TcpEnd, open_tcp
from ntcpsock.cli.places import show_place
from ntcpsock.cli.service import Service
from ntcpsock.cli.socks5 import Machine, Reply, Request, encode_reply
from ntcpsock.cli.traffic import Connection
from ntcpsock.trio import Node, NTCPStream

# Seconds in which a client must have said where it wants to go.
HANDSHAKE_DEADLINE = 10.0

# Seconds for a refused client to read its answer before the connection is closed (RFC 1928 section 6: at
# most 10), and the bytes of it that are dropped meanwhile.
FAREWELL = 2.0
FAREWELL_BYTES = 1 << 20


class Refused(ConnectionError):
    """A request that this proxy does not serve. `reply`: what the client is told, None where it knows."""

    def __init__(self, text: str, reply: Reply | None) -> None:
        super().__init__(text)
        self.reply = reply


class SocksServer:
    """Serves the clients of one proxy. users: passwords by name, None for everybody."""

    def __init__(
        self, service: Service, node: Node, passthrough: bool, users: Mapping[str, str] | None
    ) -> None:
        self._service = service
        self._node = node
        self._passthrough = passthrough
        self._users = users

    async def handle(self, connection: Connection, client: trio.SocketStream) -> None:
        """One client from its greeting to its end. Errors that concern it come out as OSError or trio's."""
        near = TcpEnd(client)
        try:
            machine = await self._handshake(client)
            assert machine.request is not None
            far, stream = await self._connect(machine.request)
        except (OSError, trio.BrokenResourceError) as error:
            await _refuse(client, reply_to(error))
            raise
        except BaseException:
            near.reset()
            raise
        target = show_place(machine.request.host, machine.request.port)
        try:
            await client.send_all(encode_reply(Reply.SUCCEEDED, *_local_end(far)))
            if machine.leftover:
                await far.send_all(machine.leftover)
        except BaseException:
            near.reset()
            far.reset()
            raise
        bridge = Bridge(near, far)
        bridge.sent = len(machine.leftover)
        await self._service.carry(connection, bridge, target, stream)

    async def _handshake(self, client: trio.SocketStream) -> Machine:
        machine = Machine(self._users)
        try:
            with trio.fail_after(HANDSHAKE_DEADLINE):
                while not machine.done:
                    data = await client.receive_some(1024)
                    if not data:
                        raise Refused("a client ended before it said where to connect to", None)
                    if answer := machine.receive(bytes(data)):
                        await client.send_all(answer)
        except BadMessage as error:
            raise Refused(str(error), None) from error
        except trio.TooSlowError:
            raise Refused(
                f"a client did not say within {HANDSHAKE_DEADLINE:g} s where to connect to", None
            ) from None
        if machine.refusal is not None:
            raise Refused(machine.refusal, None)
        return machine

    async def _connect(self, request: Request) -> tuple[End, NTCPStream | None]:
        if is_ntcp_name(request.host):
            stream = await self._node.open_stream(request.host, request.port)
            return stream, stream
        if not self._passthrough:
            place = show_place(request.host, request.port)
            raise Refused(f"{place} is no .ntcp name, and --passthrough was not given", Reply.NOT_ALLOWED)
        timeout = self._node.config.connect_timeout
        return TcpEnd(await open_tcp(request.host, request.port, timeout=timeout)), None


def reply_to(error: BaseException) -> Reply | None:
    """The reply code for what went wrong, None where the client has been told, or is gone."""
    if isinstance(error, Refused):
        return error.reply
    if isinstance(error, trio.BrokenResourceError):
        return None
    if isinstance(error, IdentityMismatch):
        return Reply.NOT_ALLOWED
    if isinstance(error, TimeoutError):
        return Reply.TTL_EXPIRED
    if isinstance(error, (socket.gaierror, ValueError)):
        # A name that nobody has, or that nobody can have.
        return Reply.HOST_UNREACHABLE
    return _REPLIES.get(getattr(error, "errno", None), Reply.GENERAL_FAILURE)


_REPLIES: dict[int | None, Reply] = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
}


async def _refuse(client: trio.SocketStream, reply: Reply | None) -> None:
    """Send the reply, and close so that the client gets to read it."""
    with trio.move_on_after(FAREWELL) as scope:
        scope.shield = False
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if reply is not None:
                await client.send_all(encode_reply(reply))
            await client.send_eof()
            # Data that comes in after close() would be answered with a RST, which overtakes the reply.
            dropped = 0
            while dropped < FAREWELL_BYTES and (data := await client.receive_some(65536)):
                dropped += len(data)
    await trio.aclose_forcefully(client)


def _local_end(far: End) -> tuple[str, int]:
    """Where the connection starts from, as the client is told."""
    if isinstance(far, NTCPStream):
        return far.path.local[0].partition("%")[0], far.path.local[1]
    assert isinstance(far, TcpEnd)
    return far.local
