"""What was seen where: packets at the hosts' devices and on the links, with their times."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, Any, Literal

from ntcpsock.testing.natlab.namespace import LabUnavailable
from ntcpsock.testing.natlab.place import Host

SEEN_BYTES = 160
"""What is kept of each packet: its headers, and the beginning of what it carries."""

MOST_SIGHTINGS = 50_000
"""What one place remembers; later ones are not."""

Event = Literal["sent", "received", "entered", "left"]

_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """One packet at one moment of its way.

    place: a host ("sent" by it, "received" by it), or a router: "entered" and "left" are then the two ends of a
    crossing of its link, outside its NAT. outward: from the host towards the world. time: of `time.monotonic()`.
    packet: IPv4, its first SEEN_BYTES.
    """

    time: float
    place: str
    event: Event
    outward: bool
    packet: bytes


class HostSightings:
    """The packets that a host sends and receives, from now on."""

    def __init__(self, host: Host) -> None:
        self._name = host.name
        argv = [sys.executable, "-m", "ntcpsock.testing.natlab.sniffer", *host.devices.values()]
        self._process = host.popen(argv, stdout=subprocess.PIPE, text=True)
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        if stdout.readline() != "ready\n":
            raise LabUnavailable("packets cannot be captured: see the error above")
        self._found: list[Sighting] = []
        self._reader = threading.Thread(target=self._read, args=(stdout,), daemon=True)
        self._reader.start()

    def stop(self) -> list[Sighting]:
        """All of them, in their order; no more are taken."""
        self._process.terminate()
        self._reader.join(_GRACE)
        return list(self._found)

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                moment, outward, packet = json.loads(line)
                if len(self._found) < MOST_SIGHTINGS:
                    event: Event = "sent" if outward else "received"
                    self._found.append(Sighting(moment, self._name, event, outward, bytes.fromhex(packet)))


def from_wire(rows: list[list[Any]]) -> list[Sighting]:
    """What the wire has recorded."""
    return [
        Sighting(moment, router, event, outward, bytes.fromhex(packet))
        for moment, router, event, outward, packet in rows
    ]
