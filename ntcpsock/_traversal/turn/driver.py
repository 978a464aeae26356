"""Allocations at TURN servers, each kept by a task: `allocation = await nursery.start(run_allocation, server)`."""

from __future__ import annotations

import errno
import time
from typing import Final

import trio

from ntcpsock._address import Endpoint, TurnAddress, is_dialable_host, is_private_address
from ntcpsock._traversal.candidate import is_loopback
from ntcpsock._traversal.turn.allocation import TurnAllocation
from ntcpsock._traversal.turn.credentials import TurnServer
from ntcpsock._traversal.turn.machine import LIFETIME, TurnMachine
from ntcpsock._traversal.turn.message import TurnErrorCode
from ntcpsock._traversal.turn.transport import TurnError, open_transport

#: Servers that a 300 may send us on to, one after the other.
MAX_REDIRECTS: Final = 3

#: Local ports that are tried where the server takes each for one of an earlier allocation (437).
MAX_PORTS: Final = 3


async def run_allocation(
    server: TurnServer,
    *,
    ipv6: bool = False,
    lifetime: int = LIFETIME,
    task_status: trio.TaskStatus[TurnAllocation] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Get an allocation at `server`, or where it sends us, hand it to `task_status`, and keep it until it is closed.

    ipv6: of the relayed address. Before it is there, OSErrors are raised: TurnError with the server's `code`. The
    caller sets the deadline. Cancelled, the allocation is given back, in CLOSE_DEADLINE seconds at most.
    """
    address, domain = server.address, server.address.host
    # Wall time: servers compare it with theirs.
    credentials = server.credentials(time.time())
    seen: set[Endpoint] = set()
    ports = 0
    while True:
        transport = await open_transport(address, server.ca_file, server_name=domain)
        seen.add(transport.remote)
        machine = TurnMachine(
            credentials,
            now=trio.current_time(),
            reliable=transport.reliable,
            ipv6=ipv6,
            lifetime=lifetime,
        )
        ports += 1
        try:
            redirected = await TurnAllocation(address, transport, machine).run(task_status)
        except TurnError as error:
            # RFC 8656 section 7.4: the server takes our port for one of an earlier allocation of somebody's.
            if error.code == TurnErrorCode.ALLOCATION_MISMATCH and ports < MAX_PORTS:
                continue
            raise
        if redirected is None:
            return
        _check_redirection(redirected.server, transport.remote, seen)
        seen.add(redirected.server)
        address = TurnAddress(redirected.server.host, redirected.server.port, server.address.transport)
        # RFC 8489 section 10: whose certificate the next server shows.
        domain = redirected.domain or domain


def _check_redirection(server: Endpoint, source: Endpoint, seen: set[Endpoint]) -> None:
    """A 300 comes unsigned. What it names must be another server, and none that only we can reach."""
    if server in seen or len(seen) > MAX_REDIRECTS:
        raise TurnError(errno.ELOOP, f"TURN servers send us in a circle: {server} again")
    on_this_machine = is_loopback(source.host) and is_loopback(server.host)
    if not server.port or not (is_dialable_host(server.host) or on_this_machine):
        raise TurnError(errno.EPROTO, f"the TURN server sends us to {server}, which cannot be a server")
    if is_private_address(server.host) and not is_private_address(source.host):
        raise TurnError(errno.EPROTO, f"the TURN server sends us to {server}, which is in our own network")
