"""What a cluster's machine asks of the store. Those with a number are answered."""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """Bind all names to the key with this policy, or none."""

    number: int
    names: tuple[str, ...]
    key: bytes
    allow: bytes | None


class Decree(NamedTuple):
    """The name belongs to the key from now on, or (None) to nobody, whoever has it: the operator says so."""

    name: str
    key: bytes | None


class Fetch(NamedTuple):
    """Who has the name?"""

    number: int
    name: str


class Forward(NamedTuple):
    """Send the frame to the broker with that node; preferably, or (exact) only, where it has that mark."""

    number: int
    key: bytes
    mark: bytes
    exact: bool
    frame: bytes


class Send(NamedTuple):
    """Send the frame to that broker."""

    broker: bytes
    frame: bytes


class Place(NamedTuple):
    """The node is with us, with these marks, or (None) no more. message: for brokers with whom it was; numbers: of
    those who wait until it is known."""

    key: bytes
    marks: tuple[bytes, ...] | None
    message: bytes
    numbers: tuple[int, ...] = ()


def port_mark(port: int) -> bytes:
    """How a node's place says that it has a port."""
    return b"%d" % port


def instance_mark(instance: bytes) -> bytes:
    """How it says that an instance is there."""
    return b"x" + instance.hex().encode()


Command = Claim | Decree | Fetch | Forward | Send | Place
