"""The one trio thread of a process, and the way into it from ordinary threads.

The thread starts at the first use of a `.ntcp` name and stays: a node is worth having only while it is
warm. It is a daemon, so that it never keeps a program alive; an exit handler stops it in order, with a
deadline, so that what the program has written still goes out. After fork the child has no such thread
and starts its own when it needs one.

Nothing but exceptions that an `OSError` handler expects comes out of `Portal.call`: trio's own
cancellation and end-of-run are translated.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ntcpsock import _gevent, _os_exit
from ntcpsock._errors import NTCPError, TraversalTimeout

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from ntcpsock._config import Config
    from ntcpsock._engine import Engine

    NodeOpener = Callable[[Config], AbstractAsyncContextManager[Any]]

T = TypeVar("T")

# How long the exit of the interpreter waits for written data to reach the peers, in seconds. The
# kernel would go on for minutes; people who press Ctrl-C will not.
EXIT_DEADLINE = 5.0
# Operations end themselves at their deadline. One that is still silent so much later is cancelled.
_GRACE = 0.5
# How long an interrupted caller waits for its cancelled operation to have ended.
_CANCEL_DEADLINE = 2.0
_START_DEADLINE = 30.0
# Behind everything that multiprocessing itself ends at the exit of a child.
_AFTER_ITS_OWN = -1000

#: Opens a node: `ntcpsock.trio.open_node`, or what a test puts here before the engine starts.
node_opener: NodeOpener | None = None


class _Call:
    """One operation under way: started by a waiting thread, run by the engine's."""

    __slots__ = ("args", "cancelled", "discard", "done", "error", "function", "scope", "timeout", "value")

    def __init__(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.timeout: float | None = None
        self.discard: Callable[[Any], object] | None = None
        self.scope: Any = None
        self.cancelled = False
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class Portal:
    """A running engine thread. Made by `get()`, never by users."""

    def __init__(self) -> None:
        self.engine: Engine
        self._token: Any = None
        self._nursery: Any = None
        self._stop: Any = None
        self._stop_deadline = 0.0
        self._calls: set[_Call] = set()
        self._lock = threading.Lock()
        self._ended = False
        self._failure: BaseException | None = None
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="ntcpsock", daemon=True)
        self._thread.start()
        if not ready.wait(_START_DEADLINE) or self._token is None:
            raise NTCPError("ntcpsock's engine did not start") from self._failure

    @property
    def alive(self) -> bool:
        return not self._ended and self._thread.is_alive()

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller runs in the engine."""
        return threading.get_ident() == self._thread.ident

    # -- in ordinary threads

    def call(
        self,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Run `function(*args)` in the engine and wait for what it returns.

        timeout: seconds, after which the operation is cancelled and TraversalTimeout raised; None
        leaves the limit to the operation. An exception in the waiting thread (KeyboardInterrupt above
        all) cancels the operation; `discard` gets its result if it came too late to be returned.
        Raises OSErrors only, and RuntimeError when called from the engine's own thread.
        """
        if self.is_own_thread:
            raise RuntimeError("this would block ntcpsock's own thread; use ntcpsock.trio there")
        call = _Call(function, args)
        call.timeout = timeout
        call.discard = discard
        with self._lock:
            self._calls.add(call)
        try:
            # Inside: a signal may come when the operation has started and is not waited for yet.
            self.soon(self._start, call)
            call.done.wait()
        except BaseException:
            call.cancelled = True
            self.soon(self._cancel, call)
            call.done.wait(_CANCEL_DEADLINE)
            if call.done.is_set() and call.error is None and call.discard is not None:
                self.soon(call.discard, call.value)
            raise
        if call.error is not None:
            if _exiting and threading.current_thread().daemon:
                _wait_for_the_end()
            # The error may be shared with the engine: leave no reference cycle through this frame.
            try:
                raise translated(call.error)
            finally:
                del call
        result: T = call.value
        return result

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Run the plain `function` in the engine, without waiting; nothing happens when it has ended.

        Safe in signal handlers, finalizers and every thread.
        """
        import trio

        if self._ended:
            self._fail_calls()
            return
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            self._fail_calls()

    def stop(self, deadline: float = EXIT_DEADLINE) -> None:
        """End the engine: listeners first, then what the program has written, then the nodes."""
        if not self.alive or threading.get_ident() == self._thread.ident:
            return
        self._stop_deadline = deadline
        self.soon(self._stop.set)
        self._thread.join(deadline + 1)

    # -- in the engine's thread

    def _run(self, ready: threading.Event) -> None:
        try:
            with _importing:
                import trio

                import ntcpsock._engine  # noqa: F401

            trio.run(self._main, ready)
        except BaseException as error:
            # A daemon thread that the interpreter's exit overtakes has nobody to complain to.
            self._failure = error
            if ready.is_set() and not _exiting:
                _log(error)
        finally:
            with self._lock:
                self._ended = True
            self._fail_calls()
            ready.set()

    async def _main(self, ready: threading.Event) -> None:
        import trio

        from ntcpsock._engine import Engine

        self._stop = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.engine = Engine(nursery, node_opener or _default_opener)
            self._token = trio.lowlevel.current_trio_token()
            ready.set()
            await self._stop.wait()
            with trio.move_on_after(self._stop_deadline):
                await self.engine.finish(exiting=_exiting)
            self.engine.close()
            nursery.cancel_scope.cancel()

    def _start(self, call: _Call) -> None:
        try:
            self._nursery.start_soon(self._perform, call)
        except RuntimeError:  # the nursery is closed: the engine is ending
            self._settle(call, error=_stopped())

    async def _perform(self, call: _Call) -> None:
        import trio

        timeout = float("inf") if call.timeout is None else call.timeout + _GRACE
        try:
            with trio.move_on_after(timeout) as call.scope:
                if call.cancelled:
                    call.scope.cancel()
                call.value = await call.function(*call.args)
                if call.cancelled and call.discard is not None:
                    call.discard(call.value)
                    call.discard = None
                self._settle(call)
                return
            if call.cancelled:
                self._settle(call, error=InterruptedError(errno.EINTR, "interrupted"))
            else:
                self._settle(call, error=TraversalTimeout("timed out"))
        except trio.Cancelled:
            self._settle(call, error=_stopped())
            raise
        except Exception as error:
            self._settle(call, error=error)

    def _cancel(self, call: _Call) -> None:
        if call.scope is not None:
            call.scope.cancel()

    def _settle(self, call: _Call, error: BaseException | None = None) -> None:
        with self._lock:
            self._calls.discard(call)
        call.error = error
        call.done.set()

    def _fail_calls(self) -> None:
        with self._lock:
            self._ended = True
            calls = list(self._calls)
        for call in calls:
            self._settle(call, error=_stopped())


def _default_opener(config: Config) -> AbstractAsyncContextManager[Any]:
    with _importing:
        from ntcpsock.trio import open_node

    return open_node(config)


def _stopped() -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, "ntcpsock's engine has stopped")


def translated(error: BaseException) -> OSError:
    """The OSError that stands for `error` in synchronous code."""
    if isinstance(error, BaseExceptionGroup):
        found: list[BaseException] = []
        pending: list[BaseException] = [error]
        while pending:
            one = pending.pop(0)
            if isinstance(one, BaseExceptionGroup):
                pending.extend(one.exceptions)
            else:
                found.append(one)
        error = next((one for one in found if isinstance(one, OSError)), found[0])
    if isinstance(error, OSError):
        return error
    wrapped = NTCPError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _log(error: BaseException) -> None:
    import logging

    logging.getLogger("ntcpsock").error("the engine stopped", exc_info=error)


# -- the portal of this process

_current: Portal | None = None
_lock = threading.Lock()
_exiting = False
# Held by the engine's thread while it imports what it needs.
_importing = threading.Lock()


def get() -> Portal:
    """The portal of this process; starts the engine at first use, and anew after fork.

    Raises NTCPError where it cannot start, ConnectionAbortedError when the interpreter is exiting.
    """
    global _current
    with _lock:
        exiting = _exiting
        if not exiting:
            if _current is None or not _current.alive:
                _gevent.check("threading")
                _guard_forks()
                _current = Portal()
                _stop_with_multiprocessing()
                _os_exit.install(_before_os_exit)
            return _current
    if threading.current_thread().daemon:
        _wait_for_the_end()
    raise _stopped()


def _stop_with_multiprocessing() -> None:
    """A child that multiprocessing has forked ends without exit handlers: what it has written would be lost."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, stop, exitpriority=_AFTER_ITS_OWN)


def _wait_for_the_end() -> None:
    """Never returns. The interpreter is exiting and stops daemon threads without a word: a traceback of
    theirs, at the end of a program that did nothing wrong, would be ours."""
    while True:
        threading.Event().wait()


def current() -> Portal | None:
    """The portal where one runs; never starts it."""
    portal = _current
    return portal if portal is not None and portal.alive else None


def stop(deadline: float = EXIT_DEADLINE) -> None:
    """Stop the engine of this process if one runs. The next use starts another."""
    global _current
    with _lock:
        portal, _current = _current, None
    _os_exit.uninstall()
    if portal is not None:
        portal.stop(deadline)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    stop()


def _before_os_exit() -> None:
    global _exiting
    # A signal handler may have interrupted whoever holds the lock: then there is no more time.
    if _lock.acquire(timeout=_GRACE):
        _exiting = True
        portal = _current
        _lock.release()
        if portal is not None:
            portal.stop()


_guards_forks = False


def _guard_forks() -> None:
    """A child that is forked while the engine's thread imports would find those modules locked for ever."""
    global _guards_forks
    if _guards_forks or not hasattr(os, "register_at_fork"):
        return
    # What is registered last is called first. So logging, whose own lock the imports need, comes before us:
    # it must not hold that while we wait for them.
    import logging  # noqa: F401

    os.register_at_fork(before=lambda: _importing.acquire(), after_in_parent=lambda: _importing.release())
    _guards_forks = True


def _after_fork_in_child() -> None:
    global _current, _lock, _importing
    _lock = threading.Lock()
    _importing = threading.Lock()
    portal, _current = _current, None
    if portal is not None:
        # Other threads of the parent may have held these locks, the token's own among them.
        portal._lock = threading.Lock()
        portal._ended = True
        portal._calls.clear()
        # A copy of the parent's descriptors would keep its connections open after it closed them.
        portal.engine.close_copies()


# Registered at import, so that exit handlers that programs register later still find the engine.
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
