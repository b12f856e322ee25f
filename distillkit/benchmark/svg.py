"""SVG that fits any width: places in percent, letters in pixels, so text is as large on a phone as on a wall.

A plot is an <svg> without a view box. Lines and bands lie in a nested one that is stretched (its strokes are not);
points and letters are placed by percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import escape

from distillkit.benchmark.axes import Axis

LETTER = 7.3
"""Pixels of a letter of the labels, on average, for the room that they need."""
LINE = 16.0
"""Pixels between labels."""

Place = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """The frame of a chart.

    Args:
        x, y: the axes; y grows upwards.
        height: of the plot's inside, in pixels; its width is what the page has.
        left, right: pixels of room beside it, for labels.
    """

    x: Axis
    y: Axis
    height: int = 330
    left: int = 48
    right: int = 16

    def across(self, value: float) -> str:
        return f"{100 * self.x.share(value):.2f}%"

    def down(self, value: float) -> float:
        """Pixels from the top."""
        return self.height * (1 - self.y.share(value))

    def line(self, points: Sequence[Place], style: str = "") -> str:
        """A line through (x, y), cut at the plot's edges."""
        return f'<polyline points="{self._points(points)}" vector-effect="non-scaling-stroke" {style}/>'

    def band(self, upper: Sequence[Place], lower: Sequence[Place], kind: str) -> str:
        return f'<polygon class="band {kind}" points="{self._points([*upper, *reversed(lower)])}"/>'

    def dot(self, x: float, y: float, style: str = "", radius: float = 4.5) -> str:
        return f'<circle cx="{self.across(x)}" cy="{self.down(y):.1f}" r="{radius}" {style}/>'

    def text(self, x: float, y: float, words: str, dx: float = 0, dy: float = 0, style: str = "") -> str:
        place = f'x="{self.across(x)}" y="{self.down(y):.1f}" dx="{dx:g}" dy="{dy:g}"'
        return f"<text {place} {style}>{escape(words)}</text>"

    def inside(self, shapes: Iterable[str]) -> str:
        """Lines and bands, cut at the edges."""
        return (
            '<svg class="area" viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" '
            f'height="{self.height}">{"".join(shapes)}</svg>'
        )

    def labels(self, at: float, named: Sequence[tuple[float, str, str]], *, before: bool = False) -> str:
        """Labels of one column, one below the other, each with a line to what it names.

        Args:
            at: x of the column.
            named: (y, words, class).
            before: left of the column instead of right.
        """
        side, anchor = (-1, "end") if before else (1, "start")
        placed = spread([self.down(y) for y, _, _ in named], LINE, -2.0, self.height + 2.0)
        shapes = [
            f'<g class="{kind}"><path d="M{side * 6},{self.down(y):.1f} L{side * 16},{place:.1f}"/>'
            f'<text x="{side * 20}" y="{place:.1f}" dy=".35em" text-anchor="{anchor}">{escape(words)}</text></g>'
            for (y, words, kind), place in zip(named, placed, strict=True)
        ]
        return f'<svg class="labels" x="{self.across(at)}" overflow="visible">{"".join(shapes)}</svg>'

    def frame(
        self, title: str, shapes: Iterable[str], x_ticks: Iterable[tuple[float, str]], names: tuple[str, str],
        beyond: Sequence[tuple[float, str, str]] = (),
    ) -> str:  # fmt: skip
        """The whole chart: grid, ticks, what is in it, and the axes' names (x, y) around it.

        Args:
            title: what the picture shows, for those who cannot see it.
            x_ticks: (value, words).
            beyond: (value, words, class) of what lies above the axis, which is listed at its upper edge.
        """
        grid = [
            f'<line class="grid" x1="0" x2="100%" y1="{self.down(y):.1f}" y2="{self.down(y):.1f}"/>'
            f'<text class="tick" x="-{self.left}" y="{self.down(y):.1f}" dy=".35em">{y:g}</text>'
            for y in self.y.ticks()
        ]
        foot = self.height
        ticks = [
            f'<line class="grid" x1="{self.across(x)}" x2="{self.across(x)}" y1="{foot}" y2="{foot + 5}"/>'
            f'<text class="tick" x="{self.across(x)}" y="{foot + 20}" text-anchor="middle">{words}</text>'
            for x, words in x_ticks
        ]
        return (
            f'<div class="axis">{escape(names[1])}</div>{_beyond(beyond)}'
            f'<div class="plot" style="padding-left:{self.left}px;padding-right:{self.right}px">'
            f'<svg role="img" aria-label="{escape(title)}" width="100%" height="{self.height + 26}">'
            f"{''.join([*grid, *ticks, *shapes])}</svg></div>"
            f'<div class="axis below">{escape(names[0])}</div>'
        )

    def _points(self, points: Sequence[Place]) -> str:
        return " ".join(f"{100 * self.x.share(x):.2f},{100 * (1 - self.y.share(y)):.2f}" for x, y in points)


def _beyond(named: Sequence[tuple[float, str, str]]) -> str:
    items = ", ".join(
        f'<span class="{kind}"><span class="dot"></span>{escape(words)} {value:.3g}</span>'
        for value, words, kind in sorted(named)
    )
    return f'<div class="axis">▲ above the axis: {items}</div>' if items else ""


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to those wanted as a gap between them allows, in the same order, from `low` to `high` where there
    is room."""
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    placed = [0.0] * len(wanted)
    floor = low
    for n in order:
        placed[n] = floor = max(wanted[n], floor)
        floor += gap
    ceiling = high
    for n in reversed(order):
        placed[n] = ceiling = min(placed[n], ceiling)
        ceiling -= gap
    return placed


def room(names: Iterable[str]) -> int:
    """Pixels that the longest of some labels needs."""
    return round(max((len(name) for name in names), default=0) * LETTER) + 24
