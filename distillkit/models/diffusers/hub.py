"""Repositories of the Hugging Face hub as folders in its own cache."""

from __future__ import annotations

from pathlib import Path

from distillkit.errors import DistillkitError, UsageError
from distillkit.models.diffusers.folder import CONFIGURATION, WEIGHTS

PREFIX = "hf:"


def snapshot(name: str, *, weights: bool = True) -> Path:
    """The folder of `hf:ORG/REPO[@REVISION]`, downloaded where it is not in the hub's cache.

    Args:
        weights: with its weights; otherwise the few kilobytes that describe it.

    Raises:
        UsageError: for a malformed name.
        DistillkitError: when they are not in the cache and cannot be had.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parts(name)
    patterns = [*CONFIGURATION, *WEIGHTS] if weights else CONFIGURATION
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds
        raise DistillkitError(
            f"{name} is not in the hub's cache and cannot be had ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name, HF_TOKEN for a private repository, and HF_HUB_OFFLINE; or "
            "give a local folder."
        ) from error


def cached(name: str) -> Path | None:
    """The folder of a repository whose weights are in the hub's cache; None where they would be downloaded.

    Raises:
        UsageError: for a malformed name.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parts(name)
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # the hub's client raises many kinds
        return None
    return folder if any((folder / file).is_file() for file in WEIGHTS) else None


def parts(name: str) -> tuple[str, str | None]:
    """("ORG/REPO", revision or None) of `hf:ORG/REPO[@REVISION]`.

    Raises:
        UsageError: for another form.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UsageError(f"{name}: write it as hf:ORG/REPO or hf:ORG/REPO@REVISION")
    return repository, revision or None
