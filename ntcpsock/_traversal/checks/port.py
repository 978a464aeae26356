"""One UDP port and all who share it: STUN servers, the dials that are being checked, and strangers.

Its sockets are unconnected, one for each family of addresses. A peer that has been found gets a connected socket of
its own on the same port (`open_connected`), so that the kernel tells the peers apart; what arrives from anywhere else
comes here. Nothing of what strangers send is kept but a few datagrams, for a moment: those of a dial whose offer is
slower than its first check.
"""

from __future__ import annotations

import _socket
import errno
import struct
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import trio

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._readiness import Readiness, readiness
from ntcpsock._traversal.checks.message import fragment_untrusted, new_transaction_id
from ntcpsock._traversal.checks.pairs import Outgoing, Way
from ntcpsock._traversal.checks.sockets import bound_socket, open_sockets
from ntcpsock._traversal.stun.attributes import MappedAddress, XorMappedAddress
from ntcpsock._traversal.stun.machine import ClientTransaction, Succeeded
from ntcpsock._traversal.stun.message import binding_request, looks_like_stun

_LARGEST_DATAGRAM = 65536
# Datagrams of one socket that are read before others have their turn.
_BATCH = 64

# What came before the dial that it belongs to: so many datagrams, for so many seconds.
_MOST_EARLY = 32
_EARLY_SECONDS = 1.0

# STUN requests from sources that nobody knows: so many at once, and so many a second, are looked at.
STRANGERS_AT_ONCE = 256
STRANGERS_PER_SECOND = 512.0

# STUN servers that are being asked from one port.
_MOST_TRANSACTIONS = 32

_INT = struct.Struct("=i")


class Taker(Protocol):
    """A dial, as the port sees it."""

    @property
    def fragment(self) -> str: ...
    def expects(self, transaction_id: bytes) -> bool: ...
    def take_check(self, base: int, data: bytes, source: Endpoint) -> None: ...
    def take_datagram(self, base: int, data: bytes, source: Endpoint) -> None: ...


class UdpPort:
    """The sockets of one port. `run` reads them, as a task of whoever holds the port, or `watch`; `close` closes it.

    number: of the port, on all addresses. sockets: IPv4's, and IPv6's where the machine has it; their places in
    the list are the `base` of what goes in and out.
    """

    def __init__(self, sockets: Sequence[_socket.socket]) -> None:
        self.sockets = list(sockets)
        self.number = int(self.sockets[0].getsockname()[1]) if self.sockets else 0
        self.closed = False
        self.is_running = False
        self._readers: trio.Nursery | None = None
        self._watching: Readiness | None = None
        self._retired = False
        #: How often something was dropped, by reason.
        self.dropped: Counter[str] = Counter()
        self._takers: dict[str, Taker] = {}
        self._ways: dict[Way, Taker] = {}
        self._early: list[tuple[float, int, bytes, Endpoint]] = []
        self._transactions: dict[bytes, tuple[ClientTransaction, Endpoint, trio.Event]] = {}
        self._strangers = float(STRANGERS_AT_ONCE)
        self._counted = 0.0

    def number_of(self, base: int) -> int:
        """The port of one of the sockets: they may have different ones (`open_udp_ports`)."""
        return int(self.sockets[base].getsockname()[1])

    def base_for(self, remote: Endpoint) -> int | None:
        """The socket that reaches `remote`; None without one of its family."""
        family = _socket.AF_INET6 if remote.is_ipv6 else _socket.AF_INET
        return next((base for base, sock in enumerate(self.sockets) if sock.family == family), None)

    def local_of(self, base: int) -> Endpoint | None:
        """Our address at the other end of way out `base`, where it is not one of this machine's."""
        return None

    # -- dials -----------------------------------------------------------------------------------

    def register(self, taker: Taker) -> None:
        """Give `taker` the checks for its fragment, those of the last moment included."""
        self._takers[taker.fragment] = taker
        now = trio.current_time()
        early, self._early = self._early, []
        for moment, base, data, source in early:
            if now - moment < _EARLY_SECONDS:
                self._dispatch(data, base, source, now)

    def claim(self, way: Way, taker: Taker) -> None:
        """Give `taker` whatever comes by `way`: a check from there has proven itself."""
        if self._ways.setdefault(way, taker) is taker:
            waiting = [item for item in self._early if (item[1], item[3]) == way]
            for item in waiting:
                self._early.remove(item)
                if not looks_like_stun(item[2]):
                    taker.take_datagram(item[1], item[2], item[3])

    def unregister(self, taker: Taker) -> None:
        if self._takers.get(taker.fragment) is taker:
            del self._takers[taker.fragment]
        self._ways = {way: other for way, other in self._ways.items() if other is not taker}
        if self._retired and not self._takers:
            self.close()

    # -- out -------------------------------------------------------------------------------------

    def send(self, out: Outgoing) -> bool:
        """Send without waiting. False where there was no room; what the network refuses is lost, as on the way."""
        sock = self.sockets[out.base]
        if sock.fileno() < 0:
            return True
        address = (out.remote.host, out.remote.port)
        try:
            if out.ttl is None:
                sock.sendto(out.data, address)
            else:
                sock.sendmsg([out.data], [_hop_limit(out.remote.is_ipv6, out.ttl)], 0, address)
        except BlockingIOError:
            return False
        except OSError as error:
            self.dropped[errno.errorcode.get(error.errno or 0, "error") + " when sending"] += 1
        return True

    async def ask(self, server: Endpoint, *, rto: float = 0.5, base: int | None = None) -> Endpoint | None:
        """As what the STUN server sees the port, or None. The caller sets the deadline; `run` must be running.

        base: the socket to ask from; None: the one of the server's family."""
        base = self.base_for(server) if base is None else base
        if base is None or len(self._transactions) >= _MOST_TRANSACTIONS:
            return None
        request = binding_request(new_transaction_id())
        transaction = ClientTransaction(request, now=trio.current_time(), rto=rto)
        event = trio.Event()
        self._transactions[request.transaction_id] = transaction, server, event
        try:
            while not event.is_set():
                for data in transaction.datagrams_to_send():
                    self.send(Outgoing(base, server, data))
                deadline = transaction.next_timeout()
                if deadline is None:
                    return None
                with trio.move_on_at(deadline):
                    await event.wait()
                transaction.handle_timeout(trio.current_time())
        finally:
            del self._transactions[request.transaction_id]
        outcome = transaction.next_event()
        if not isinstance(outcome, Succeeded):
            return None
        mapped = outcome.response.get(XorMappedAddress) or outcome.response.get(MappedAddress)
        return None if mapped is None else mapped.endpoint

    def open_connected(self, base: int, remote: Endpoint) -> _socket.socket:
        """One more socket of this port, to which the kernel gives what comes from `remote`. Raises OSError."""
        sock = bound_socket(self.sockets[base].family, self.number_of(base))
        try:
            sock.connect((remote.host, remote.port))
        except BaseException:
            sock.close()
            raise
        return sock

    # -- in --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read until the port is closed, or no socket of it is left."""
        if self.is_running:
            return
        self.is_running = True
        try:
            async with trio.open_nursery() as self._readers:
                for base, sock in enumerate(self.sockets):
                    self._readers.start_soon(self._read, base, sock)
        finally:
            self.is_running, self._readers = False, None

    def watch(self) -> bool:
        """Read until the port is closed, as `run` does, but without a task; False where that cannot be done here, or
        the system watches no more descriptors: then nothing is read until `run`."""
        if self.is_running:
            return True
        self._watching = readiness()
        if self._watching is None:
            return False
        try:
            self._watch(range(len(self.sockets)))
        except OSError:
            for sock in self.sockets:
                self._watching.forget(sock)
            self._watching = None
            return False
        self.is_running = True
        return True

    def _watch(self, bases: range) -> None:
        assert self._watching is not None
        for base in bases:
            sock = self.sockets[base]
            if sock.fileno() >= 0:
                self._watching.watch(sock, partial(self._read_batch, base, sock))

    def add(self, sockets: Sequence[_socket.socket]) -> range:
        """Take more sockets in; their numbers. Raises OSError (ENOSPC) where the port is watched."""
        first = len(self.sockets)
        self.sockets += sockets
        if self._watching is not None:
            self._watch(range(first, len(self.sockets)))
        if self._readers is not None:
            for base in range(first, len(self.sockets)):
                self._readers.start_soon(self._read, base, self.sockets[base])
        return range(first, len(self.sockets))

    async def _read(self, base: int, sock: _socket.socket) -> None:
        while sock.fileno() >= 0:
            try:
                await trio.lowlevel.wait_readable(sock)
            except (trio.ClosedResourceError, OSError):
                return  # the port was closed
            self._read_batch(base, sock)

    def _read_batch(self, base: int, sock: _socket.socket) -> None:
        now = trio.current_time()
        for _ in range(_BATCH):
            if sock.fileno() < 0:
                return
            try:
                data, address = sock.recvfrom(_LARGEST_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP message about what was sent to somebody
            self._dispatch(data, base, Endpoint(*address[:2]), now)

    def _dispatch(self, data: bytes, base: int, source: Endpoint, now: float) -> None:
        known = self._ways.get((base, source))
        if not looks_like_stun(data):
            if known is not None:
                known.take_datagram(base, data, source)
            elif self._takers and data:
                self._keep_early(data, base, source, now)
            else:
                self.dropped["unknown datagram"] += 1
            return
        if data[0] & 1:
            self._answered(data, base, source, now)
            return
        taker = known
        if taker is None:
            self._strangers = min(
                STRANGERS_AT_ONCE, self._strangers + (now - self._counted) * STRANGERS_PER_SECOND
            )
            self._counted = now
            if self._strangers < 1:
                self.dropped["flood of checks"] += 1
                return
            self._strangers -= 1
            try:
                taker = self._takers.get(fragment_untrusted(data))
            except BadMessage:
                self.dropped["no check"] += 1
                return
        if taker is None:
            self._keep_early(data, base, source, now)
        else:
            taker.take_check(base, data, source)

    def _answered(self, data: bytes, base: int, source: Endpoint, now: float) -> None:
        """A response: of a STUN server, or of a peer."""
        transaction_id = data[8:20]
        found = self._transactions.get(transaction_id)
        if found is not None:
            transaction, server, event = found
            if source == server and transaction.handle_message(data, now):
                event.set()
            return
        for taker in self._takers.values():
            if taker.expects(transaction_id):
                taker.take_check(base, data, source)
                return
        self.dropped["response to nothing"] += 1

    def _keep_early(self, data: bytes, base: int, source: Endpoint, now: float) -> None:
        if len(self._early) == _MOST_EARLY:
            self.dropped["early datagram"] += 1
            del self._early[0]
        self._early.append((now, base, data, source))

    def keep_only(self, base: int) -> None:
        """Close the other sockets: their numbers stay theirs, and nothing goes out by them any more."""
        for number, sock in enumerate(self.sockets):
            if number != base and sock.fileno() >= 0:
                if self._watching is not None:
                    self._watching.forget(sock)
                trio.lowlevel.notify_closing(sock)
                sock.close()

    def retire(self) -> None:
        """Close the port when the last dial that uses it has ended."""
        self._retired = True
        if not self._takers:
            self.close()

    def close(self) -> None:
        """Close at once, `run` ends."""
        if self.closed:
            return
        self.closed = True
        self.keep_only(-1)
        if self._watching is not None:
            self.is_running = False


def open_udp_port(number: int = 0, *, ipv6: bool = True) -> UdpPort:
    """A UDP port that is nobody else's, on all addresses: `number`, where that is free. Raises OSError (EADDRINUSE)."""
    return UdpPort(open_sockets(number, ipv6=ipv6))


def open_udp_ports(count: int) -> UdpPort:
    """So many ports of IPv4 as one: its sockets have a port each. Raises OSError (EADDRINUSE, EMFILE)."""
    sockets: list[_socket.socket] = []
    try:
        for _ in range(count):
            sockets += open_sockets(ipv6=False)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return UdpPort(sockets)


def _hop_limit(ipv6: bool, ttl: int) -> tuple[int, int, bytes]:
    if ipv6:
        return _socket.IPPROTO_IPV6, _socket.IPV6_HOPLIMIT, _INT.pack(ttl)
    return _socket.IPPROTO_IP, _socket.IP_TTL, _INT.pack(ttl)
