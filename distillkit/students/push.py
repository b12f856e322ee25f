"""Uploading an export to the Hugging Face hub: nothing from outside of its folder, and never without an end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from distillkit.errors import DistillkitError
from distillkit.text import redacted

ANSWER_SECONDS = 60.0
SLOWEST = 50_000
"""Bytes a second below which an upload counts as stalled."""

Made = TypeVar("Made")


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder to the Hugging Face hub; returns its address. The same call can be repeated after a failure.

    Raises:
        DistillkitError: when a file of the folder is a link out of it, or the hub refuses, cannot be reached or does
            not answer; what it said, and what to do.
    """
    from huggingface_hub import HfApi

    limit = ANSWER_SECONDS + own_bytes(folder) / SLOWEST
    try:
        api = HfApi()
        created: Any = within(ANSWER_SECONDS, lambda: api.create_repo(repository, private=private, exist_ok=True))
        within(
            limit,
            lambda: api.upload_folder(
                repo_id=created.repo_id, folder_path=folder, commit_message="A student, exported by distillkit"
            ),
        )
        return redacted(str(created))
    except Exception as error:  # the hub's client raises many kinds
        reason = redacted(str(error).partition("\n")[0])
        raise DistillkitError(
            f"cannot push to {repository}: {type(error).__name__}: {reason}\n"
            f"The export itself is in {folder}, and the same command uploads it again. Log in with `hf auth login` or "
            "set HF_TOKEN, and check that you may write there."
        ) from error


def own_bytes(folder: Path) -> int:
    """The size of a folder's files.

    Raises:
        DistillkitError: where one of them is a link out of the folder, which would publish what lies elsewhere.
    """
    total, root = 0, folder.resolve()
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(root):
            raise DistillkitError(f"{path} is a link out of the folder; nothing was uploaded. Replace it by a file")
        total += path.stat().st_size if path.is_file() else 0
    return total


def within(seconds: float, call: Callable[[], Made]) -> Made:
    """The result of a call that must come within a time; the hub's client waits for a silent server without an end.

    Raises:
        TimeoutError: when it does not come. The call goes on in the background, and ends with the process.
    """
    outcome: list[Made] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # handed to the caller
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"the hub did not answer within {seconds:,.0f} s")
    return outcome[0]
