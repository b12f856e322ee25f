"""Names out of files: text that people are shown and that is compared, never a path."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from distillkit.text import printable

LONGEST = 200


def plain_name(text: str) -> str:
    """A name that people are shown: some text in one line.

    Raises:
        ValueError: for nothing, or control characters.
    """
    if not text.strip():
        raise ValueError("must not be empty")
    if printable(text) != text or "\n" in text or "\t" in text:
        raise ValueError("must be one line without control characters")
    return text


def name_from(text: str) -> str:
    """A name made of any text, such as a folder's: one line, printable, of bounded length."""
    return printable(" ".join(text.split()))[:LONGEST].strip() or "unnamed"


Name = Annotated[str, Field(max_length=LONGEST), AfterValidator(plain_name)]
"""A name in a file. Where a file name is made of it, `files.slug` makes it."""
