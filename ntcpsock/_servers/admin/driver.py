"""The Unix socket: who may connect is the file system's to say (mode 0600), and the kernel is asked once more."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

import trio

from ntcpsock._errors import BadMessage
from ntcpsock._servers.admin import message
from ntcpsock._servers.admin.desk import AdminDesk
from ntcpsock._servers.admin.machine import Lines

#: Of one server at once; an operator has few terminals.
MAX_CONNECTIONS: Final = 16
# Seconds for the next request of a connection, and for an answer to leave.
_IDLE: Final = 300.0
_SEND: Final = 20.0
# Of a path in sockaddr_un, on Linux and elsewhere, with its end.
_LONGEST_PATH: Final = 100
_CREDENTIALS: Final = struct.Struct("3i")


async def serve_admin(
    path: Path, desk: AdminDesk, *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Until cancelled, which removes the socket. Started with `path`. Raises OSError: EADDRINUSE where a server answers
    there; what a dead one has left is replaced."""
    sock = _bind(path)
    inode = _inode(path)
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            task_status.started(path)
            while True:
                stream = await listener.accept()
                nursery.start_soon(_serve, stream, desk, limiter)
    finally:
        sock.close()
        if _inode(path) == inode:
            _remove(path)


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


async def _serve(stream: trio.SocketStream, desk: AdminDesk, limiter: trio.CapacityLimiter) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        async with stream:
            if not _is_ours(stream.socket) or limiter.available_tokens == 0:
                return
            async with limiter:
                await _converse(stream, desk)


async def _converse(stream: trio.SocketStream, desk: AdminDesk) -> None:
    lines = Lines(message.MAX_REQUEST)
    while True:
        with trio.move_on_after(_IDLE) as idle:
            # More than a line: closed over unread bytes, the kernel would send a reset that takes our answer along.
            data = await stream.receive_some(16 * message.MAX_REQUEST)
        if idle.cancelled_caught or not data:
            return
        try:
            for line in lines.receive(data):
                answer = await desk.carry_out(message.decode_request(line))
                with trio.fail_after(_SEND):
                    await stream.send_all(message.encode(answer))
        except BadMessage as error:
            with trio.move_on_after(_SEND):
                await stream.send_all(message.encode(message.Answer(error=": ".join(error.args))))
            return
        except trio.TooSlowError:
            return


def _is_ours(sock: trio.socket.SocketType) -> bool:
    """Whether the other end is run by our user, or by root: the mode of the file says so too, where it is kept."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    credentials = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return user in (0, os.geteuid())


def _bind(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "ntcp admin needs Unix sockets, which this system has not")
    with _reachable(path) as name:
        _remove_dead(path, name)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Set before there is anything to connect to.
        before = os.umask(0o177)
        try:
            sock.bind(name)
        except OSError as error:
            sock.close()
            raise OSError(
                error.errno, f"cannot make the socket of ntcp admin: {error.strerror}", str(path)
            ) from None
        finally:
            os.umask(before)
        sock.listen(MAX_CONNECTIONS)
        return sock


def _remove_dead(path: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(
                errno.EEXIST, "there is something else in the place of the socket of ntcp admin", str(path)
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(name)
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(
                    errno.EADDRINUSE,
                    "another server has this socket for ntcp admin: choose one with --socket",
                    str(path),
                )


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name that fits into an address: Linux leads through an open directory to where a long path ends."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def ask(path: Path, request: message.Request, timeout: float) -> message.Answer:
    """One question to a server, from a program that is none. Raises OSError, in words that say what to do."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "ntcp admin needs Unix sockets, which this system has not")
    try:
        with _reachable(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(name)
            sock.sendall(message.encode(request))
            lines = Lines(message.MAX_ANSWER)
            while data := sock.recv(65536):
                for line in lines.receive(data):
                    return message.decode_answer(line)
    except FileNotFoundError:
        raise _failure(
            errno.ENOENT,
            path,
            "no server is there: its second line says where it is; give that with --socket",
        ) from None
    except PermissionError:
        raise _failure(
            errno.EACCES, path, "only the server's own user may ask it: try sudo -u THAT_USER"
        ) from None
    except ConnectionRefusedError:
        raise _failure(
            errno.ECONNREFUSED, path, "the server there has ended without goodbye: start it again"
        ) from None
    except TimeoutError:
        raise _failure(errno.ETIMEDOUT, path, f"no answer within {timeout:g} s") from None
    except BadMessage as error:
        raise _failure(errno.EPROTO, path, ": ".join(error.args)) from None
    raise _failure(errno.ECONNRESET, path, "the server ended the connection: it is another user's, or full")


def _failure(number: int, path: Path, text: str) -> OSError:
    return OSError(number, text, str(path))
