"""Datagrams between the programs' UDP sockets and the nodes, over loopback. In the engine's thread.

One socket at all addresses is the other end of every program's: a program sends to the number that stands for a port
of a peer, at this socket's port, and gets datagrams from there. So a thousand peers cost one descriptor, and as nobody
else can send from this port of any address, the kernel itself knows what comes from the engine (`_datagram_filter`).

Who has sent is told by the source address: sockets of our class say before they send that they are there; of others
(C code that was told a number) the kernel says whose they are, and only this user's are let in.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from ntcpsock import _datagram_table
from ntcpsock._config import Config
from ntcpsock._datagram_filter import only_to_loopback
from ntcpsock._datagram_flows import Flows
from ntcpsock._datagram_gate import BATCH, LARGEST, RECEIVE_BUFFER, Gate
from ntcpsock._datagram_local import IP_PKTINFO, Local
from ntcpsock._datagram_table import Address
from ntcpsock._errors import NTCPError
from ntcpsock._hop import PlainSocket, open_hops
from ntcpsock._owner import datagram_owner

log = logging.getLogger("ntcpsock")

#: The program's sockets that use names.
MOST_LOCALS: Final = 4096
#: Gates for C code, and the seconds after which an unused one goes.
MOST_GATES: Final = 256
UNUSED_DEADLINE: Final = 120.0
_REAP_INTERVAL: Final = 10.0
# C code's sockets are not seen to close: an unused one is forgotten after so many seconds.
_ADOPTED_DEADLINE: Final = 300.0
# Users whose refusal is logged.
_MOST_NAMED: Final = 64
_ANCILLARY = socket.CMSG_SPACE(12)  # struct in_pktinfo
#: At the end of the program, seconds that are given to what it has sent while a path is still being dialled for.
LAST_DATAGRAMS: Final = 3.0


class Nodes(Protocol):
    """What datagrams need of the engine."""

    async def configure(self, config: Config) -> None: ...
    async def node_of(self, label: str) -> Any: ...
    async def dialling_node(self) -> Any: ...


class Switch:
    """The datagrams of one engine. strangers: datagrams of other users, refused."""

    def __init__(self, nursery: trio.Nursery, nodes: Nodes) -> None:
        self._nursery = nursery
        self._nodes = nodes
        self._socket: socket.socket | None = None
        #: The engine's port, 0 before it is used.
        self.port = 0
        self._flows = Flows()
        self._locals: dict[Address, Local] = {}
        self._gates: OrderedDict[Address, Gate] = OrderedDict()
        self._sending: set[Local] = set()
        self._bringing: set[Local] = set()
        self._to_bring = trio.lowlevel.ParkingLot()
        self._users = {os.getuid()}
        self.strangers = 0
        self._refused: set[int] = set()

    # For programs: these are called by way of the portal.

    async def start(self) -> int:
        """The engine's port."""
        if self._socket is None:
            if sys.platform != "linux":
                raise OSError(
                    errno.EOPNOTSUPP, "datagram sockets by name need Linux; ntcpsock.trio has them everywhere"
                )
            _datagram_table.clear()
            sock: socket.socket = PlainSocket(socket.AF_INET, socket.SOCK_DGRAM)
            open_hops.add(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            only_to_loopback(sock)
            sock.bind(("0.0.0.0", 0))
            self._socket, self.port = sock, sock.getsockname()[1]
            self._nursery.start_soon(self._run, sock)
            self._nursery.start_soon(self._bring_all)
            self._nursery.start_soon(self._reap)
        return self.port

    async def way(self, local: Local, label: str, port: int) -> Address:
        """Where a program sends for `port` of a node: an address of the kernel's."""
        await self.start()
        self._enter(local)
        self._users.add(os.getuid())
        self._open_soon(local)
        return self._flows.number(label, port, self.port), self.port

    async def resolve(self, config: Config | None, label: str) -> None:
        """Raises NameNotFound and the like, as a resolver does before anything is sent."""
        if config is not None:
            await self._nodes.configure(config)
        node = await self._nodes.dialling_node()
        if label not in (node.name, node.node_id):
            await node.resolve(label)

    async def bind(self, config: Config | None, local: Local, label: str, port: int) -> None:
        """Bring what comes for a name's port to a program's socket. Raises NameTaken, BrokerUnreachable, OSError
        (EADDRINUSE)."""
        if config is not None:
            await self._nodes.configure(config)
        await self.start()
        node = await self._nodes.node_of(label)
        own = label if label != node.name else None
        for known in tuple(self._locals.values()):
            if known.is_bound and known.port is not None and known.port.port == port and not known.is_there():
                self.end(known)  # its descriptor was closed where we did not see it
        local.take_port(
            await node.open_datagram_socket(port, name=own, deliver=self._deliverer(local), refuse=local.fail)
        )
        local.is_bound = True
        self._enter(local)

    async def publish(self, local: Local, label: str, port: int) -> None:
        """As `bind`, in the background: the program has its port of ordinary addresses in any case."""
        await self.start()
        self._enter(local)
        self._nursery.start_soon(self._publish, local, label, port)

    async def _publish(self, local: Local, label: str, port: int) -> None:
        try:
            await self.bind(None, local, label, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                log.warning("datagrams of %s.ntcp:%s are not published: %s", label, port, error)

    async def connect(self, local: Local, label: str, port: int) -> Address:
        """A gate for one program's connection to `port` of a node: its address."""
        await self.start()
        self._enter(local)
        gate = Gate(label, port, local, self._sent, self._flush)
        self.connected(local, None)
        local.gate = gate
        local.say_target()
        self._nursery.start_soon(gate.run)
        self._open_soon(local)
        return gate.address

    def connected(self, local: Local, gate: None) -> None:
        """A program's socket is connected to something else now, or to nothing."""
        if local.gate is not None:
            local.gate.close()
            local.gate = gate
            local.say_target()

    async def close(self, local: Local) -> None:
        """A program is about to close its socket: what it has sent is taken in while it is certainly its own."""
        if self._socket is not None:
            while self._take_batch(self._socket):
                pass
        if local.gate is not None:
            local.gate.take_all()
        self.end(local)

    def end(self, local: Local) -> None:
        """A program's socket is gone."""
        if self._locals.get(local.address) is local:
            del self._locals[local.address]
        local.end()

    async def open_gate(self, label: str, port: int) -> str | None:
        """Let C code reach `port` of a node at a number; returns it, or None where none can be had."""
        await self.start()
        key = (label, port)
        gate = self._gates.get(key)
        if gate is None:
            try:
                gate = Gate(label, port, None, self._sent, self._flush, only_own=True)
            except OSError as error:
                log.info("datagrams to %s.ntcp:%s go by ntcpsock only: %s", label, port, error)
                return None
            self._gates[key] = gate
            self._nursery.start_soon(gate.run)
            if len(self._gates) > MOST_GATES:
                self._close_gate(next(iter(self._gates)))
        self._gates.move_to_end(key)
        gate.used = trio.current_time()
        return gate.address[0]

    def release(self, port: int) -> bool:
        """The program wants `port` of an ordinary address for itself. Whether a gate was there."""
        keys = [key for key, gate in self._gates.items() if gate.address[1] == port]
        for key in keys:
            self._close_gate(key)
        return bool(keys)

    # What programs send.

    async def _run(self, sock: socket.socket) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                self._take_batch(sock)
        finally:
            sock.close()

    def _take_batch(self, sock: socket.socket) -> bool:
        """Whether there may be more."""
        try:
            return self._take_some(sock)
        finally:
            self._flush()

    def _flush(self) -> None:
        """The last of what programs have sent at once."""
        for local in self._sending:
            local.flush()
        self._sending.clear()

    def _take_some(self, sock: socket.socket) -> bool:
        for _ in range(BATCH):
            try:
                data, ancillary, _, source = sock.recvmsg(LARGEST, _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                log.debug("receiving from programs: %s", error)
                return False
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                    # The third member of struct in_pktinfo: the destination.
                    number = socket.inet_ntoa(value[8:12])
                    key = self._flows.by_number.get(number)
                    if key is not None:
                        self._flows.used(key)
                        self._take(source, *key, data, (number, self.port))
        return True

    def _sent(self, gate: Gate, source: Address, data: bytes) -> None:
        local = self._take(source, gate.label, gate.port, data, gate.address)
        if local is not None and gate.local is None:
            local.came_by[gate.key] = gate

    def _take(self, source: Address, label: str, port: int, data: bytes, here: Address) -> Local | None:
        """One datagram of a program's. here: where it came to."""
        local = self._locals.get(source)
        # Of what is taken in together one answer is as good as many.
        if local is None or (local not in self._sending and not local.is_there()):
            local = self._adopt(source, here)
            if local is None:
                return None
        self._open_soon(local)
        self._sending.add(local)
        local.send(label, port, data)
        return local

    def _adopt(self, source: Address, here: Address) -> Local | None:
        """A socket that nobody has told us of: of C code, or of a child. Only this user's are let in."""
        found = datagram_owner(source, here)
        self._users.add(os.getuid())
        if found is None or found.user not in self._users:
            self.strangers += 1
            if found is not None and found.user not in self._refused and len(self._refused) < _MOST_NAMED:
                self._refused.add(found.user)
                log.warning("user %s was refused: datagrams by name are this user's", found.user)
            return None
        before = self._locals.get(source)
        if before is not None and before.inode == found.inode:
            return before
        local = Local(source, found.inode, None)
        self._enter(local)
        return local

    def _enter(self, local: Local) -> None:
        local.used = trio.current_time()
        before = self._locals.get(local.address)
        if before is local:
            return
        if before is not None:
            self.end(before)
        while len(self._locals) >= MOST_LOCALS:
            self.end(min(self._locals.values(), key=lambda known: known.used))
        self._locals[local.address] = local

    def _open_soon(self, local: Local) -> None:
        if local.port is None and not local.is_opening:
            local.is_opening = True
            self._nursery.start_soon(self._open, local)

    async def _open(self, local: Local) -> None:
        """Open the node's side of a socket that has sent."""
        try:
            node = await self._nodes.dialling_node()
            port = await node.open_datagram_socket(
                wanted=local.address[1], deliver=self._deliverer(local), refuse=local.fail
            )
        except OSError as error:
            log.info("a datagram cannot be sent by name: %s", error)
            local.fail_early(error)
        except Exception as error:
            log.warning("a datagram cannot be sent by name", exc_info=error)
            local.fail_early(NTCPError(str(error)))
        else:
            if local.port is not None:
                port.close()
            else:
                local.take_port(port)
                if local.ended:  # what it had sent before goes out
                    local.end()
        finally:
            local.is_opening = False

    # What programs receive.

    def _deliverer(self, local: Local) -> Callable[[str, int, bytes], bool]:
        def deliver(label: str, port: int, payload: bytes) -> bool:
            return self._bring(local, label, port, payload)

        return deliver

    def _bring(self, local: Local, label: str, port: int, payload: bytes) -> bool:
        assert self._socket is not None
        local.used = trio.current_time()
        gate = local.gate or local.came_by.get((label, port))
        if gate is not None:
            is_there = gate.bring(local, payload)
        else:
            is_there = local.bring(self._socket, self._flows.number(label, port, self.port), payload)
        if not is_there:
            self.end(local)
        elif local not in self._bringing:
            self._bringing.add(local)
            self._to_bring.unpark()
        return is_there

    async def _bring_all(self) -> None:
        """Bring what has arrived at once together: this runs when whoever takes it in has nothing more."""
        while True:
            await self._to_bring.park()
            bringing, self._bringing = self._bringing, set()
            for local in bringing:
                local.bring_all()

    # The end.

    async def _reap(self) -> None:
        while True:
            await trio.sleep(_REAP_INTERVAL)
            now = trio.current_time()
            for key, gate in tuple(self._gates.items()):
                if now - gate.used >= UNUSED_DEADLINE:
                    self._close_gate(key)
            for local in tuple(self._locals.values()):
                adopted = local.descriptor is None and now - local.used >= _ADOPTED_DEADLINE
                if adopted or not local.is_there():
                    self.end(local)

    def _close_gate(self, key: Address) -> None:
        gate = self._gates.pop(key)
        gate.close()
        for local in self._locals.values():
            if local.came_by.get(key) is gate:
                del local.came_by[key]

    async def finish(self) -> None:
        """Let no more in, and wait until what programs have sent before is on its way: a program may send and leave.
        Not for long where a node is not reached."""
        for key in tuple(self._gates):
            self._close_gate(key)
        if self._socket is None:
            return
        while self._take_batch(self._socket):
            pass
        with trio.move_on_after(LAST_DATAGRAMS):
            while any(local.has_unsent for local in self._locals.values()):
                await trio.sleep(0.005)
