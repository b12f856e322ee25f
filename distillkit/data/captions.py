"""Texts of image files: a .txt beside each, or a metadata.jsonl as Hugging Face's image folders have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from distillkit.data.labels import shown
from distillkit.errors import DistillkitError
from distillkit.reading import parse_json

LISTED = "metadata.jsonl"
TEXT_KEYS = ("text", "caption", "prompt")
"""The keys of a text in a line of metadata.jsonl, the first that is there."""


def captions_of(names: Sequence[str], described: Callable[[str], bytes | None], where: str) -> list[str] | None:
    """The text of every image, None where there are no texts.

    Args:
        names: of the images, which have "/" between folders.
        described: the content of the file of a name, None where there is none.
        where: the names are, for messages.

    Raises:
        DistillkitError: for a damaged file, or an image without a text where others have one.
    """
    if not names:
        return None
    tops = {name.partition("/")[0] for name in names}
    around = f"{next(iter(tops))}/" if len(tops) == 1 and all("/" in name for name in names) else ""
    for folder in dict.fromkeys(("", around)):
        if (text := described(folder + LISTED)) is not None:
            return _listed(text, [name.removeprefix(folder) for name in names], f"{where}{folder}{LISTED}")
    if described(_beside(names[0])) is None:
        return None
    found = []
    for name in names:
        text = described(_beside(name))
        if text is None:
            raise DistillkitError(f"{where}{shown(_beside(name))} is missing: every image needs its text, or none")
        found.append(_decoded(text, f"{where}{shown(_beside(name))}").strip())
    return found


def _beside(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _listed(text: bytes, names: Sequence[str], where: str) -> list[str]:
    """Texts by the lines of metadata.jsonl, {"file_name": "a.png", "text": "..."}."""
    by_name: dict[str, str] = {}
    for number, line in enumerate(_decoded(text, where).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line.encode(), f"{where}:{number}", values=10_000)
        except ValueError as error:
            raise DistillkitError(f"{where}:{number} is no JSON: {str(error)[:200]}") from error
        name = entry.get("file_name") if isinstance(entry, dict) else None
        caption = next((entry[key] for key in TEXT_KEYS if key in entry), None) if isinstance(name, str) else None
        if not isinstance(name, str) or not isinstance(caption, str):
            raise DistillkitError(
                f'{where}:{number} is no line such as {{"file_name": "a.png", "text": "a red circle"}}; the text may '
                f"also be called {' or '.join(TEXT_KEYS[1:])}"
            )
        by_name[name] = caption.strip()
    if missing := next((name for name in names if name not in by_name), None):
        raise DistillkitError(f"{where} has no text for {shown(missing)}: add it, or remove the image")
    return [by_name[name] for name in names]


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DistillkitError(f"{where} is no text in UTF-8") from error
