"""pytest plugin: the fixture `nat_lab` and the marker `lab`.

    @pytest.mark.lab
    def test_through_two_nats(nat_lab):
        lab = nat_lab("default", "reject", delay=0.025)
        lab.host_a.run([...])

The lab is removed after the test. Where network namespaces are not available the test is skipped with the
reason. Who is not root runs `unshare -Urnm pytest ...`.

Loaded by every pytest run of an environment that has ntcpsock, so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from ntcpsock.testing.natlab import Behaviour, Lab, NatKind


class NatLabFactory(Protocol):
    """What the fixture `nat_lab` gives: `open_lab` without the `with`."""

    def __call__(
        self,
        nat_a: str | NatKind | Behaviour = "default",
        nat_b: str | NatKind | Behaviour = "default",
        **arguments: Any,
    ) -> Lab: ...


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `lab`."""
    config.addinivalue_line("markers", "lab: needs network namespaces (root, or user namespaces)")


@pytest.fixture
def nat_lab() -> Iterator[NatLabFactory]:
    """A factory of labs: `ntcpsock.testing.natlab.open_lab` without `with`; they live until the test ends."""
    from ntcpsock.testing.natlab import namespaces_available, open_lab

    reason = namespaces_available()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:

        def factory(
            nat_a: str | NatKind | Behaviour = "default",
            nat_b: str | NatKind | Behaviour = "default",
            **arguments: Any,
        ) -> Lab:
            return stack.enter_context(open_lab(nat_a, nat_b, **arguments))

        yield factory
