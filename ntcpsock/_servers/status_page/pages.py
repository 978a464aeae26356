"""The page's handlers. Whoever may not read /metrics finds a line of text at `/`, and nothing behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Final, NoReturn

import trio

from ntcpsock._servers.metrics import Sources
from ntcpsock._servers.pages import Readiness
from ntcpsock._servers.status_page.document import GAUGES, make_document, sample
from ntcpsock._servers.status_page.history import History
from ntcpsock._servers.visitor import Handler, Visitor

#: Everything comes from here, nothing is in line, nobody may frame it.
SECURITY_HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
_ASSETS: Final = {
    "/status/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/status/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/status/page.css": ("page.css", "text/css; charset=utf-8"),
}


class StatusPage:
    """Of one server; `run` is its task. title: which it is; plain: what others find at `/`."""

    def __init__(
        self,
        title: str,
        plain: str,
        sources: Callable[[], Sources],
        readiness: Readiness,
        may_read: Callable[[Visitor], bool],
    ) -> None:
        self._title = title
        self._plain = plain
        self._sources = sources
        self._readiness = readiness
        self._may_read = may_read
        self._history = History(GAUGES)
        self._started = trio.current_time()

    async def run(self) -> NoReturn:
        """Take samples, until cancelled."""
        while True:
            self._history.add(sample(self._sources()), trio.current_time())
            await trio.sleep(self._history.interval)

    def handlers(self) -> dict[str, Handler]:
        """By path."""
        return {
            "/": self._page,
            "/status/data.json": self._data,
            **{path: self._asset(path) for path in _ASSETS},
        }

    async def _page(self, visitor: Visitor) -> None:
        # Programs that ask for nothing in particular get the line as well.
        if not self._may_read(visitor) or b"text/html" not in (visitor.header("accept") or b""):
            await visitor.answer(200, self._plain)
            return
        await visitor.answer(200, _read("page.html"), "text/html; charset=utf-8", SECURITY_HEADERS)

    async def _data(self, visitor: Visitor) -> None:
        if not self._may_read(visitor):
            await visitor.answer(403, "Not for you: see --metrics-from.\n")
            return
        document = make_document(
            self._title,
            self._sources(),
            self._history,
            state=self._readiness.reason or "ready",
            started=self._started,
            now=trio.current_time(),
        )
        await visitor.answer(200, json.dumps(document), "application/json", SECURITY_HEADERS)

    def _asset(self, path: str) -> Handler:
        name, content_type = _ASSETS[path]

        async def answer(visitor: Visitor) -> None:
            await visitor.answer(200, _read(name), content_type, SECURITY_HEADERS)

        return answer


def _read(name: str) -> str:
    return files(__package__ or "").joinpath(name).read_text(encoding="utf-8")
