"""Requests that turn a connection into something else, and the heads of their answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import h11

from ntcpsock._errors import BadMessage

#: Where a head ends.
END_OF_HEAD: Final = b"\r\n\r\n"
#: A longer one is nobody's that we talk to.
MAX_HEAD: Final = 8192


@dataclass(frozen=True, slots=True)
class Request:
    """`CONNECT host:port` to a proxy, or an upgrade of `GET path`; expected: another status that says yes."""

    method: str
    target: str
    headers: Mapping[str, str]
    expected: int | None = None

    @property
    def wanted(self) -> int:
        """The status that says yes."""
        return self.expected or (200 if self.method == "CONNECT" else 101)


@dataclass(frozen=True, slots=True)
class Response:
    """The head of an answer."""

    status: int
    reason: str


def connect_request(host: str, port: int, credentials: str | None) -> Request:
    """Ask a proxy for a tunnel (RFC 9110 section 9.3.6). credentials: `user:password`, as Basic."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Host": target}
    if credentials is not None:
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
    return Request("CONNECT", target, headers)


def upgrade_request(host: str, path: str, protocol: str, headers: Mapping[str, str]) -> Request:
    """Ask for `protocol` on this connection (RFC 9110 section 7.8)."""
    return Request("GET", path, {"Host": host, "Connection": "Upgrade", "Upgrade": protocol, **headers})


def encode_request(request: Request) -> bytes:
    """Raises BadMessage for what cannot stand in a request."""
    connection = h11.Connection(h11.CLIENT)
    try:
        head = connection.send(
            h11.Request(method=request.method, target=request.target, headers=list(request.headers.items()))
        )
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        raise BadMessage("not a request", str(error)) from error
    return head or b""


def decode_response_untrusted(request: Request, head: bytes) -> Response:
    """The answer to `request`, up to its empty line. Raises BadMessage."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    try:
        connection.send(
            h11.Request(method=request.method, target=request.target, headers=list(request.headers.items()))
        )
        connection.send(h11.EndOfMessage())
        connection.receive_data(head)
        event = connection.next_event()
    except (h11.ProtocolError, ValueError) as error:
        raise BadMessage("not an HTTP response", str(error)) from error
    if not isinstance(event, (h11.Response, h11.InformationalResponse)):
        raise BadMessage("not an HTTP response")
    return Response(event.status_code, bytes(event.reason).decode("ascii", "replace"))
