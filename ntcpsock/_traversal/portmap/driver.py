"""NAT-PMP and PCP over real sockets: the trio side of `machine.py`. UPnP has its own, `upnp.py`."""

from __future__ import annotations

import errno
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import NTCPError
from ntcpsock._traversal.portmap import natpmp, pcp
from ntcpsock._traversal.portmap.machine import EpochWatch, Transaction, natpmp_waits, pcp_waits
from ntcpsock._traversal.portmap.natpmp import SERVER_PORT

R = TypeVar("R")
NatPmpResponse = TypeVar("NatPmpResponse", natpmp.MapResponse, natpmp.ExternalAddress)
PcpResponse = TypeVar("PcpResponse", pcp.MapResponse, pcp.AnnounceResponse)

# Seconds until a gateway that says nothing counts as one that does not speak a protocol. It is one hop away: with
# the repetitions that fit in, some answer comes through.
PROBE_DEADLINE = 1.0

# Seconds for a request to a gateway that is known to speak: PCP repeats after three.
REQUEST_DEADLINE = 4.0

_LARGEST_DATAGRAM = 2048


class MappingRefused(NTCPError):
    """The gateway refuses, or answers what cannot be used. `code` is the protocol's result code, or None."""

    default_errno = errno.EPERM
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a gateway gave. external: where the port is reached; lifetime: seconds, 0 for ever."""

    external: Endpoint
    lifetime: float


class RouterProtocol(Protocol):
    """One way to ask one gateway for ports. All methods raise OSError (MappingRefused among them) and are safe to
    cancel; a mapping asked for by a cancelled `map` may have come to be, and `unmap` removes it."""

    @property
    def name(self) -> str:
        """The word for reports: "pcp", "nat-pmp" or "upnp"."""
        ...

    @property
    def dropped(self) -> int:
        """How much came that was no answer of the gateway."""
        ...

    async def probe(self) -> str | None:
        """Whether the gateway speaks it: its external address, as far as it tells without a mapping."""
        ...

    async def map(self, port: int, external_port: int, lifetime: int) -> Grant:
        """Map a local TCP port, or renew its mapping. external_port: a wish."""
        ...

    async def check(self, port: int) -> bool:
        """Whether, as far as one sees, the gateway still has the mapping of `port`."""
        ...

    async def unmap(self, port: int) -> None:
        """Remove the mapping of `port`; one that there is not is no error."""
        ...


class NatPmp:
    """RFC 6886."""

    name = "nat-pmp"

    def __init__(self, gateway: str, port: int = SERVER_PORT) -> None:
        self._gateway = Endpoint(gateway, port)
        self._epochs = EpochWatch("nat-pmp")
        # How many losses of the gateway there had been when the mapping of a port was made.
        self._made: dict[int, int] = {}
        self.dropped = 0

    async def probe(self) -> str | None:
        return (await self._external_address(PROBE_DEADLINE)).address

    async def map(self, port: int, external_port: int, lifetime: int) -> Grant:
        response = await self._map(port, external_port, lifetime)
        self._epochs.handle_epoch(response.epoch, trio.current_time())
        self._made[port] = self._epochs.losses
        address = await self._external_address(REQUEST_DEADLINE)
        return Grant(Endpoint(address.address, response.external_port), response.lifetime)

    async def check(self, port: int) -> bool:
        response = await self._external_address(REQUEST_DEADLINE)
        self._epochs.handle_epoch(response.epoch, trio.current_time())
        return self._made.get(port) == self._epochs.losses

    async def unmap(self, port: int) -> None:
        self._made.pop(port, None)
        await self._map(port, 0, 0)

    async def _map(self, port: int, external_port: int, lifetime: int) -> natpmp.MapResponse:
        def decode(data: bytes) -> natpmp.MapResponse | natpmp.ErrorResponse | None:
            response = natpmp.decode_response_untrusted(data)
            if isinstance(response, natpmp.MapResponse):
                # A late answer to an earlier request about the same port: the one deleted, the other made.
                same = response.internal_port == port and (response.lifetime == 0) == (lifetime == 0)
                return response if same else None
            return _its_error(response, natpmp.OPCODE_MAP_TCP)

        request = natpmp.encode_map_request(port, external_port, lifetime)
        return await self._ask(request, decode, REQUEST_DEADLINE)

    async def _external_address(self, deadline: float) -> natpmp.ExternalAddress:
        def decode(data: bytes) -> natpmp.ExternalAddress | natpmp.ErrorResponse | None:
            response = natpmp.decode_response_untrusted(data)
            if isinstance(response, natpmp.ExternalAddress):
                return response
            return _its_error(response, natpmp.OPCODE_EXTERNAL_ADDRESS)

        return await self._ask(natpmp.encode_address_request(), decode, deadline)

    async def _ask(
        self,
        request: bytes,
        decode: Callable[[bytes], NatPmpResponse | natpmp.ErrorResponse | None],
        deadline: float,
    ) -> NatPmpResponse:
        with await _open(self._gateway) as sock:
            response: NatPmpResponse | natpmp.ErrorResponse = await _exchange(
                self, sock, request, decode, natpmp_waits(), deadline
            )
        if isinstance(response, natpmp.ErrorResponse):
            raise _refusal(natpmp.describe(response.result), response.result)
        return response


def _refusal(text: str, code: int) -> MappingRefused:
    error = MappingRefused(text)
    error.code = code
    return error


def _its_error(response: natpmp.Response, opcode: int) -> natpmp.ErrorResponse | None:
    if isinstance(response, natpmp.ErrorResponse) and (
        response.opcode == opcode or response.result == natpmp.ResultCode.UNSUPPORTED_VERSION
    ):
        return response
    return None


class Pcp:
    """RFC 6887. The nonces of its mappings are kept: who does not know one may neither renew nor delete."""

    name = "pcp"

    def __init__(self, gateway: str, port: int = SERVER_PORT) -> None:
        self._gateway = Endpoint(gateway, port)
        self._epochs = EpochWatch("pcp")
        self._made: dict[int, int] = {}
        self._nonces: dict[int, bytes] = {}
        self._external: dict[int, Endpoint] = {}
        self.dropped = 0

    async def probe(self) -> str | None:
        try:
            await self._announce(PROBE_DEADLINE)
        except MappingRefused as error:
            if error.code != pcp.ResultCode.UNSUPP_OPCODE:
                raise
        return None

    async def map(self, port: int, external_port: int, lifetime: int) -> Grant:
        wish = self._external.get(port, Endpoint("0.0.0.0", external_port))
        response = await self._map(port, wish, lifetime)
        external = Endpoint(response.external_address, response.external_port)
        self._external[port] = external
        self._epochs.handle_epoch(response.epoch, trio.current_time())
        self._made[port] = self._epochs.losses
        return Grant(external, response.lifetime)

    async def check(self, port: int) -> bool:
        response = await self._announce(REQUEST_DEADLINE)
        self._epochs.handle_epoch(response.epoch, trio.current_time())
        return self._made.get(port) == self._epochs.losses

    async def unmap(self, port: int) -> None:
        if port not in self._nonces:
            return
        try:
            await self._map(port, Endpoint("0.0.0.0", 0), 0)
        finally:
            for memory in (self._nonces, self._external, self._made):
                memory.pop(port, None)

    async def _map(self, port: int, wish: Endpoint, lifetime: int) -> pcp.MapResponse:
        nonce = self._nonces.setdefault(port, secrets.token_bytes(pcp.NONCE_LENGTH))

        def decode(data: bytes) -> pcp.MapResponse | pcp.ErrorResponse | None:
            response = pcp.decode_response_untrusted(data)
            if isinstance(response, pcp.MapResponse):
                same = (response.nonce, response.protocol, response.internal_port) == (
                    nonce,
                    pcp.PROTOCOL_TCP,
                    port,
                )
                return response if same and (response.lifetime == 0) == (lifetime == 0) else None
            if isinstance(response, pcp.ErrorResponse) and response.nonce in (None, nonce):
                return response
            return None

        with await _open(self._gateway) as sock:
            request = pcp.encode_map_request(
                sock.getsockname()[0],
                nonce,
                port,
                lifetime,
                external_port=wish.port,
                external_address=wish.host,
            )
            return await self._ask(sock, request, decode, REQUEST_DEADLINE)

    async def _announce(self, deadline: float) -> pcp.AnnounceResponse:
        def decode(data: bytes) -> pcp.AnnounceResponse | pcp.ErrorResponse | None:
            response = pcp.decode_response_untrusted(data)
            return None if isinstance(response, pcp.MapResponse) else response

        with await _open(self._gateway) as sock:
            request = pcp.encode_announce_request(sock.getsockname()[0])
            return await self._ask(sock, request, decode, deadline)

    async def _ask(
        self,
        sock: trio.socket.SocketType,
        request: bytes,
        decode: Callable[[bytes], PcpResponse | pcp.ErrorResponse | None],
        deadline: float,
    ) -> PcpResponse:
        waits = pcp_waits(random.SystemRandom())
        response: PcpResponse | pcp.ErrorResponse = await _exchange(
            self, sock, request, decode, waits, deadline
        )
        if isinstance(response, pcp.ErrorResponse):
            raise _refusal(pcp.describe(response.result), response.result)
        return response


async def _open(gateway: Endpoint) -> trio.socket.SocketType:
    """Connected, so that the kernel gives us what the gateway sends and nothing else (RFC 6886 section 3.1), and
    tells at once when nobody is at the port."""
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    try:
        await sock.connect(gateway)
    except BaseException:
        sock.close()
        raise
    return sock


async def _exchange(
    counter: NatPmp | Pcp,
    sock: trio.socket.SocketType,
    request: bytes,
    decode: Callable[[bytes], R | None],
    waits: Iterator[float],
    seconds: float,
) -> R:
    """Raises TimeoutError, and ConnectionRefusedError where the gateway says that nobody is there."""
    now = trio.current_time()
    transaction = Transaction(request, decode, waits, now=now, deadline=now + seconds)
    try:
        while True:
            for data in transaction.datagrams_to_send():
                await sock.send(data)
            deadline = transaction.next_timeout()
            if deadline is None:
                break
            with trio.CancelScope(deadline=deadline):
                transaction.handle_datagram(await sock.recv(_LARGEST_DATAGRAM))
            transaction.handle_timeout(trio.current_time())
    finally:
        counter.dropped += transaction.dropped
    if transaction.response is None:
        raise TimeoutError(errno.ETIMEDOUT, "no answer")
    return transaction.response
