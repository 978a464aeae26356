"""SOCKS version 5 (RFC 1928) with username and password (RFC 1929), the server's side: bytes in, bytes out.

Only CONNECT is spoken. What is malformed raises BadMessage, and nothing else does.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from ntcpsock._errors import BadMessage

VERSION = 5
AUTHENTICATION_VERSION = 1  # RFC 1929 section 2


class Method(IntEnum):
    """RFC 1928 section 3."""

    NO_AUTHENTICATION = 0
    USERNAME_PASSWORD = 2
    NONE_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """RFC 1928 section 4."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class AddressType(IntEnum):
    """RFC 1928 section 5."""

    IPV4 = 1
    DOMAIN_NAME = 3
    IPV6 = 4


class Reply(IntEnum):
    """RFC 1928 section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What the client wants to connect to: a name, or a numeric address, and a port of 1 to 65535."""

    host: str
    port: int


class _State(Enum):
    GREETING = "greeting"
    AUTHENTICATION = "authentication"
    REQUEST = "request"
    DONE = "done"


class Machine:
    """One client's handshake.

    request: set when the client has said where to; then answer with `encode_reply`.
    refusal: set, in words, when the client was refused; what `receive` returned last is to be sent, and the
    connection closed. leftover: what came behind the request, which is the connection's first data.
    """

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        """users: passwords by user name; None lets everybody in."""
        self.request: Request | None = None
        self.refusal: str | None = None
        self._users = users
        self._state = _State.GREETING
        self._buffer = b""

    @property
    def done(self) -> bool:
        """Whether there is a request or a refusal."""
        return self._state is _State.DONE

    @property
    def leftover(self) -> bytes:
        return self._buffer if self.request is not None else b""

    def receive(self, data: bytes) -> bytes:
        """Take in bytes of the client; what to send it. Raises BadMessage for what is not SOCKS 5."""
        self._buffer += data
        answer = b""
        while not self.done:
            step = _STEPS[self._state](self)
            if step is None:
                break
            answer += step
        return answer

    def _take(self, length: int) -> bytes:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _refuse(self, why: str) -> None:
        self.refusal = why
        self._state = _State.DONE

    def _greeting(self) -> bytes | None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise BadMessage(f"not SOCKS 5: {_what_it_is(buffer)}")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return None
        methods = self._take(2 + buffer[1])[2:]
        wanted = Method.NO_AUTHENTICATION if self._users is None else Method.USERNAME_PASSWORD
        if wanted not in methods:
            self._refuse("the client offers no way to authenticate that is wanted here")
            return bytes((VERSION, Method.NONE_ACCEPTABLE))
        self._state = _State.REQUEST if self._users is None else _State.AUTHENTICATION
        return bytes((VERSION, wanted))

    def _authentication(self) -> bytes | None:
        buffer = self._buffer
        if buffer and buffer[0] != AUTHENTICATION_VERSION:
            raise BadMessage(f"not a SOCKS 5 authentication: version {buffer[0]}")
        if len(buffer) < 2:
            return None
        after_name = 2 + buffer[1]
        if len(buffer) <= after_name:
            return None
        end = after_name + 1 + buffer[after_name]
        if len(buffer) < end:
            return None
        message = self._take(end)
        if not self._knows(message[2:after_name], message[after_name + 1 :]):
            self._refuse("wrong user name or password")
            return bytes((AUTHENTICATION_VERSION, 1))
        self._state = _State.REQUEST
        return bytes((AUTHENTICATION_VERSION, 0))

    def _knows(self, name: bytes, password: bytes) -> bool:
        users = self._users or {}
        expected = users.get(name.decode("utf-8", "replace"))
        # Compared for a user who does not exist, too: the time tells nobody who does.
        same = hmac.compare_digest(password, (expected or "").encode())
        return same and expected is not None

    def _request(self) -> bytes | None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise BadMessage(f"not a SOCKS 5 request: version {buffer[0]}")
        if len(buffer) < 5:
            return None
        command, address_type = buffer[1], buffer[3]
        length = _ADDRESS_LENGTHS.get(address_type, 0)
        if not length and address_type != AddressType.DOMAIN_NAME:
            self._refuse(f"address type {address_type} is unknown")
            return encode_reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED)
        start = 4 if length else 5
        length = length or buffer[4]
        end = start + length + 2
        if len(buffer) < end:
            return None
        message = self._take(end)
        host = decode_host(address_type, message[start : start + length])
        port = int.from_bytes(message[-2:], "big")
        if command != Command.CONNECT:
            self._refuse(f"{_command_name(command)} is not spoken here, only CONNECT")
            return encode_reply(Reply.COMMAND_NOT_SUPPORTED)
        if port == 0:
            raise BadMessage("a SOCKS 5 request for port 0")
        self.request = Request(host, port)
        self._state = _State.DONE
        return b""


_STEPS = {
    _State.GREETING: Machine._greeting,
    _State.AUTHENTICATION: Machine._authentication,
    _State.REQUEST: Machine._request,
}

_ADDRESS_LENGTHS: dict[int, int] = {AddressType.IPV4: 4, AddressType.IPV6: 16}


def decode_host(address_type: int, address: bytes) -> str:
    """The host of a request as text. Raises BadMessage."""
    if address_type != AddressType.DOMAIN_NAME:
        return str(ipaddress.ip_address(address))
    try:
        name = address.decode("ascii")
    except UnicodeDecodeError:
        raise BadMessage("a host name that is not ASCII") from None
    if not name or not name.isprintable() or " " in name:
        raise BadMessage("a host name that is empty or has blanks in it")
    return name


def encode_reply(reply: Reply, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """RFC 1928 section 6. host, port: the numeric address that the server connects from."""
    address = ipaddress.ip_address(host)
    kind = AddressType.IPV4 if address.version == 4 else AddressType.IPV6
    return bytes((VERSION, reply, 0, kind)) + address.packed + port.to_bytes(2, "big")


def _what_it_is(data: bytes) -> str:
    if data[0] == 4:
        return "this is SOCKS 4; have the client use SOCKS 5 with names (socks5h)"
    if data[:1].isalpha():
        return "this looks like HTTP; have the client use SOCKS 5 with names (socks5h)"
    return f"version {data[0]}"


def _command_name(command: int) -> str:
    return Command(command).name if command in tuple(Command) else f"command {command}"
