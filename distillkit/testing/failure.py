"""How a check says what it found."""

from __future__ import annotations


class CheckFailure(AssertionError):
    """What a method breaks, why that matters, and how to correct it."""

    def __init__(self, what: str, why: str, how: str) -> None:
        super().__init__(f"{what}\n  why it matters: {why}\n  how to correct it: {how}")
        self.what, self.why, self.how = what, why, how
