"""Which loopback address stands for which port of which node, for datagrams; read by every thread.

A program's UDP socket gets what comes by name from one socket of the engine, which speaks with many addresses: a
number for each (label, port) that has sent or was sent to, and always its own port, which nobody else on this machine
can send from. Programs see the name's number and the peer's port instead.
"""

from __future__ import annotations

import os
import socket as _stdlib
import weakref
from typing import TYPE_CHECKING, Any

from ntcpsock import _names

if TYPE_CHECKING:
    from ntcpsock._socket_datagrams import Channel

Address = tuple[str, int]

_V4_MAPPED = "::ffff:"

#: (label, port) -> where the kernel has it; and back.
ways: dict[Address, Address] = {}
flows: dict[Address, Address] = {}
#: In a forked child: what the parent's engine answers to, for sockets that were the parent's.
inherited: dict[Address, Address] = {}
#: The UDP sockets of this process that are known to the engine, by inode.
channels: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()


def clear() -> None:
    """An engine begins."""
    ways.clear()
    flows.clear()


def enter(label: str, port: int, kernel: Address) -> None:
    ways[label, port] = kernel
    flows[kernel] = label, port


def leave(label: str, port: int) -> None:
    """Nothing is sent there any more. What was received from there is still called by its name, until the address
    stands for something else."""
    ways.pop((label, port), None)


def forget(kernel: Address) -> None:
    flows.pop(kernel, None)


def kernel_address(kernel: Address, family: int) -> tuple[Any, ...]:
    """As a socket of `family` says it."""
    if family == _stdlib.AF_INET6:
        return _V4_MAPPED + kernel[0], kernel[1], 0, 0
    return kernel


def meaning(address: Any) -> Address | None:
    """The (label, port) that an address of the kernel's stands for; None for one of the outside."""
    host, port, *_ = address
    return flows.get((host.removeprefix(_V4_MAPPED), port))


def shown(label: str, port: int, family: int) -> tuple[Any, ...]:
    """What a program sees."""
    return _names.socket_address(label, port, family)


def _after_fork_in_child() -> None:
    inherited.update(ways)
    ways.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
