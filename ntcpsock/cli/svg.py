"""SVG, as much of it as our pictures need (pure)."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

FONT = "Helvetica, Arial, sans-serif"

Attribute = str | float | int | None


class Svg:
    """A picture that grows downwards: elements are added in the order in which they are painted."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._definitions: list[str] = []
        self._elements: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, *, title: str = "", **more: Attribute
    ) -> None:
        """`title`: what a pointer that rests on it shows."""
        attributes = _attributes(x=x, y=y, width=width, height=height, **more)
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._elements.append(f"<rect{attributes}>{inner}</rect>" if inner else f"<rect{attributes}/>")

    def line(self, x1: float, y1: float, x2: float, y2: float, **more: Attribute) -> None:
        self._elements.append(f"<line{_attributes(x1=x1, y1=y1, x2=x2, y2=y2, **more)}/>")

    def text(self, x: float, y: float, words: str, **more: Attribute) -> None:
        self._elements.append(f"<text{_attributes(x=x, y=y, **more)}>{escape(words)}</text>")

    def arrow_head(self, name: str, colour: str) -> None:
        """What `marker_end="url(#name)"` refers to."""
        self._definitions.append(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" markerHeight="11" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 1 L9 5 L0 9 z" fill="{colour}"/></marker>'
        )

    def render(self, width: float, height: float) -> str:
        """The file's text."""
        size = f'viewBox="0 0 {_number(width)} {_number(height)}" width="{_number(width)}" height="{_number(height)}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" font-size="13">',
                f"<title>{escape(self._title)}</title>",
                "<defs>",
                *self._definitions,
                "</defs>",
                f'<rect width="{_number(width)}" height="{_number(height)}" rx="10" fill="#ffffff"/>',
                *self._elements,
                "</svg>",
                "",
            ]
        )


def _attributes(**values: Attribute) -> str:
    parts = []
    for name, value in values.items():
        if value is not None:
            shown = _number(value) if isinstance(value, (int, float)) else value
            parts.append(f" {name.rstrip('_').replace('_', '-')}={quoteattr(shown)}")
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
