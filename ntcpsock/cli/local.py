"""The local side of `forward` and `proxy`: where programs of this machine come in."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence

import trio

from ntcpsock.cli.places import is_loopback, show_place
from ntcpsock.cli.service import Service
from ntcpsock.cli.traffic import Connection

BACKLOG = 128


async def open_local(host: str, port: int) -> list[trio.SocketListener]:
    """Listeners on each address of `host`; port 0 is one free port for all. Raises OSError, in words."""
    where = show_place(host, port)
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=trio.socket.SOCK_STREAM, flags=trio.socket.AI_PASSIVE
        )
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
    listeners: list[trio.SocketListener] = []
    try:
        for family, _, _, _, address in found:
            number = address[1] or (listeners[0].socket.getsockname()[1] if listeners else 0)
            sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
            try:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
                if family == trio.socket.AF_INET6:
                    sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
                await sock.bind((address[0], number, *address[2:]))
                sock.listen(BACKLOG)
            except BaseException:
                sock.close()
                raise
            listeners.append(trio.SocketListener(sock))
    except OSError as error:
        for listener in listeners:
            listener.socket.close()
        hint = "; choose another port, or 0 for any" if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}{hint}") from error
    return listeners


def addresses_of(listeners: Sequence[trio.SocketListener]) -> list[tuple[str, int]]:
    """Where they listen, in numbers."""
    return [listener.socket.getsockname()[:2] for listener in listeners]


def warn_if_wide(service: Service, listeners: Sequence[trio.SocketListener], what: str) -> None:
    """Say so where not only this machine's users can come in. what: what they get then."""
    wide = [show_place(*place) for place in addresses_of(listeners) if not is_loopback(place[0])]
    if wide:
        service.traffic.warning(f"listening on {', '.join(wide)}: whoever reaches this address {what}")


async def serve_local(
    service: Service,
    listeners: Sequence[trio.SocketListener],
    handle: Callable[[Connection, trio.SocketStream], Awaitable[None]],
) -> None:
    """Accept on all listeners, for ever, and close them in the end."""
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_serve_one, service, listener, handle)


async def _serve_one(
    service: Service,
    listener: trio.SocketListener,
    handle: Callable[[Connection, trio.SocketStream], Awaitable[None]],
) -> None:
    async with listener:
        await service.accept_from(listener.accept, handle, _peer_of)


def _peer_of(stream: trio.SocketStream) -> str:
    try:
        return show_place(*stream.socket.getpeername()[:2])
    except OSError:
        return "a client that has gone"
