"""What a service command tells of its connections: event lines, and a live line where a person looks on."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from ntcpsock.cli.output import (
    Output,
    connected_fields,
    describe,
    error_event,
    moved_fields,
    moved_text,
)

if TYPE_CHECKING:
    from rich.text import Text

    from ntcpsock._report import Move
    from ntcpsock.cli.bridge import Bridge
    from ntcpsock.trio import NTCPStream

# Seconds between two looks at the counters, for the live line.
REFRESH = 0.25

# Seconds between two looks for connections that were reset while nobody read them.
SWEEP = 1.0


@dataclass
class Connection:
    """One connection of a service, from when it was accepted. number: counted from 1."""

    number: int
    started: float
    label: str
    kind: str | None = None
    bridge: Bridge | None = None


@dataclass
class Traffic:
    """The connections of one service: those open, and the sums over those that were.

    total: connections accepted so far; failed: those of them that came to nothing; sent, received: bytes of
    those that are over, from the accepted end to the other, and back.
    """

    output: Output
    total: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0
    connections: dict[int, Connection] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # -- events ----------------------------------------------------------------------------------

    def listening(self, text: str, **fields: Any) -> None:
        """The service is ready. Said to people in any case."""
        self.output.say("listening", text, **fields)

    def warning(self, text: str) -> None:
        self.output.say("warning", f"warning: {text}", message=text)

    def stopped(self) -> None:
        self.output.say(
            "stopped",
            f"stopped after {self.total} connections, {self.sent + self.received} bytes",
            total=self.total,
            failed=self.failed,
            sent=self.sent,
            received=self.received,
        )

    def begin(self, label: str) -> Connection:
        """A connection was accepted; `label` says by whom or to where."""
        connection = Connection(next(self._numbers), trio.current_time(), label)
        self.connections[connection.number] = connection
        self.total += 1
        return connection

    def opened(self, connection: Connection, bridge: Bridge, stream: NTCPStream | None, target: str) -> None:
        """Both ends are there. stream: the end that goes by name, None for a plain one."""
        connection.bridge = bridge
        seconds = trio.current_time() - connection.started
        connection.kind = stream.path.kind if stream is not None else "plain"
        fields: dict[str, Any] = {"seconds": seconds, "kind": connection.kind}
        if stream is not None:
            fields = connected_fields(seconds, stream.peer, stream.path, stream.report)
        self.output.event(
            "opened",
            f"{connection.number}: {connection.label} to {target}, {connection.kind} path",
            connection=connection.number,
            source=connection.label,
            target=target,
            **fields,
        )

    def moved(self, connection: Connection, move: Move) -> None:
        """The end that goes by name has another path."""
        connection.kind = move.path.kind
        self.output.event(
            "moved",
            f"{connection.number}: {moved_text(move)}",
            connection=connection.number,
            **moved_fields(move),
        )

    def closed(self, connection: Connection, broken_by: str | None) -> None:
        """broken_by: which side did not end in order, in words; None when both did."""
        bridge = connection.bridge
        assert bridge is not None
        seconds = trio.current_time() - connection.started
        how = f"broken by {broken_by}" if broken_by else "closed"
        self.output.event(
            "closed",
            f"{connection.number}: {how}, {bridge.sent} bytes there, {bridge.received} back",
            connection=connection.number,
            seconds=seconds,
            sent=bridge.sent,
            received=bridge.received,
            broken_by=broken_by,
            reason=describe(bridge.error) if bridge.error is not None else None,
        )

    def refused(self, connection: Connection, error: BaseException) -> None:
        """The connection came to nothing."""
        self.failed += 1
        # trio's stream errors carry the kernel's one, which says more.
        if not isinstance(error, OSError) and isinstance(error.__cause__, OSError):
            error = error.__cause__
        if self.output.json:
            self.output.event(text="", connection=connection.number, **error_event(error))
        else:
            self.output.error(error)

    def end(self, connection: Connection) -> None:
        """The connection is over, however it went."""
        del self.connections[connection.number]
        if connection.bridge is not None:
            self.sent += connection.bridge.sent
            self.received += connection.bridge.received

    def limit(self, most: int) -> None:
        self.output.say("limit", f"{most} connections are open; more wait until one ends", connections=most)

    # -- while it runs ---------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Look for connections that were reset behind our back, for ever."""
        while True:
            await trio.sleep(SWEEP)
            for connection in tuple(self.connections.values()):
                if connection.bridge is not None:
                    connection.bridge.check()

    def line(self) -> Text:
        """The live line."""
        from rich.filesize import decimal
        from rich.text import Text

        bridges = [c.bridge for c in self.connections.values() if c.bridge is not None]
        sent = self.sent + sum(bridge.sent for bridge in bridges)
        received = self.received + sum(bridge.received for bridge in bridges)
        kinds = Counter(c.kind for c in self.connections.values() if c.kind is not None)
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{len(self.connections)} open", "bold green" if self.connections else "dim")
        line.append(f" of {self.total}")
        if self.failed:
            line.append(f", {self.failed} failed", "red")
        line.append(f"  ↑ {decimal(sent)}  ↓ {decimal(received)}")
        if kinds:
            line.append("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()), "cyan")
        return line


@asynccontextmanager
async def live_line(traffic: Traffic) -> AsyncIterator[None]:
    """Keep the live line at the bottom of the terminal that stderr is; elsewhere do nothing.

    What is written to stderr meanwhile appears above it.
    """
    if traffic.output.json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    # No thread of rich's own: the counters belong to this one.
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, transient=True)

    async def refresh() -> None:
        while True:
            live.update(traffic.line(), refresh=True)
            await trio.sleep(REFRESH)

    with live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh)
            yield
            nursery.cancel_scope.cancel()
