"""The answers of a STUN server: RFC 8489, RFC 5780, and RFC 3489 for its clients. Pure and stateless.

**Not an amplifier.** Over UDP anybody can write anybody's address into a packet, so what is sent back is
held against what came. The smallest Binding request has 20 octets, and RFC 8489 makes its answer 32 (over
IPv6 44): the RFC leaves no room, so the answer is kept at exactly that. A server with two addresses owes
RFC 5780 clients RESPONSE-ORIGIN and OTHER-ADDRESS as well: 56 octets. Everything else (MAPPED-ADDRESS,
PADDING, reason phrases, and the two above where RESPONSE-PORT or PADDING ask for more) is given only as far
as the answer stays within the request's own length. RESPONSE-PORT, which aims the answer, is refused when
even the smallest answer would be longer than the request; a client that wants it adds a SOFTWARE to fill. A refusal
names as many unknown attributes as its request has room for, two at least: 36 octets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.stun.attributes import (
    Attribute,
    ChangedAddress,
    MappedAddress,
    OtherAddress,
    ResponseOrigin,
    SourceAddress,
    UnknownAttributes,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.connect_back import ConnectBack, ConnectBackOutcome
from ntcpsock._traversal.stun.constants import (
    HEADER_LENGTH,
    AttributeType,
    ErrorCode,
    MessageClass,
    Method,
)
from ntcpsock._traversal.stun.credentials import Fingerprint
from ntcpsock._traversal.stun.message import Message, decode_message, encode_message, error_response
from ntcpsock._traversal.stun.usages import ChangeRequest, Padding, ResponsePort

_ATTRIBUTE_HEADER_LENGTH = 4
_FINGERPRINT_LENGTH = 8
# Header, ERROR-CODE without a reason, UNKNOWN-ATTRIBUTES with one type or two.
_SHORTEST_REFUSAL = HEADER_LENGTH + 8 + 8


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram to send: from which of the server's endpoints, and where to. `error` is its error code."""

    data: bytes
    source: Endpoint
    destination: Endpoint
    error: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectBackOrder:
    """Connect from `host`, any port but `local`'s, to `target`, who asked for it on the stream that came to `local`."""

    request: Message
    host: str
    target: Endpoint
    local: Endpoint


@dataclass(frozen=True, slots=True)
class BindingServer:
    """Answers Binding requests to a server on one or two addresses, and one or two ports.

    `primary` is its first endpoint; `other_host` and `other_port` are None where there is no second one. A
    request came to `local`, one of the up to four combinations; with `primary.host` a wildcard address
    a datagram's `local.host` is that too, and there can be no `other_host`. `connects_back`: whether the driver
    carries out a `ConnectBackOrder`. `other_is_remote`: `other_host` is another machine, which sends what we have it
    send (`link.py`), and connects to nobody for us.
    """

    primary: Endpoint
    other_host: str | None = None
    other_port: int | None = None
    connects_back: bool = False
    other_is_remote: bool = False

    def handle_datagram(self, data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
        """The reply to a datagram from `source`, or None for what deserves none."""
        try:
            request = decode_message(data, accept_rfc3489=True)
        except BadMessage:
            return None
        if not _is_binding_request(request):
            return None

        change = request.get(ChangeRequest)
        padding = request.get(Padding)
        response_port = request.get(ResponsePort)
        origin = self._origin(local, change)
        if refused := request.unknown_required:
            return self._refusal(request, data, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, refused)
        if origin is None:
            # RFC 5780 section 6.1: who has no other address does not know the attribute.
            refused = (AttributeType.CHANGE_REQUEST,)
            return self._refusal(request, data, source, local, ErrorCode.UNKNOWN_ATTRIBUTE, refused)

        needed, extra = self._addresses(request, source, local, origin)
        if response_port is not None or padding is not None:
            needed, extra = needed[:1], needed[1:] + extra
        room = len(data) - _length(request, needed)
        for attribute in extra:
            if _size(attribute) <= room:
                needed.append(attribute)
                room -= _size(attribute)

        destination = source
        if response_port is not None:
            # RFC 5780 section 7.6 forbids both together; the rest is the rule at the head of this file.
            if padding is not None or response_port.port == 0 or room < 0:
                return self._refusal(request, data, source, local, ErrorCode.BAD_REQUEST)
            destination = Endpoint(source.host, response_port.port)
        elif padding is not None and room >= _ATTRIBUTE_HEADER_LENGTH:
            needed.append(Padding(bytes(room - _ATTRIBUTE_HEADER_LENGTH)))
        return Reply(_success(request, needed), origin, destination)

    def handle_stream_message(
        self, data: bytes, source: Endpoint, local: Endpoint
    ) -> bytes | ConnectBackOrder | None:
        """The response to a message from a stream, to be sent on that stream, or None for what gets none.

        The source is proven here, and the way back fixed: RESPONSE-PORT cannot be obeyed, PADDING has no use, and
        both count as unknown. CHANGE-REQUEST orders a connection (`connect_back.py`), whose outcome
        `connect_back_response` tells. Raises BadMessage; close the stream then.
        """
        request = decode_message(data)
        if not _is_binding_request(request):
            return None
        refused = request.unknown_required
        order = None
        change = request.get(ChangeRequest)
        if change is not None and (change.change_address or change.change_port):
            order = self._order(request, change, source, local)
            refused += (change.type,) * (order is None)
        refused += tuple(
            attribute.type
            for attribute in request.attributes
            if isinstance(attribute, ResponsePort | Padding)
        )
        if refused:
            unknown = UnknownAttributes(tuple(dict.fromkeys(refused)))
            response = error_response(request, ErrorCode.UNKNOWN_ATTRIBUTE, unknown)
            return encode_message(response, fingerprint=_wants_fingerprint(request))
        if order is not None:
            return order
        needed, extra = self._addresses(request, source, local, local)
        return _success(request, needed + extra)

    def connect_back_response(
        self, order: ConnectBackOrder, outcome: ConnectBackOutcome, origin: Endpoint | None
    ) -> bytes:
        """The response to the request behind `order`; `origin`: from where was connected, None if it was not."""
        attributes: list[Attribute] = [XorMappedAddress(order.target), ConnectBack(outcome)]
        if origin is not None:
            attributes.append(ResponseOrigin(origin))
        return _success(order.request, attributes)

    def _order(
        self, request: Message, change: ChangeRequest, source: Endpoint, local: Endpoint
    ) -> ConnectBackOrder | None:
        host: str | None = local.host
        if change.change_address:
            host = self.primary.host if local.host == self.other_host else self.other_host
            if self.other_is_remote:
                host = None
        if not self.connects_back or host is None:
            return None
        return ConnectBackOrder(request, host, source, local)

    def _origin(self, local: Endpoint, change: ChangeRequest | None) -> Endpoint | None:
        """Where to answer from, or None where the server has no such endpoint."""
        if change is None:
            return local
        host: str | None = local.host
        port: int | None = local.port
        if change.change_address:
            host = self.primary.host if local.host == self.other_host else self.other_host
        if change.change_port:
            port = self.primary.port if local.port == self.other_port else self.other_port
        return None if host is None or port is None else Endpoint(host, port)

    def _addresses(
        self, request: Message, source: Endpoint, local: Endpoint, origin: Endpoint
    ) -> tuple[list[Attribute], list[Attribute]]:
        """What a success response must say, the mapped address first, and what it should if there is room."""
        other = None
        if self.other_host is not None:
            # RFC 5780 section 7.4: OTHER-ADDRESS only from a server that has a second address.
            other = self._origin(local, ChangeRequest(change_address=True, change_port=True))
        if request.is_rfc3489:
            # Its clients skip or choke on XOR-MAPPED-ADDRESS.
            old: list[Attribute] = [MappedAddress(source)]
            return old + ([SourceAddress(origin), ChangedAddress(other)] if other else []), []
        needed: list[Attribute] = [XorMappedAddress(source)]
        if other is None:
            return needed, []
        return [*needed, ResponseOrigin(origin), OtherAddress(other)], [MappedAddress(source)]

    def _refusal(
        self,
        request: Message,
        data: bytes,
        source: Endpoint,
        local: Endpoint,
        code: ErrorCode,
        unknown: tuple[int, ...] = (),
    ) -> Reply:
        if request.is_rfc3489 and len(unknown) % 2:
            # RFC 3489 section 11.2.10: attributes fill whole words, so one type is said twice.
            unknown += unknown[-1:]
        attributes = (UnknownAttributes(unknown),) if unknown else ()
        with_fingerprint = _wants_fingerprint(request)
        encoded = encode_message(error_response(request, code, *attributes), fingerprint=with_fingerprint)
        if len(encoded) > len(data) or request.is_rfc3489:
            # Whoever means well sees the rest when it has mended the first.
            room = len(data) - _SHORTEST_REFUSAL - _FINGERPRINT_LENGTH * with_fingerprint
            fitting = unknown[: 2 + max(0, room) // 4 * 2]
            attributes = (UnknownAttributes(fitting),) if unknown else ()
            silent = error_response(request, code, *attributes, reason="")
            encoded = encode_message(silent, fingerprint=with_fingerprint)
        return Reply(encoded, local, source, code)


def _is_binding_request(message: Message) -> bool:
    # RFC 8489 section 6.3: other methods, and responses that nobody waits for, are dropped in silence.
    return message.method == Method.BINDING and message.message_class == MessageClass.REQUEST


def _success(request: Message, attributes: Iterable[Attribute]) -> bytes:
    response = Message(
        request.method,
        MessageClass.SUCCESS_RESPONSE,
        request.transaction_id,
        tuple(attributes),
        request.cookie,
    )
    return encode_message(response, fingerprint=_wants_fingerprint(request))


def _wants_fingerprint(request: Message) -> bool:
    # RFC 8489 section 7.2: who sends it tells STUN from other traffic by it.
    return request.get(Fingerprint) is not None


def _size(attribute: Attribute) -> int:
    length = len(attribute.encode(bytes(16)))
    return _ATTRIBUTE_HEADER_LENGTH + length + -length % 4


def _length(request: Message, attributes: Iterable[Attribute]) -> int:
    fingerprint = _FINGERPRINT_LENGTH if _wants_fingerprint(request) else 0
    return HEADER_LENGTH + sum(map(_size, attributes)) + fingerprint
