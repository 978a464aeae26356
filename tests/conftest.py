"""What holds for all tests."""

import signal

import pytest

from ntcpsock._traversal.moving import kept

# A shell starts background jobs with SIGINT ignored, and so would be every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over loopback a reset says that the other process has died. An end that has lost its path may send one, if
    something came that it has not read: as between machines, that ends no stream."""
    monkeypatch.setattr(kept, "is_loopback", lambda host: False)
