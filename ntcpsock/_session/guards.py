"""Who may use a session's driver now, and what its errors are to a trio stream."""

from __future__ import annotations

import trio

from ntcpsock._session.driver import SessionDriver


class Conflict:
    """Lets one task in at a time; the second gets BusyResourceError instead of a queue."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.busy = False

    def __enter__(self) -> None:
        if self.busy:
            raise trio.BusyResourceError(self._text)
        self.busy = True

    def __exit__(self, *_: object) -> None:
        self.busy = False


class Translated:
    """The errors of carriers as those of trio's streams. A class, because it stands in the hot path."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, (OSError, trio.ClosedResourceError)):
            return
        # A waiter that `fail` woke up finds the reason in the driver.
        reason = error if isinstance(error, OSError) else self._driver.send_error
        if self._driver.closed or reason is None:
            raise trio.ClosedResourceError("this stream was closed") from None
        raise trio.BrokenResourceError(str(reason)) from reason


class Sending:
    """The right to put frames on the carrier, with errors translated."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver
        self._translated = Translated(driver)

    async def __aenter__(self) -> None:
        await self._driver.acquire()
        if self._driver.closed:  # while we waited
            self._driver.lock.release()
            raise trio.ClosedResourceError("this stream was closed")

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._driver.lock.release()
        self._translated.__exit__(kind, error, traceback)
