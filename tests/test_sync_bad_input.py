"""Bad input: each call is made of a plain socket too, and must end alike, in type of exception and errno.

HOST stands for a name that nobody has, or one of our own for those that bind, and for a loopback address at
the plain one's; a name that cannot be one stands beside the same name of a domain that cannot be.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNetwork
from sync_support import fake_network

import ntcpsock
from ntcpsock import NTCPSocket

# create_server and create_connection, the system's and ours, leave a socket to the collector after a TypeError.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOST = "<host>"
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1", socket.AF_UNIX: "127.0.0.1"}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNetwork]:
    with fake_network(monkeypatch, tmp_path) as network:
        yield network


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What is left to the collector is collected here, and not in the tests of another module."""
    yield
    gc.collect()


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


def assert_alike(ours: Callable[[], Any], plain: Callable[[], Any]) -> None:
    """Both raise, the same kind with the same errno; or both return the same, or no error."""
    got, expected = outcome(ours), outcome(plain)
    if isinstance(expected, Exception):
        assert isinstance(got, type(expected)), (got, expected)
        assert getattr(got, "errno", None) == getattr(expected, "errno", None), (got, expected)
    elif isinstance(expected, int):
        assert got == expected
    else:
        assert not isinstance(got, Exception), (got, expected)


def filled(value: Any, host: str) -> Any:
    """`value` with `host` in the place of HOST, however deep."""
    if value == HOST:
        return host
    if value == HOST.encode():
        return host.encode()
    if isinstance(value, (tuple, list)):
        return type(value)(filled(one, host) for one in value)
    return value


PORTS: list[Any] = [-1, 65536, 2**40, -(2**70), "80", b"80", 1.5, None, [], (1,), 1 + 0j]
# Of any family; a plain socket refuses each of these before it asks the network.
ADDRESSES: list[Any] = [
    *((HOST, port) for port in PORTS),
    *((), (HOST,), [HOST, 1], HOST, HOST.encode(), None, 5, {HOST: 1}, (HOST, 1, 2, 3, 4)),
    *((host, 1) for host in (None, 5, 1.5, (HOST,), [HOST], object())),
]
FLOWS: list[Any] = [
    *((HOST, 1, flow, 0) for flow in (-1, 2**20, 2**32 - 1, "x", None, 0.5)),
    *((HOST, 1, 0, scope) for scope in ("x", None, 0.5)),
    *((HOST, 1, flow) for flow in (None, "x", 2**20)),
]
CASES = [
    *((socket.AF_INET, address) for address in [*ADDRESSES, (HOST, 1, 0), (HOST, 1, 0, 0)]),
    *((socket.AF_INET6, address) for address in [*ADDRESSES, *FLOWS]),
    *((socket.AF_UNIX, (HOST, port)) for port in (1, -1, "x", None)),
    *((socket.AF_UNIX, (HOST, 1, *rest)) for rest in ((0,), (0, 0), ("x", 0))),
]


@pytest.mark.parametrize("method", ["connect", "connect_ex", "bind"])
def test_addresses(method: str) -> None:
    for family, address in CASES:

        def call(kind: type[socket.socket], host: str, family: int = family, address: Any = address) -> Any:
            with kind(family) as sock:
                return getattr(sock, method)(filled(address, host))

        assert_alike(
            lambda: call(NTCPSocket, "nobody.ntcp"),
            lambda: call(socket.socket, LOOPBACK[family]),  # noqa: B023 - called at once
        )


IMPOSSIBLE = {
    "too long a label": "a" * 64,
    "much too long": "a" * 300,
    "too long in all": ".".join(["a" * 63] * 5),
    "no label": "",
    "an empty label at the end": "a.",
    "an empty label": "a..b",
    "an empty label in front": ".a",
    "a space": "a b",
    "a leading hyphen": "-a",
    "a trailing hyphen": "a-",
    "another script": "ümlaut",
    "NUL": "\0",
    "NUL within": "a\0b",
    "half a surrogate": "\ud800",
    "a star": "*",
    "another script, too long": "ü" * 64,
}
RESOLVING: dict[str, Callable[[Any, str], Any]] = {
    "connect": lambda module, host: on_socket(module, "connect", (host, 1)),
    "connect_ex": lambda module, host: on_socket(module, "connect_ex", (host, 1)),
    "bind": lambda module, host: on_socket(module, "bind", (host, 1)),
    "gethostbyname": lambda module, host: module.gethostbyname(host),
    "gethostbyname_ex": lambda module, host: module.gethostbyname_ex(host),
    "gethostbyaddr": lambda module, host: module.gethostbyaddr(host),
    "getaddrinfo": lambda module, host: module.getaddrinfo(host, 80),
    "create_connection": lambda module, host: module.create_connection((host, 80)),
    "create_server": lambda module, host: module.create_server((host, 80)),
}


def on_socket(module: Any, method: str, *args: Any) -> Any:
    with (NTCPSocket if module is ntcpsock else socket.socket)() as sock:
        return getattr(sock, method)(*args)


@pytest.mark.parametrize("function", RESOLVING)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_names(what: str, function: str) -> None:
    label, resolve = IMPOSSIBLE[what], RESOLVING[function]
    ours = outcome(lambda: resolve(ntcpsock, label + ".ntcp"))
    plain = outcome(lambda: resolve(socket, label + ".invalid"))
    assert isinstance(plain, Exception)
    assert isinstance(ours, type(plain)), (ours, plain)
    # Without a name server the system says "try again" of any name that it may ask for.
    number = getattr(plain, "errno", None)
    assert getattr(ours, "errno", None) == (socket.EAI_NONAME if number == socket.EAI_AGAIN else number)


SERVICES: list[Any] = [-1, 65536, 2**70, "nosuchservice", "-1", "", 1.5, [], b"80", "80", "http", None]
FUNCTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *(("getaddrinfo", (HOST, port), {}) for port in SERVICES),
    *(("getaddrinfo", (host, 1), {}) for host in (5, (HOST,), bytearray(b"x"))),
    *(("getaddrinfo", (HOST, 1, *rest), {}) for rest in ((99,), (0, 99), (0, 1, 99), ("x",), (0, "x"))),
    *(("getaddrinfo", (HOST, 1), {"flags": flags}) for flags in (1 << 20, "x", None)),
    ("getaddrinfo", (HOST,), {}),
    *(
        (function, args, {})
        for function in ("gethostbyname", "gethostbyname_ex", "gethostbyaddr")
        for args in ((), (5,), (None,), (HOST, 1), ([HOST],))
    ),
    *(
        ("getnameinfo", args, {})
        for args in (
            *(
                (HOST, 0),
                (None, 0),
                ([HOST, 1], 0),
                ((HOST,), 0),
                ((HOST, 1),),
                ((HOST, 1), "x"),
                ((5, 1), 0),
            ),
            *(((HOST, "1"), 0), ((HOST, 1, 2, 3, 4), 0), ((HOST, 1, 2**20, 0), 0), ((HOST, 1, -1, 0), 0)),
        )
    ),
    *(
        ("create_connection", args, {})
        for args in (
            *(((HOST, -1),), ((HOST, 65536),), ((HOST, "x"),), ((HOST,),), (HOST,), (None,), ((5, 1),)),
            *(
                ((HOST, 1), "x"),
                ((HOST, 1), -1),
                ((HOST, 1), None, "x"),
                ((HOST, 1), None, ("127.0.0.1", -1)),
            ),
        )
    ),
    ("create_connection", ((HOST, 1),), {"bogus": 1}),
    *(
        ("create_server", (address,), {})
        for address in ((HOST, -1), (HOST, 65536), (HOST, "x"), (HOST,), HOST, None)
    ),
    *(
        ("create_server", ((HOST, 0),), keywords)
        for keywords in (
            *({"backlog": "x"}, {"family": 99}, {"family": socket.AF_UNIX}, {"reuse_port": "x"}),
            {"dualstack_ipv6": True},
        )
    ),
]


@pytest.mark.parametrize(("function", "args", "keywords"), FUNCTIONS)
def test_functions(function: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    name = "alice.ntcp" if "server" in function else "nobody.ntcp"

    def call(module: Any, host: str) -> Any:
        result = getattr(module, function)(*filled(args, host), **keywords)
        if isinstance(result, socket.socket):
            result.close()
        return None

    assert_alike(lambda: call(ntcpsock, name), lambda: call(socket, "127.0.0.1"))


METHODS: list[tuple[str, tuple[Any, ...]]] = [
    *(("connect", args) for args in ((), ((HOST, 1), 2))),
    *(("connect_ex", args) for args in ((), ((HOST, 1), 2))),
    *(("bind", args) for args in ((), ((HOST, 0), 1))),
    *(("listen", args) for args in (("x",), (1.5,), (2**40,), (-1,), (1, 2), (None,))),
    *(("accept", args) for args in ((1,),)),
    *(("recv", args) for args in ((1,), (-1,), ("x",), ())),
    *(("send", args) for args in ((b"x",), ("x",), ())),
    *(
        (method, args)
        for method in ("getsockname", "getpeername", "detach", "dup")
        for args in ((1,), (1, 2))
    ),
    *(("setsockopt", args) for args in ((), (1, 9, "x"), (1, 9, None), (1, 9, 2**40), (999, 999, 1), (1, 9))),
    *(("getsockopt", args) for args in ((), (1, 4, -1), (1, 4, 2000), (1, "x"), (999, 999))),
    *(("shutdown", args) for args in ((9,), ("x",), ())),
    *(("settimeout", args) for args in (("x",), (-1,), (float("nan"),), ())),
    *(("makefile", args) for args in (("q",), (5,))),
]


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize(("method", "args"), METHODS)
def test_methods(method: str, args: tuple[Any, ...], listening: bool) -> None:
    def call(kind: type[socket.socket], host: str) -> Any:
        with kind() as sock:
            if listening:
                sock.bind((host, 0))
                sock.listen()
            return getattr(sock, method)(*filled(args, host))

    assert_alike(lambda: call(NTCPSocket, "alice.ntcp"), lambda: call(socket.socket, "127.0.0.1"))


ON_CLOSED: list[tuple[str, tuple[Any, ...]]] = [
    *((method, ((HOST, 1),)) for method in ("connect", "connect_ex", "bind")),
    *(("listen", args) for args in ((), (5,))),
    *(
        (method, ())
        for method in ("accept", "getsockname", "getpeername", "dup", "detach", "fileno", "close")
    ),
    *(
        ("send", (b"x",)),
        ("sendall", (b"x",)),
        ("recv", (1,)),
        ("recv_into", (bytearray(1),)),
        ("shutdown", (2,)),
    ),
    *(("setsockopt", (1, 9, 1)), ("getsockopt", (1, 4)), ("settimeout", (1,)), ("makefile", ())),
]


@pytest.mark.parametrize("how", ["new", "bound", "listening", "connected", "detached"])
@pytest.mark.parametrize(("method", "args"), ON_CLOSED)
def test_closed_sockets(method: str, args: tuple[Any, ...], how: str) -> None:
    def call(module: Any, kind: type[socket.socket], host: str) -> Any:
        with kind() as sock, module.create_server((host, 0)) as server:
            if how in ("bound", "listening"):
                sock.bind((host, 0))
            if how == "listening":
                sock.listen()
            if how == "connected":
                sock.settimeout(30)
                sock.connect((host, server.getsockname()[1]))
                server.accept()[0].close()
            if how == "detached":
                os.close(sock.detach())
            sock.close()
            result = getattr(sock, method)(*filled(args, host))
            if hasattr(result, "close"):
                result.close()
            return result

    assert_alike(
        lambda: call(ntcpsock, NTCPSocket, "alice.ntcp"), lambda: call(socket, socket.socket, "127.0.0.1")
    )


@pytest.mark.parametrize(
    "keywords",
    [
        *(
            {"family": 99},
            {"family": "x"},
            {"family": 1.5},
            {"type": 99},
            {"type": "x"},
            {"proto": "x"},
            {"proto": 99},
        ),
        *(
            {"fileno": -5},
            {"fileno": "x"},
            {"fileno": 10**6},
            {"fileno": 10**12},
            {"fileno": 0.5},
            {"bogus": 1},
        ),
    ],
    ids=str,
)
def test_making_sockets(keywords: dict[str, Any]) -> None:
    assert_alike(lambda: NTCPSocket(**keywords).close(), lambda: socket.socket(**keywords).close())


def test_a_socket_that_has_its_peer() -> None:
    with ntcpsock.create_server(("alice.ntcp", 8000)) as server:
        with ntcpsock.create_connection(("alice.ntcp", 8000), 30) as client, server.accept()[0]:
            for sock in (client, server):
                with pytest.raises(OSError, match=r"\[Errno") as caught:
                    sock.connect(("alice.ntcp", 8000))
                assert caught.value.errno == errno.EISCONN
                assert sock.connect_ex(("alice.ntcp", 8000)) == errno.EISCONN
            with pytest.raises(OSError, match=r"\[Errno") as caught:
                client.bind(("alice.ntcp", 0))
            assert caught.value.errno == errno.EINVAL
