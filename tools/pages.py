"""Tables in the documentation that a program writes."""

from __future__ import annotations

from pathlib import Path

from distillkit.files import write_bytes

END = "<!-- end -->\n"


def begin(tool: str) -> str:
    """The line before what the tool writes; `END` is the line after it."""
    return f"<!-- begin: tools/{tool}.py -->\n"


def between(page: Path, tool: str) -> str:
    """What a page has of a tool's."""
    return page.read_text(encoding="utf-8").partition(begin(tool))[2].partition(END)[0]


def rewrite(page: Path, tool: str, text: str) -> None:
    """Put a text in the place of what a page has of a tool's.

    Raises:
        ValueError: for a page that has no place for it.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(begin(tool))
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page.name} has no place for what tools/{tool}.py writes")
    write_bytes(page, f"{before}{start}{text}{end}{after}".encode())
    print(f"written: {page}")
