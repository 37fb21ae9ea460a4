"""A few lines of SVG: shapes whose colours are the page's classes, and axes with ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

GLYPH = 6.7  # width of a character at 12 px, on the safe side


class Svg:
    """A drawing of a given width that grows downwards."""

    def __init__(self, width: float, height: float = 0.0, label: str = ""):
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}" '
            f'width="{self.width:g}" height="{self.height:g}">{"".join(self.parts)}</svg>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points: list[tuple[float, float]], kind: str) -> None:
        steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="M{steps}"/>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}">'
            f"<title>{escape(tip)}</title></rect>"
        )

    def dot(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        self.parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{escape(tip)}</title></circle>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "label", anchor: str = "start", turn: float = 0) -> None:
        rotate = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{rotate}>{escape(text)}</text>'
        )


class Scale:
    """Values to pixels, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        change = math.log if self.log else float
        value = min(max(value, self.low), self.high)
        share = (change(value) - change(self.low)) / (change(self.high) - change(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the scale, its ends included where they are round."""
        if not self.log:
            step = _round_up((self.high - self.low) / max(count, 1))
            first = math.ceil(self.low / step - 1e-9)
            return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            values = [step * 10.0**e for e in exponents for step in steps]
            inside = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
            if len(inside) <= count:
                break
        return inside


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)


def short(value: float) -> str:
    """A tick's label."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def fits(text: str, width: float) -> bool:
    return len(text) * GLYPH + 8 <= width


def column(texts: Iterable[str], most: float) -> float:
    """The width of a column of labels, at most `most`."""
    return min(1.1 * GLYPH * max(map(len, texts), default=0) + 16, most)


def clipped(text: str, width: float) -> str:
    """The text, or as much of its beginning as fits."""
    letters = max(int((width - 8) / (1.1 * GLYPH)), 2)
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
