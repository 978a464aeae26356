"""The time of a whole dial, and what its errors say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ntcpsock._address import full_name
from ntcpsock._errors import NTCPError, TraversalTimeout
from ntcpsock._report import Report
from ntcpsock._traversal.explain import explain


@contextmanager
def limited(label: str, port: int, seconds: float, report: Report) -> Iterator[None]:
    """Around a dial: raises TraversalTimeout after so many seconds. Each error of ours that leaves has the report."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        stage = report.failed_stage or "start"
        why = ""
        if stage == "punch":
            explanation = explain(report)
            report.cause, report.advice = explanation.cause, explanation.advice
            why = f". {explanation}"
        raise TraversalTimeout(
            f"no connection to {full_name(label)}:{port} within {seconds:g} s; "
            f"it was at the stage {stage!r}{why}",
            report=report,
        ) from None
    except NTCPError as error:
        error.report = error.report or report
        raise
