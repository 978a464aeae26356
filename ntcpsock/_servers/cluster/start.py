"""How a broker becomes one of a cluster: its parts, put together. Nothing of it is loaded where there is no store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ntcpsock._identity import Identity
from ntcpsock._servers.cluster.machine import ClusterMachine
from ntcpsock._servers.cluster.message import BROKER_ID_LENGTH
from ntcpsock._servers.cluster.replica import NameReplica
from ntcpsock._servers.names import NameStore
from ntcpsock._servers.sources import Datagram
from ntcpsock._traversal.broker.frame import Sealer

if TYPE_CHECKING:
    from ntcpsock._servers.cluster.driver import ClusterDriver


class Membership:
    """store: the URL; identity and secret: what all brokers of the cluster share."""

    def __init__(self, store: str, identity: Identity, secret: Identity) -> None:
        self._store = store
        self._identity = identity
        self._secret = secret
        self._machine: ClusterMachine | None = None

    def open(self, path: Path | None) -> NameReplica:
        """The names, and with them the machine. Raises ConfigurationError."""
        names = NameReplica(path)
        # All messages are between one key and itself.
        sealer = Sealer(self._identity, cache_size=1)
        self._machine = ClusterMachine(os.urandom(BROKER_ID_LENGTH), sealer, names)
        return names

    @property
    def machine(self) -> ClusterMachine:
        """Once opened."""
        assert self._machine is not None
        return self._machine

    def driver(
        self, keys: Callable[[], Sequence[bytes]], send: Callable[[Iterable[Datagram]], None]
    ) -> ClusterDriver:
        """Raises ConfigurationError where coredis is missing, or the URL is none."""
        from ntcpsock._servers.cluster.driver import ClusterDriver

        return ClusterDriver(
            self._store,
            self.machine,
            key=self._identity.public_key,
            secret=self._secret.seed,
            keys=keys,
            send=send,
        )


def open_names(path: Path | None, membership: Membership | None) -> NameStore:
    """The names of a broker alone, or of one of a cluster. Raises ConfigurationError."""
    return NameStore(path) if membership is None else membership.open(path)
