"""Text that came from anywhere, made fit for terminals and messages: no control characters, no passwords."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKUP = re.compile(r"([\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])|^[#>+=-])")
"""What Markdown makes something of. A "_" within a word is nothing, and addresses are full of them."""
_ENTITY = re.compile(r"&(?=#?\w+;)")
_CREDENTIALS = re.compile(r"(\w+://)[^/\s@]+@")
_QUERY = re.compile(r"(\w+://[^\s?#]*)[?#][^\s'\"]*")


def printable(text: str) -> str:
    """The text with what could steer a terminal spelt out: escapes, other control characters, changes of direction.
    Line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def markdown(text: str) -> str:
    """The text in one line, for Markdown that shows it as it is: no links, pictures, tables, headings or HTML."""
    line = _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))
    return _ENTITY.sub("&amp;", line).replace("<", "&lt;")


def redacted(text: str) -> str:
    """The text without what addresses in it may hide: user names, passwords, and queries, which hold tokens."""
    return _QUERY.sub(r"\1?***", _CREDENTIALS.sub(r"\1***@", text))


def short(value: object, most: int = 80) -> str:
    """A value from a file, for a message: what it is, and of plain values the beginning. Costs nothing, whatever it is:
    the text of a small nest of containers can be endless."""
    if isinstance(value, str):
        return repr(value) if len(value) <= most else f"{value[:most]!r}..."
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and value.bit_length() <= 256):
        return repr(value)
    return f"a {type(value).__name__}"
