"""The report: one HTML file that needs no network, the same in Markdown, both from results.json and the records."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from distillkit.benchmark import charts
from distillkit.benchmark.leaderboard import Difference, Leaderboard, Standing
from distillkit.benchmark.results import Results
from distillkit.files import write_bytes
from distillkit.progress import clock

HTML, MARKDOWN = "report.html", "report.md"


def write_report(folder: Path, results: Results, board: Leaderboard) -> list[Path]:
    """Write report.html and report.md beside the results."""
    written = []
    for name, text in pages(folder, results, board).items():
        write_bytes(folder / name, text.encode())
        written.append(folder / name)
    return written


def pages(folder: Path, results: Results, board: Leaderboard) -> dict[str, str]:
    """The report's files by name: their text."""
    loader, escape = PackageLoader("distillkit.benchmark"), select_autoescape(["html.j2"])
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=escape)
    values = _values(folder, results, board)
    return {name: templates.get_template(f"{name}.j2").render(**values) for name in (HTML, MARKDOWN)}


def _values(folder: Path, results: Results, board: Leaderboard) -> dict[str, Any]:
    """Everything that the templates show."""
    first = next(iter(board.records.values()))
    done = [run for run in results.runs if run.state == "done"]
    return {
        "suite": results.suite,
        "board": board,
        "created": results.created.replace("T", " "),
        "seeds": f"{results.suite.seeds} training {'seed' if results.suite.seeds == 1 else 'seeds'}",
        "findings": list(findings(results, board)),
        "ablations": board.ablations(results),
        "errors_are": errors_are(results),
        "first_runs": [run for entry in results.suite.methods for run in done if (run.entry, run.seed) == (entry, 0)],
        "cost_chart": Markup(charts.cost_curves(results, board)),
        "time_chart": Markup(charts.sampling_time(board)),
        "grid": {name: _inline(folder / path) for name, path in results.grid.items()},
        "tiles": any(_is_tile(folder / path) for path in results.grid.values()),
        "corrected": any(row.corrected is not None for table in board.tables.values() for row in table),
        "command": results.environment.get("command", ""),
        "hardware": hardware(results.environment),
        "version": results.environment.get("versions", {}).get("distillkit", ""),
        "suite_yaml": _yaml(results.suite.model_dump(mode="json", exclude_defaults=True)),
        "protocol_yaml": _yaml(first.protocol.model_dump(mode="json")),
        "yaml": _yaml,
        "figure": lambda value: "" if value is None else f"{value:.5f}",
        "error": lambda value: "" if value is None else f"{value:.2g}",
        "paired": paired,
        "count": lambda value: f"{value:,.0f}" if value else "",
        "clock": clock,
    }


def findings(results: Results, board: Leaderboard) -> Iterator[str]:
    """What the tables say, in words, with no more certainty than there is."""
    for nfe, rows in board.tables.items():
        students = [row for row in rows if not row.is_teacher]
        best, others = students[0], students[1:]
        text = f"At {nfe} evaluation{'' if nfe == 1 else 's'}, {best.name} is best with {_with_error(best)}"
        distances = {row.name: row.to_best for row in others if row.to_best}
        level = [name for name, by in distances.items() if by.error is not None and not by.is_significant]
        behind = [name for name, by in distances.items() if by.is_significant]
        unsure = [name for name, by in distances.items() if by.error is None]
        if level:
            text += f"; {_listed(level)} {_are(level)} not significantly different (< 2 SE)"
        if behind:
            text += f"; {_listed(behind)} {_are(behind)} significantly worse (> 2 SE)"
        if unsure:
            text += f"; {_listed(unsure)} {_are(unsure)} worse, by a difference whose standard error is not known"
        yield text + "."
    teacher = min(board.teachers, key=lambda row: row.mean, default=None)
    if teacher and teacher.nfe > 1:
        top = board.students[0]
        text = f"The teacher is best with {teacher.nfe:g} evaluations: {_with_error(teacher)}"
        if top.images_per_second and teacher.images_per_second:
            faster = top.images_per_second / teacher.images_per_second
            text += f"; the best student, {top.name}, samples {faster:.0f} times as fast"
        yield f"{text}."
    for row, whole, apart in board.ablations(results):
        certainty = f" ({apart.standard_errors:.1f} SE)" if apart.standard_errors else ""
        verdict = f"is {'worse' if apart.value > 0 else 'better'} than"
        if apart.error is not None and not apart.is_significant:
            verdict = "is not significantly different (< 2 SE) from"
        yield f"{row.name} {verdict} {whole.name}: {apart.value:+.5f}{certainty}."
    for run in board.failed:
        yield f"{run.entry}, seed {run.seed}, failed: {run.reason.splitlines()[0]}"


def errors_are(results: Results) -> str:
    """What the standard errors hold."""
    text = "± is a standard error: of the evaluation's samples by a delete-a-group jackknife"
    if results.suite.seeds > 1:
        text += f", and of the {results.suite.seeds} training seeds"
    else:
        text += "; with one training seed the spread between trainings is not known"
    return (
        f"{text}. Differences to the best are paired: all generators start from the same noise. Bias-corrected is the "
        "value without the estimator's bias of order 1/N. Cost is in forward-equivalents (an evaluation with gradient "
        "counts three), the teacher's passes for the data and auxiliary networks included. Time is wall time, "
        "evaluations included."
    )


def hardware(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    where = environment.get("accelerator") or f"{environment.get('cpus')} cores of {environment.get('processor')}"
    return f"Measured on {where}, {environment.get('threads')} threads; {versions}; {environment.get('platform')}."


def paired(apart: Difference | None) -> str:
    """'+0.00012 ± 0.0001', or 'best'."""
    if apart is None:
        return "best"
    return f"{apart.value:+.5f}" + (f" ± {apart.error:.2g}" if apart.error is not None else "")


def _with_error(row: Standing) -> str:
    return f"{row.mean:.5f}" + (f" ± {row.error:.2g}" if row.error is not None else "")


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is_tile(picture: Path) -> bool:
    """Whether it is one picture of a density, not a row of samples."""
    with Image.open(picture) as image:
        return image.width == image.height


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
