"""`python -m benchmarks.tuning.presets SUITE`: write what the search chose into the presets of the methods.

An entry that is its method's own becomes the method's preset of the suite's teacher, in place; of an entry with
settings of its own (an ablation, another curriculum) what differs from that preset is printed for the suite's file.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.tuning.__main__ import RESULTS, read
from benchmarks.tuning.search import Line
from benchmarks.tuning.summary import chosen
from distillkit import Method, load_teacher
from distillkit.benchmark.suite import Suite, load_suite
from distillkit.data.pairs import PairsConfig
from distillkit.engine.config import TrainingConfig
from distillkit.jobs.recipe import recipe_of
from distillkit.jobs.unread import Reads
from distillkit.registry import Installed, registry
from distillkit.runs.config import StudentConfig, resolve

PARTS = ("settings", "training", "student", "pairs")


@dataclass(frozen=True)
class Values:
    """What a preset says, without what is so by default."""

    settings: dict[str, Any]
    training: dict[str, Any]
    student: dict[str, Any]
    pairs: dict[str, Any]
    unread: frozenset[str]
    """The method's settings that nothing was made of."""

    def beside(self, preset: Values) -> dict[str, dict[str, Any]]:
        """What differs from a preset, by part; the length of a training is the budget's."""
        found = {}
        for part in PARTS:
            mine, theirs = getattr(self, part), getattr(preset, part)
            names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name) and name != "duration"]
            if part == "settings":
                names = [name for name in names if name not in self.unread]
            if names:
                found[part] = {name: mine.get(name, "the default") for name in names}
        return found


def values_of(suite: Suite, entry: str, line: Line) -> Values:
    """What a training was made with, beside what the suite says for all of its entries."""
    found, method = line["config"], registry().find("methods", suite.method_of(entry), "distillkit methods")
    training = {name: value for name, value in found["training"].items() if name not in suite.training}
    unread = unread_in(found, method, suite)
    settings = {name: value for name, value in found["settings"].items() if name not in unread}
    return Values(
        _without_defaults(method.value.Config, settings),
        _without_defaults(TrainingConfig, training | {"duration": _images(line["images"])}),
        _without_defaults(StudentConfig, found["student"]),
        _without_defaults(PairsConfig, found["pairs"]),
        unread,
    )


def unread_in(found: Mapping[str, Any], method: Installed, suite: Suite) -> frozenset[str]:
    """Those of a training's settings of which its recipe makes nothing: what they were is no choice."""
    config, reads = resolve(method.value, options={"teacher": suite.teacher, "settings": found["settings"]})[0], Reads()
    recipe_of(config, method, load_teacher(suite.teacher), reads)
    return frozenset(reads.unread)


def _without_defaults(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    as_json = {name: json.dumps(value, default=str) for name, value in defaults.items()}
    return {name: value for name, value in values.items() if as_json.get(name) != json.dumps(value, default=str)}


def _images(count: int) -> str:
    """With two digits, as people write it."""
    rounded = float(f"{count:.2g}")
    return f"{rounded / 1e6:g}M" if rounded >= 1e6 else f"{rounded / 1e3:g}k"


def source_of(suite: Suite, values: Values) -> str:
    """The preset as Python."""
    parts = [(part, getattr(values, part)) for part in PARTS]
    lines = [
        f"{part}={{{', '.join(f'{_text(k)}: {_text(v)}' for k, v in found.items())}}},"
        for part, found in parts
        if found
    ]
    tuned = f"tuned here at {suite.budget:,} forward-equivalents: benchmarks/results/{suite.name}/tuning.md"
    text = "".join([f'Preset(name="{suite.name}", teachers=("{suite.teacher}",),', *lines, f'source="{tuned}",)'])
    command = [sys.executable, "-m", "ruff", "format", "--line-length=116", "-"]
    formatted = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return textwrap.indent(formatted, "    ").strip()


def _text(value: Any) -> str:
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        digits, _, power = f"{value:e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return json.dumps(value) if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)


def replace(path: Path, suite: Suite, text: str) -> bool:
    """Put the preset of the suite in a file in the place of the former; whether there was one."""
    lines = path.read_text().splitlines(keepends=True)
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Preset":
            names = [k.value.value for k in node.keywords if k.arg == "name" and isinstance(k.value, ast.Constant)]
            if names == [suite.name] and node.end_lineno and node.end_col_offset:
                before = "".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
                after = lines[node.end_lineno - 1][node.end_col_offset :] + "".join(lines[node.end_lineno :])
                path.write_text(before + text + after)
                return True
    return False


def presets_file(method: type[Method]) -> Path:
    """Where a method's presets are written: the file of the name that its module imports them by."""
    module = sys.modules[method.__module__]
    tree = ast.parse(Path(str(module.__file__)).read_text())
    imports = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    name = next(name for name in imports if name.endswith("presets"))
    return Path(str(sys.modules[name].__file__))


def choices(suite: Suite, lines: Sequence[Line]) -> Iterator[tuple[str, Line]]:
    """Every searched entry of the suite with its choice."""
    for entry in suite.methods:
        line = chosen([line for line in lines if line["entry"] == entry])
        if line is not None:
            yield entry, line


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.tuning.presets", description=__doc__)
    parser.add_argument("suite", help="its name")
    parser.add_argument("--log", type=Path, help="benchmarks/results/SUITE/tuning.jsonl by default")
    options = parser.parse_args()
    suite = load_suite(options.suite)
    found = dict(choices(suite, read(options.log or RESULTS / suite.name / "tuning.jsonl")))
    values = {entry: values_of(suite, entry, line) for entry, line in found.items()}
    for entry, its in values.items():
        own = suite.method_of(entry)
        if entry != own:
            print(f"{entry}, beside {own}'s preset: {its.beside(values[own])}")
            continue
        path = presets_file(registry().method(own))
        done = replace(path, suite, source_of(suite, its))
        print(f"{entry}: number {found[entry]['number']} {'in' if done else 'has no preset to replace in'} {path}")
    print("what is printed beside presets belongs into the suite's file")


if __name__ == "__main__":
    main()
