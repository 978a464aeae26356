"""The life of a server process: the ready line, SIGHUP (read files again), SIGTERM (let work end), SIGINT, its end.

All `servers/*.py` and `ntcp serve` run in here.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.notify import notify

_logger = logging.getLogger("ntcpsock.server")

_HANGUP: Final = getattr(signal, "SIGHUP", None)


class Service(Protocol):
    """What has been started."""

    @property
    def ready(self) -> str:
        """The line that says so."""
        ...

    async def drain(self, seconds: float) -> None:
        """Take no new work, and return when what there is has ended, or after so many seconds."""
        ...

    def reload(self) -> None:
        """Read its files again. Raises OSError where they cannot be used; what stood before stands then."""
        ...


@dataclass(frozen=True, slots=True)
class Simple:
    """A service that has nothing to wait for, and no files but a certificate."""

    ready: str
    certificate: CertificateFiles | None = None

    async def drain(self, seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    def reload(self) -> None:
        if self.certificate is not None:
            self.certificate.reload()


async def run_until_signalled(
    start: Callable[[trio.Nursery], Awaitable[Service]], *, drain: float = 0.0
) -> None:
    """Start a service in a nursery, print its ready line, and serve until a signal ends it.

    SIGTERM ends it when it is drained, after `drain` seconds at most; SIGINT, and each second signal, at once. SIGHUP
    has it read its files again. Raises what `start` raises.
    """
    numbers = [signal.SIGINT, signal.SIGTERM, *([_HANGUP] if _HANGUP is not None else [])]
    # Caught before anything is bound: whoever sees the ready line may send one.
    with trio.open_signal_receiver(*numbers) as signals:
        async with trio.open_nursery() as nursery:
            service = await start(nursery)
            # In one write: whoever reads a line and closes the pipe is not in the way of a second one.
            print(f"{service.ready}\n", end="", flush=True)
            _logger.info("serving: %s", service.ready.replace("\n", ", "))
            notify(b"READY=1")
            draining = False
            async for number in signals:
                if number == _HANGUP:
                    _reload(service)
                elif number == signal.SIGTERM and drain > 0 and not draining:
                    draining = True
                    _logger.info("draining, for %g s at most", drain)
                    notify(b"STOPPING=1")
                    nursery.start_soon(_drain, service, drain, nursery.cancel_scope)
                else:
                    break
            _logger.info("ends")
            nursery.cancel_scope.cancel()


async def _drain(service: Service, seconds: float, whole: trio.CancelScope) -> None:
    await service.drain(seconds)
    whole.cancel()


def _reload(service: Service) -> None:
    try:
        service.reload()
    except OSError as error:
        _logger.error("not read again: %s", error)
    else:
        _logger.info("files were read again")


def run_script(program: str, main: Callable[[], Awaitable[None]]) -> None:
    """`trio.run(main)` and the end of the process: exit code 1, and a line on stderr, where it could not serve."""
    complaint = None
    try:
        trio.run(main)
    except* (OSError, ValueError, OverflowError) as errors:
        complaint = f"{program}: {first_of(errors)}"
    sys.exit(complaint)  # not above: before 3.11.4 what an except* clause raises comes out as a group


def first_of(error: BaseException) -> BaseException:
    """One of those in a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
