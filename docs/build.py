"""Build the documentation into docs/_build, or into the folder given: `make docs`.

Guide pages are the Markdown files of docs/, the README is the front page, examples become pages with colours, and pdoc
renders the API. A link that leads nowhere is an error.
"""

from __future__ import annotations

import html
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import markdown2
import pdoc
import pdoc.doc
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

import ntcpsock
import ntcpsock.trio

ROOT = Path(__file__).parent.parent
API = (
    "ntcpsock",
    "ntcpsock.trio",
    "ntcpsock.testing",
    "ntcpsock.testing.natlab",
    "ntcpsock.testing.pytest_plugin",
)

# Source, page, title; in the order of the menu.
GUIDE = (
    ("README.md", "index.html", "ntcpsock"),
    ("docs/guide/start.md", "guide/start.html", "Getting started"),
    ("docs/guide/recipes.md", "guide/recipes.html", "Recipes"),
    ("docs/guide/web.md", "guide/web.html", "Web servers and clients"),
    ("docs/guide/libraries.md", "guide/libraries.html", "Libraries"),
    ("docs/guide/numbers.md", "guide/numbers.html", "Names as numbers"),
    ("docs/guide/lab.md", "guide/lab.html", "Test your program behind NATs"),
    ("docs/guide/doctor.md", "guide/doctor.html", "What network am I in?"),
    ("docs/guide/matrix.md", "guide/matrix.html", "Which NATs it connects"),
    ("docs/guide/udp.md", "guide/udp.html", "Paths over UDP"),
    ("docs/guide/datagrams.md", "guide/datagrams.html", "Datagrams"),
    ("docs/guide/solipsis.md", "guide/solipsis.html", "A small world: Solipsis"),
    ("docs/guide/turn.md", "guide/turn.html", "TURN servers"),
    ("docs/guide/raw.md", "guide/raw.html", "Raw packets"),
    ("docs/guide/servers.md", "guide/servers.html", "Running servers"),
    ("docs/guide/cluster.md", "guide/cluster.html", "Brokers in a cluster"),
    ("docs/guide/trouble.md", "guide/trouble.html", "When it does not connect"),
    ("docs/design.md", "design.html", "How it is built"),
    ("docs/security.md", "security.html", "Security"),
)

# Beside the pages.
FILES = (
    "broker-cost.svg",
    "connection.svg",
    "solipsis.svg",
    "matrix.svg",
    "matrix.json",
    "matrix-mapped.svg",
    "matrix-mapped.json",
    "matrix-everything.svg",
    "matrix-everything.json",
    "punch.svg",
    "prediction.svg",
)

EXTRAS = ("fenced-code-blocks", "tables", "header-ids", "cuddled-lists", "code-friendly", "strike")


@dataclass(frozen=True)
class Page:
    """source: its path in the repository; target: its path in the site; both with slashes."""

    source: str
    target: str
    title: str
    body: str


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "_build"
    shutil.rmtree(target, ignore_errors=True)
    pages = [*guide_pages(), *example_pages()]
    moved = {page.source: page.target for page in pages} | {"examples": "examples/index.html"}
    render_api(target / "api")
    for name in FILES:
        shutil.copy(ROOT / "docs" / name, target / name)
        moved[f"docs/{name}"] = name
    shutil.copy(ROOT / "LICENSE", target / "LICENSE")
    for page in pages:
        path = target / page.target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(page, moved), encoding="utf-8")
    if dead := dead_links(target, pages):
        sys.exit("\n".join(dead))
    print(target / "index.html")


def guide_pages() -> list[Page]:
    pages = []
    for source, target, title in GUIDE:
        text = (ROOT / source).read_text(encoding="utf-8")
        pages.append(Page(source, target, title, str(markdown2.markdown(text, extras=list(EXTRAS)))))
    return pages


def example_pages() -> list[Page]:
    """One page for each example, and a list of them with the first line of what each says of itself."""
    pages, entries = [], []
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix not in (".py", ".sh", ".toml"):
            continue
        text = path.read_text(encoding="utf-8")
        code = highlight(text, get_lexer_for_filename(path.name), HtmlFormatter(cssclass="codehilite"))
        body = f"<h1>{path.name}</h1>\n{code}"
        pages.append(Page(f"examples/{path.name}", f"examples/{path.name}.html", path.name, body))
        entries.append(
            f'<tr><td><a href="{path.name}">{path.name}</a></td><td>{html.escape(summary(text))}</td></tr>'
        )
    table = f"<h1>Examples</h1>\n<table>{''.join(entries)}</table>"
    return [Page("examples/index", "examples/index.html", "Examples", table), *pages]


def summary(text: str) -> str:
    """The first sentence of a docstring, or of the comment at the top."""
    lines = [line.removeprefix('"""').lstrip("# ") for line in text.splitlines() if not line.startswith("#!")]
    return re.split(r"(?<=\.)\s|:$|\"\"\"", " ".join(lines[:2]))[0]


def render(page: Page, moved: dict[str, str]) -> str:
    """The whole page, with links between sources turned into links between pages."""
    here = PurePosixPath(page.target)
    up = "../" * (len(here.parts) - 1)

    def relink(match: re.Match[str]) -> str:
        attribute, link = match[1], html.unescape(match[2])
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            return match[0]
        source = normalized(PurePosixPath(page.source).parent / parts.path)
        if source not in moved:
            return match[0]
        return f'{attribute}="{up}{moved[source]}{"#" + parts.fragment if parts.fragment else ""}"'

    body = re.sub(r'\b(href|src)="([^"]*)"', relink, page.body)
    entries = [(target, title) for _, target, title in GUIDE]
    entries += [("examples/index.html", "Examples"), *((f"api/{m.replace('.', '/')}.html", m) for m in API)]
    menu = "".join(
        f'<a href="{up}{target}"{" class=here" if target == page.target else ""}>{title}</a>'
        for target, title in entries
    )
    title = page.title if page.title == "ntcpsock" else f"{page.title} - ntcpsock"
    return TEMPLATE.format(title=title, style=STYLE + colours(), menu=menu, body=body)


def normalized(path: PurePosixPath) -> str:
    """Without `..`: docs/guide/../../examples/x gives examples/x."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def colours() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".codehilite")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".codehilite")
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def render_api(target: Path) -> None:
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
    # What is the standard library's is documented there: hundreds of constants would hide the rest.
    ours = [name for name in ntcpsock.__all__ if getattr(ntcpsock, name) is not getattr(socket, name, None)]
    ntcpsock.__all__[:] = ours
    if missing := [word for module in API for word in undocumented(pdoc.doc.Module.from_name(module))]:
        sys.exit("no docstring: " + ", ".join(missing))
    pdoc.render.configure(docformat="google", footer_text="ntcpsock", show_source=False)
    # pdoc takes the public modules of a package along with it.
    pdoc.pdoc("ntcpsock", "ntcpsock.trio", "ntcpsock.testing", output_directory=target)


def undocumented(space: pdoc.doc.Namespace[Any]) -> list[str]:
    """Public classes and functions of this project that have no docstring."""
    missing = []
    for member in space.members.values():
        ours = member.taken_from[0].partition(".")[0] == "ntcpsock"
        if member.name.startswith("_") or not ours or isinstance(member, pdoc.doc.Variable):
            continue
        if not member.docstring:
            missing.append(member.fullname)
        if isinstance(member, pdoc.doc.Class):
            missing += undocumented(member)
    return missing


class Links(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.anchors.add(value)


def dead_links(target: Path, pages: list[Page]) -> list[str]:
    """Links within the site whose file or anchor is not there."""
    found = {page.target: Links((target / page.target).read_text(encoding="utf-8")) for page in pages}
    dead = []
    for place, page in found.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            path = normalized(PurePosixPath(place).parent / unquote(parts.path)) if parts.path else place
            if not (target / path).is_file():
                dead.append(f"{place}: {link} leads nowhere")
            elif parts.fragment and path in found and parts.fragment not in found[path].anchors:
                dead.append(f"{place}: {link}: no such section")
    return dead


STYLE = """
:root { --text: #1f2328; --paper: #fff; --dim: #59636e; --line: #d1d9e0; --shade: #f6f8fa; --link: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --paper: #0d1117; --dim: #9198a1; --line: #3d444d; --shade: #161b22; --link: #4493f8; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
nav { position: fixed; inset: 0 auto 0 0; width: 15rem; padding: 1.5rem 1rem; border-right: 1px solid var(--line);
      overflow-y: auto; }
nav a { display: block; padding: .3rem .6rem; border-radius: .4rem; color: var(--text); text-decoration: none; }
nav a.here { background: var(--shade); font-weight: 600; }
nav a:hover { color: var(--link); }
main { margin-left: 15rem; padding: 1.5rem 2.5rem 5rem; max-width: 62rem; }
a { color: var(--link); }
h1, h2 { border-bottom: 1px solid var(--line); padding-bottom: .3rem; line-height: 1.25; }
pre { padding: .9rem 1rem; border-radius: .4rem; overflow-x: auto; line-height: 1.4; }
code, pre { font: .875em/1.45 ui-monospace, Menlo, Consolas, monospace; }
pre, :not(pre) > code { background: var(--shade) !important; }
:not(pre) > code { padding: .1em .35em; border-radius: .3rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid var(--line); padding: .35rem .7rem; text-align: left; vertical-align: top; }
img { max-width: 100%; background: #fff; border-radius: .4rem; }
@media (max-width: 60rem) {
  nav { position: static; width: auto; border: 0; border-bottom: 1px solid var(--line); }
  nav a { display: inline-block; }
  main { margin: 0; padding: 1rem; }
}
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<nav>{menu}</nav>
<main>
{body}
</main>
</body>
</html>
"""

if __name__ == "__main__":
    main()
