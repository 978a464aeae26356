"""The commands of `ntcp lab`, put together."""

from __future__ import annotations

from ntcpsock.cli import lab_matrix
from ntcpsock.cli.lab import lab_app

__all__ = ["lab_app"]

assert lab_matrix  # importing it has added its command
