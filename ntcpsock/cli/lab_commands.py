"""The commands of `ntcp lab`, put together: importing these modules has added theirs."""

from __future__ import annotations

from ntcpsock.cli import lab_draw, lab_matrix
from ntcpsock.cli.lab import lab_app

__all__ = ["lab_app", "lab_draw", "lab_matrix"]
