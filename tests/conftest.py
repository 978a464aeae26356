"""What holds for all tests."""

import signal
from collections.abc import Iterator

import pytest

from ntcpsock import _known
from ntcpsock._traversal.moving import kept

# A shell starts background jobs with SIGINT ignored, and so would be every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def forget_punched_connections() -> Iterator[None]:
    """Nobody says when those without encryption are over: they are remembered, up to a bound, for the next test too."""
    yield
    while _known._punched:
        _known.leave(_known._punched.popleft())


@pytest.fixture
def between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over loopback a reset says that the other process has died. An end that has lost its path may send one, if
    something came that it has not read: as between machines, that ends no stream."""
    monkeypatch.setattr(kept, "is_loopback", lambda host: False)
