"""`python -m benchmarks.grid_picture RESULTS OUTPUT.png`: a benchmark's generators side by side, with their figures."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.image
from matplotlib.figure import Figure

from distillkit.benchmark.leaderboard import leaderboard
from distillkit.benchmark.results import read_results


def main(folder: Path, output: Path) -> None:
    results = read_results(folder)
    board = leaderboard(folder, results)
    values = {row.name: row.mean for row in board.students}
    teacher = min(board.teachers, key=lambda row: row.mean)
    shown = {name: matplotlib.image.imread(folder / path) for name, path in results.grid.items() if ", NFE" not in name}
    rows_of_samples = next(iter(shown.values())).shape[1] > 2 * next(iter(shown.values())).shape[0]
    columns = 1 if rows_of_samples else 5
    rows = -(-len(shown) // columns)
    size = (7.2, 0.62 * rows) if rows_of_samples else (2.0 * columns, 2.25 * rows)
    figure = Figure(figsize=size, layout="constrained")
    for number, (name, picture) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(picture, cmap="gray", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        figure_of = values.get(name)
        text = f"{name}\n{figure_of:.3g}" if figure_of is not None else f"teacher\n{teacher.mean:.2g} at best"
        if rows_of_samples:
            axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
        else:
            axes.set_title(text, fontsize=9)
    figure.savefig(output, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
