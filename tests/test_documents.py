"""What the documents say is so: links lead somewhere, commands and their options exist."""

import re
from pathlib import Path

import pytest
import typer

from distillkit.cli import app
from distillkit.registry import BUILT_IN, registry

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

MADE = ("cli.md", "results/")
"""What is made when the site is built."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http") and not target.startswith(MADE):
            assert (document.parent / target.partition("#")[0]).exists(), target


METHODS = tuple(name for name, made in registry().named("methods").items() if made.package == BUILT_IN)
"""Whose options the documents name: all of ours."""
HELPS = (
    (), *(("run", method) for method in METHODS), ("sample",),
    ("teachers", "train"), ("teachers", "convert"), ("students", "convert"),
    ("evaluate",), ("protocols", "pin"), ("reference", "make"),
    ("reference", "convert"), ("pairs", "make"), ("pairs", "verify"), ("compare",), ("bench",), ("export",), ("check",),
    ("cache",), ("teachers", "remove"), ("ema",),
)  # fmt: skip
"""Commands whose options the documents name."""

NO_OPTIONS = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Documents that name options of other tools, or former ones."""

OTHERS = {
    "--nproc_per_node",
    "--nproc",
    "--nnodes",
    "--rdzv_backend",
    "--rdzv_endpoint",
    "--rdzv_id",
    "--job-name",
    "--nodes",
    "--ntasks-per-node",
    "--gpus-per-node",
    "--cpus-per-task",
    "--time",
    "--requeue",
    "--open-mode",
    "--output",
    "--signal",
    "--json",
    "--rounds",
    "--peak-tflops",
    "--sort",
    "--trajectories-steps",
    "--source",
    "--dest",
    "--transform",
}
"""Options of torchrun, Slurm, tar, scripts, EDM's dataset_tool.py, and of the guide's own plugin."""


def test_every_option_in_the_documents_exists(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name not in NO_OPTIONS)
    text = text.replace("`--NAME-FIELD`", "")
    known = "".join(inside(*words, "--help").stdout for words in HELPS)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text)) - OTHERS
    assert len(options) > 10
    for option in options:
        assert re.search(rf"{option}(?![\w-])", known), option


COMMANDS = ("run", "sample", "evaluate", "compare", "bench", "export", "methods", "teachers", "students", "protocols",
            "check", "new-method", "pairs", "plugins", "reference", "cache", "ema")  # fmt: skip


def test_every_command_in_the_documents_exists():
    """`$ distillkit COMMAND SUB`: the command, and the subcommand of a group."""
    root = typer.main.get_command(app)
    context = root.make_context("distillkit", [], resilient_parsing=True)
    assert set(root.list_commands(context)) == set(COMMANDS)
    groups = {
        name: command.list_commands(context)
        for name in COMMANDS
        if hasattr(command := root.get_command(context, name), "list_commands")
    }
    seen = set()
    for path in DOCUMENTS:
        for line in re.findall(r"^\$ distillkit (.*)$", path.read_text(encoding="utf-8"), re.M):
            words = [word for word in line.partition("#")[0].split() if not word.startswith(("-", "./"))] or ["run"]
            assert words[0] in COMMANDS, line
            if words[0] in groups and words[0] != "run" and len(words) > 1:
                assert words[1] in groups[words[0]], line
            seen.add(words[0])
    assert seen >= {"run", "sample", "evaluate", "compare", "bench", "export"}


STRANGE = r"\b(told|made-up|rehears\w*|ruler|mend|mended|mending|lasting|lies in)\b"


def test_the_documents_use_the_terms_of_the_field():
    for document in DOCUMENTS:
        assert not re.findall(STRANGE, document.read_text(encoding="utf-8")), document


def test_nothing_in_the_documents_is_unfinished():
    for document in DOCUMENTS:
        assert not re.search(r"@@|TODO|FIXME", document.read_text(encoding="utf-8")), document
