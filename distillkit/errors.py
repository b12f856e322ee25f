"""Errors that a user can cause: one message that says what was wrong, where, and what to do."""

from __future__ import annotations


class DistillkitError(Exception):
    """Something failed that was asked for rightly. Exit code 1."""

    exit_code = 1


class UsageError(DistillkitError):
    """Something was asked for wrongly: an unknown name, a bad value, a folder in use. Exit code 2."""

    exit_code = 2


class Interrupted(DistillkitError):
    """The job was stopped by a signal after saving its work. Exit code 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, on the CPU or a GPU: some kinds of it have no class of their own."""
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )
