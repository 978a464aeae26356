"""What one setting of a server is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "list", "number", "integer", "switch", "path"]


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. A switch with the default True has a flag `--no-NAME`."""

    name: str
    help: str
    kind: Kind = "text"
    metavar: str | None = None
    default: Any = None
