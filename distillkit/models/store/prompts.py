"""The prompts that a pipeline's folder brings: `prompts.txt` beside its components, one prompt a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distillkit.contracts.text import PromptList
from distillkit.files import write_bytes
from distillkit.reading import Missing, read_text

FILE, MOST_BYTES = "prompts.txt", 2**20


def write_prompts(folder: Path, texts: Sequence[str]) -> None:
    """Write a list of prompts beside a pipeline, if it is short and every prompt is a line; else remove what was there,
    which are another pipeline's."""
    lines: list[str] = []
    size = 0
    for text in texts:
        size += len(text.encode()) + 1
        if size > MOST_BYTES or text != text.strip() or not text or len(text.splitlines()) != 1:
            (folder / FILE).unlink(missing_ok=True)
            return
        lines.append(text)
    write_bytes(folder / FILE, "".join(f"{line}\n" for line in lines).encode())


def own_prompts(folder: Path) -> PromptList | None:
    """The prompts that a folder brings, None where it brings none, or an empty list.

    Raises:
        DistillkitError: when the file is larger than prompts are written, or is not UTF-8.
    """
    path = folder / FILE
    try:
        texts = [line.strip() for line in read_text(path, MOST_BYTES).splitlines()]
    except Missing:
        return None
    kept = [text for text in texts if text]
    return PromptList.of(kept, f"the prompts in {path}") if kept else None
