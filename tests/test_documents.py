"""What the documents say is so: links lead somewhere, commands and their options exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http") and target != "cli.md":  # made when the site is built
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_every_option_in_the_documents_exists(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name != "CONTRIBUTING.md")
    known = "".join(
        inside(*words, "--help").stdout
        for words in (
            ["run", "dmd"],
            ["run", "dmd2"],
            ["run", "consistency"],
            ["run", "progressive"],
            ["sample"],
            ["teachers", "train"],
            ["teachers", "convert"],
            ["evaluate"],
            ["protocols", "pin"],
            ["reference", "make"],
            ["compare"],
            ["bench"],
            ["export"],
            ["check"],
            [],
        )
    )
    others = {
        "--nproc_per_node",
        "--nproc",
        "--signal",
        "--json",
        "--rounds",
        "--peak-tflops",
    }  # torchrun, Slurm, scripts
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - others
    assert len(options) > 10
    for option in options:
        assert option in known, option


def test_nothing_in_the_documents_is_unfinished():
    for document in DOCUMENTS:
        assert not re.search(r"@@|TODO|FIXME", document.read_text(encoding="utf-8")), document
