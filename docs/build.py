"""Render the API documentation into docs/_build: `make docs`."""

from __future__ import annotations

from pathlib import Path

import pdoc

import ntcpsock
import ntcpsock.trio

TARGET = Path(__file__).parent / "_build"


def main() -> None:
    # pdoc evaluates the annotations of private attributes too, which it never shows. Some name types
    # that only a type checker imports.
    for cls in (
        ntcpsock.NTCPSocket,
        ntcpsock.trio.Node,
        ntcpsock.trio.NTCPListener,
        ntcpsock.trio.NTCPStream,
    ):
        annotations = vars(cls).get("__annotations__", {})
        for name in [name for name in annotations if name.startswith("_")]:
            del annotations[name]
    pdoc.render.configure(docformat="google", footer_text="ntcpsock", show_source=False)
    pdoc.pdoc("ntcpsock", "ntcpsock.trio", "ntcpsock.testing", output_directory=TARGET)
    print(TARGET / "index.html")


if __name__ == "__main__":
    main()
