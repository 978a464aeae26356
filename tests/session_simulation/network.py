"""Virtual time, and carriers: ordered, reliable pipes of bytes each way, until somebody cuts them."""

from __future__ import annotations

import errno
import heapq
import math
import random
from collections.abc import Callable

#: Seconds after which a kernel gives a connection up that went silent.
KERNEL_KEEP_ALIVE = 400.0


class World:
    """The clock, what is to happen, and the seeded chance that decides everything. now: in virtual seconds."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.events = 0
        self.trace: list[str] | None = None
        self._count = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []

    def after(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        self.at(self.now + seconds, action, *arguments)

    def at(self, time: float, action: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, action, arguments))

    def step(self) -> None:
        self.now, _, action, arguments = heapq.heappop(self._queue)
        self.events += 1
        action(*arguments)

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:8.3f}  {text}")


class Pipe:
    """One direction. sent: bytes taken from the sender; arrived: at the receiver's kernel; lasting: how many get
    through at all; capacity: bytes under way or unread."""

    __slots__ = (
        "arrived",
        "buffer",
        "capacity",
        "delay",
        "last",
        "lasting",
        "read",
        "sent",
        "to",
        "was_full",
        "world",
    )

    def __init__(self, world: World, delay: float, capacity: int) -> None:
        self.world = world
        self.delay = delay
        self.capacity = capacity
        self.sent = self.arrived = self.read = 0
        self.lasting: float = math.inf
        self.buffer = bytearray()
        self.last = 0.0  # when the newest bytes arrive
        self.was_full = False
        self.to: Side

    def send(self, data: bytes) -> int:
        count = min(len(data), self.capacity - (self.sent - self.read))
        if count < len(data):
            self.was_full = True
        if count > 0:
            self.sent += count
            self.last = max(self.last, self.world.now + self.delay)
            self.world.at(self.last, self._arrive, bytes(data[:count]))
        return count

    def _arrive(self, data: bytes) -> None:
        usable = min(len(data), self.lasting - self.arrived)
        if usable > 0:
            self.arrived += int(usable)
            if self.to.closed:
                if not self.to.carrier.silent:
                    self.world.after(self.delay, self.to.carrier.other(self.to).fail, _closed_there())
                return
            self.buffer += data[: int(usable)]
            self.to.ready()
        if usable < len(data):
            self.to.carrier.break_now()

    def take(self, limit: int) -> bytes:
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        self.read += len(data)
        if self.was_full:
            self.was_full = False
            self.world.after(self.delay, self.to.carrier.other(self.to).ready)
        return data


class Side:
    """What one end has of a carrier. on_ready: called when there may be something to read or room to send.

    Methods fail as those of a socket: OSError; `receive` gives None where there is nothing now, b"" at the end.
    """

    def __init__(self, carrier: Carrier, out: Pipe, into: Pipe) -> None:
        self.carrier = carrier
        self.out = out
        self.into = into
        self.on_ready: Callable[[Side], None] = _nobody
        self.error: OSError | None = None
        self.has_ended = False  # the other side closed in order
        self.closed = False

    def ready(self) -> None:
        if not self.closed:
            self.on_ready(self)

    def send(self, data: bytes) -> int:
        if self.error is not None:
            raise self.error
        return self.out.send(data)

    def receive(self, limit: int) -> bytes | None:
        if self.into.buffer:
            return self.into.take(limit)
        if self.error is not None:
            raise self.error
        return b"" if self.has_ended else None

    def unacknowledged(self) -> int | None:
        """Bytes that the other side's kernel has not confirmed; None where this kind of carrier cannot tell."""
        return self.out.sent - self.out.arrived if self.carrier.tells else None

    def close(self, *, abort: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        world, pipe = self.carrier.world, self.out
        if not self.carrier.silent:
            world.at(max(pipe.last, world.now + pipe.delay), self._tell_other, abort)

    def _tell_other(self, abort: bool) -> None:
        other = self.carrier.other(self)
        if self.carrier.silent or other.closed or self.out.arrived < self.out.sent:
            return
        if abort:
            other.fail(ConnectionResetError(errno.ECONNRESET, "the carrier was reset"))
        else:
            other.has_ended = True
            other.ready()

    def fail(self, error: OSError) -> None:
        """Its kernel says that it is broken. Some drop what has not been read."""
        if self.closed or self.error is not None:
            return
        self.error = error
        if self.carrier.world.chance.random() < 0.5:
            self.into.buffer.clear()
        self.ready()


def _closed_there() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the other side was closed")


def _nobody(side: Side) -> None:
    pass


class Carrier:
    """Two sides: 0 is the dialer's. dial_id: 16 bytes; silent: no byte gets through any more, and no word of that.

    told: which sides learn at once that it is cut.
    """

    def __init__(self, world: World, dial_id: bytes, delay: float, capacity: int) -> None:
        self.world = world
        self.dial_id = dial_id
        self.silent = False
        self.is_strange = False  # brought by somebody else than the stream's dialer
        self.told: tuple[int, ...] = ()
        self.one_way = False
        self.tells = world.chance.random() < 0.7
        pipes = Pipe(world, delay, capacity), Pipe(world, delay, capacity)
        self.sides = Side(self, pipes[0], pipes[1]), Side(self, pipes[1], pipes[0])
        pipes[0].to, pipes[1].to = self.sides[1], self.sides[0]
        self.is_broken = False

    def other(self, side: Side) -> Side:
        return self.sides[1] if side is self.sides[0] else self.sides[0]

    def doom(self, side: int, lasting: int, told: tuple[int, ...], one_way: bool) -> None:
        """Cut it when so many bytes have come from `side`, or only what `side` sends."""
        self.sides[side].out.lasting = self.sides[side].out.arrived + lasting
        self.told, self.one_way = told, one_way

    def cut(self, told: tuple[int, ...], one_way: int | None = None) -> None:
        """Now; what is under way is lost with it."""
        for number, side in enumerate(self.sides):
            if one_way in (None, number):
                side.out.lasting = min(side.out.lasting, side.out.arrived)
        self.told, self.one_way = told, one_way is not None
        self.break_now()

    def break_now(self) -> None:
        if self.is_broken:
            return
        self.is_broken = True
        if not self.one_way:
            for side in self.sides:
                side.out.lasting = min(side.out.lasting, side.out.arrived)
            self.silent = True
        self.world.note(f"carrier {self.dial_id[0]} is cut, told {self.told}, one way {self.one_way}")
        for number in self.told:
            self.sides[number].fail(ConnectionResetError(errno.ECONNRESET, "the path broke"))
        self.world.after(KERNEL_KEEP_ALIVE, self._time_out)

    def _time_out(self) -> None:
        for side in self.sides:
            side.fail(TimeoutError(errno.ETIMEDOUT, "the kernel's keep-alive"))
