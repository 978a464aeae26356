"""A lab with servers of both families, and nodes on its hosts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_programs as programs

from ntcpsock._address import BrokerAddress
from ntcpsock._config import Config
from ntcpsock._state import load_identity
from ntcpsock.testing.natlab import Host, Lab


@dataclass
class Stage:
    """An open lab with servers in both families. By default a node called bob listens on host B, and host A dials."""

    lab: Lab
    directory: Path
    key: bytes

    def config(self, name: str | None = None, *, ipv6: bool = False, **settings: Any) -> Config:
        """ipv6: the broker's IPv6 address; it tells the other one in either case."""
        addresses = self.lab.server_addresses6 if ipv6 else self.lab.server_addresses
        broker = str(BrokerAddress(addresses[0], programs.BROKER_PORT, self.key))
        state = self.directory / (name or "client")
        return Config(**{"broker": broker, "name": name, "state_dir": state, **settings})

    def listen(self, host: Host | None = None, **settings: Any) -> None:
        (host or self.lab.host_b).start(programs.run_listener, self.config("bob", **settings))

    def dial(
        self, count: int, name: str | None = None, *, host: Host | None = None, **settings: Any
    ) -> list[programs.Dialled]:
        config = self.config(name, **settings)
        running = (host or self.lab.host_a).start(programs.dial_many, config, "bob", count)
        return running.result(programs.PATIENCE + 5 * count)


def start_servers(lab: Lab, directory: Path, *, tcp: bool = False) -> Stage:
    """tcp: whether the broker has its TCP port, and a relay, as well."""
    key = load_identity(directory / "servers" / "broker.key").public_key
    lab.server.start(
        programs.run_servers, lab.server_addresses, directory / "servers", lab.server_addresses6, False, tcp
    )
    lab.server.call(programs.wait_for_servers, lab.server_addresses[0])
    return Stage(lab, directory, key)


def ways(dials: list[programs.Dialled]) -> set[tuple[str, str, str]]:
    return {(dialled.kind, dialled.technique, dialled.technique_there) for dialled in dials}
