"""Two clocks that tell how long this machine has slept, and a descriptor that wakes us when it has."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time

import trio

# sys/timerfd.h
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0, 0o2000000

# Far away: what is wanted of the timer is not its time.
_NEVER = min(2**40, sys.maxsize)


def read_clocks() -> tuple[float, float]:
    """Seconds of a clock that stands still while the machine sleeps, and of one that goes on. On other systems than
    Linux the second is the wall's, so that somebody who sets it forward looks like a sleep."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    if boot_time is not None:
        return time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(boot_time)
    return time.monotonic(), time.time()


class WakeUp:
    """Becomes readable when the machine has slept, or its wall clock was set: a timer of Linux that is cancelled by
    that, so nothing wakes up to look. Raises OSError where there is none."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(f"no timers as descriptors on {sys.platform}")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        try:
            self._arm()
        except BaseException:
            self.close()
            raise

    def _arm(self) -> None:
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        # struct itimerspec: interval, and value.
        when = ctypes.create_string_buffer(struct.pack("@llll", 0, 0, _NEVER, 0))
        if self._libc.timerfd_settime(self._descriptor, flags, when, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    async def wait(self) -> None:
        """Until then."""
        await trio.lowlevel.wait_readable(self._descriptor)
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        except OSError:
            # ECANCELED: what we wait for. A cancelled timer has to be set again.
            self._arm()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
