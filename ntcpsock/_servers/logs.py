"""What a server writes on stderr: nothing but what went wrong, as text; or each event as a line of JSON."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from ntcpsock._errors import ConfigurationError

_LEVELS = ("debug", "info", "warning", "error")


def check(form: str, level: str | None = None) -> None:
    """Raises ConfigurationError for what `set_up` does not take."""
    if form not in ("text", "json"):
        raise ConfigurationError(f"log: must be text or json, not {form!r}")
    if level is not None and level not in _LEVELS:
        raise ConfigurationError(f"log_level: must be one of {', '.join(_LEVELS)}, not {level!r}")


def set_up(form: str, level: str | None = None) -> None:
    """form: "text" or "json"; level: None is "info" for JSON, "warning" for text. Raises ConfigurationError."""
    check(form, level)
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        handlers=[handler],
        level=(level or ("info" if form == "json" else "warning")).upper(),
        force=True,
    )


class JsonLines(logging.Formatter):
    """One object a line: time (UTC, RFC 3339), level, logger, message; the fields of the dict that a record has as
    `fields`; and the exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            event |= fields
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)
