"""`python -m benchmarks.curves RUN OUTPUT.svg`: a run's logged values with the ranges that its method declares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from distillkit import Diagnostic, Run, load_teacher
from distillkit.registry import registry

WIDTH, HEIGHT, GAP, COLUMNS = 250, 130, 46, 3


def diagnostics_of(run: Path) -> dict[str, Diagnostic]:
    """What the run's method declares, by name."""
    config = Run(run).config
    method = registry().method(config.method)
    recipe = method().recipe(load_teacher(config.teacher), method.Config.model_validate(config.settings))
    return {d.name: d for part in recipe.parts for d in part.diagnostics}


def panel(name: str, points: list[tuple[float, float]], diagnostic: Diagnostic | None) -> str:
    """One chart as an SVG group: the curve, its first and last value, and the healthy range as a band."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    pad = (high - low or abs(high) or 1) * 0.08
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - xs[0]) / (xs[-1] - xs[0] or 1) * WIDTH, HEIGHT - (y - low) / (high - low) * HEIGHT

    band = ""
    if diagnostic:
        top, bottom = place(0, min(high, diagnostic.ok[1]))[1], place(0, max(low, diagnostic.ok[0]))[1]
        band = f'<rect y="{top:.1f}" width="{WIDTH}" height="{max(bottom - top, 0):.1f}" fill="#2a9d5c" opacity=".13"/>'
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    title = name.removeprefix("loss/") + (" (band: ok)" if diagnostic else "")
    return (
        f'{band}<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>'
        f'<text y="-7" font-weight="bold">{title}</text>'
        f'<text y="{HEIGHT + 14}">{xs[0] / 1000:,.0f}k images: {ys[0]:.4g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{xs[-1] / 1000:,.0f}k: {ys[-1]:.4g}</text>'
    )


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, with an evaluation's figure under its label."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [
        {**line, line["evaluation"]["label"]: line["evaluation"]["value"]} if "evaluation" in line else line
        for line in lines
    ]


def draw(run: Path) -> str:
    """All charts of a run as one SVG document."""
    entries = logged(run)
    diagnostics = diagnostics_of(run)
    figures = sorted({entry["evaluation"]["label"] for entry in entries if "evaluation" in entry})
    losses = sorted({key for entry in entries for key in entry if key.startswith("loss/")})
    names = [*figures, *losses, *diagnostics]
    rows = -(-len(names) // COLUMNS)
    groups = []
    for index, name in enumerate(names):
        points = [(entry["images"], entry[name]) for entry in entries if isinstance(entry.get(name), float)]
        x, y = GAP / 2 + index % COLUMNS * (WIDTH + GAP), GAP * 0.7 + index // COLUMNS * (HEIGHT + GAP)
        groups.append(f'<g transform="translate({x:.0f},{y:.0f})">{panel(name, points, diagnostics.get(name))}</g>')
    width, height = COLUMNS * (WIDTH + GAP), rows * (HEIGHT + GAP) + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>{"".join(groups)}</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(Path(sys.argv[1])))
