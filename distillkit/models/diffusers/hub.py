"""Repositories of the Hugging Face hub as folders in its own cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from distillkit.downloads import DownloadNeeded, only_planned
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import disk_bytes
from distillkit.models.diffusers.folder import COMPONENTS, CONFIGURATION, DESCRIPTIONS
from distillkit.models.diffusers.weights import WHOLE, Found, chosen
from distillkit.reading import Unreadable, read_mapping, read_text
from distillkit.text import redacted

PREFIX = "hf:"
PARTS = (*(f"{name}/" for name in COMPONENTS), "vae/", "text_encoder/", "text_encoder_2/", "text_encoder_3/")
"""Folders of weights."""
VOCABULARIES = [
    f"tokenizer{number}/{ending}" for number in ("", "_2", "_3") for ending in ("*.json", "*.txt", "*.model")
]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILE = re.compile(r"(?:[A-Za-z0-9_][\w .+=,()-]{0,199}/){0,20}[A-Za-z0-9_][\w .+=,()-]{0,199}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}")


def snapshot(
    name: str, *, weights: bool = True, files: Collection[str] = (), dtype: torch.dtype = torch.float32
) -> Path:
    """The folder of `hf:ORG/REPO[@REVISION]`, downloaded where it is not in the hub's cache.

    Args:
        weights: with its weights; otherwise the few kilobytes that describe it.
        files: those that are needed beside these few, where they are known.
        dtype: in which the weights of its network and text encoders are used, where that is to be found out.

    Raises:
        UsageError: for a malformed name.
        DistillkitError: when they are not in the cache and cannot be had.
    """
    repository, revision = parts(name)
    if cached(name) is None and only_planned(name):
        raise DownloadNeeded(f"what {name} is made of is known only when it has been downloaded")

    def wanted() -> list[str]:
        return list(files) if files or not weights else _weights_of(repository, revision, dtype=dtype)

    return _download(name, lambda: [*CONFIGURATION, *wanted()])


def files_of(name: str, files: Sequence[str], others: Sequence[str] = ()) -> Path:
    """The folder of `hf:ORG/REPO[@REVISION]` with one variant of the weights in it and these files (shell patterns).

    Args:
        others: names of weights in another format, the first of which is taken where there are no others.

    Raises:
        UsageError: for a malformed name.
        DistillkitError: when they are not in the cache and cannot be had.
    """
    return _download(name, lambda: [*files, *_weights_of(*parts(name), above=("",), others=others)])


def file(name: str) -> Path:
    """The file of `hf:ORG/REPO/PATH/TO/FILE[@REVISION]`, downloaded where it is not in the hub's cache.

    Raises:
        UsageError: for a malformed name.
        DistillkitError: when it is not in the cache and cannot be had.
    """
    from huggingface_hub import hf_hub_download

    repository, path, revision = parts_of_file(name)
    if only_planned(name):
        raise DownloadNeeded(f"what {name} holds is known only when it has been downloaded")
    try:
        return Path(hf_hub_download(repository, path, revision=revision))
    except Exception as error:  # the hub's client raises many kinds
        raise _not_to_be_had(name, error) from error


def _download(name: str, patterns: Callable[[], list[str]]) -> Path:
    from huggingface_hub import snapshot_download

    repository, revision = parts(name)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns()))
    except Exception as error:  # the hub's client raises many kinds
        raise _not_to_be_had(name, error) from error


def _not_to_be_had(name: str, error: Exception) -> DistillkitError:
    reason = redacted(str(error).partition("\n")[0])
    return DistillkitError(
        f"{name} is not in the hub's cache and cannot be had ({type(error).__name__}: {reason}). Check the name, "
        "HF_TOKEN for a private repository, and HF_HUB_OFFLINE; or give what was downloaded by its path."
    )


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
    return folder if _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    own = (folder / "model.safetensors").is_file()
    return own or any(_listed(place) for place in (folder, *(folder / name for name in COMPONENTS)))


@dataclass(frozen=True)
class Snapshot:
    """A model in the hub's cache that may be a teacher.

    Args:
        name: `hf:ORG/REPO`, with `@REVISION` where it is not the main one.
        kind: class of its pipeline or network; "teacher" for a teacher folder of distillkit's.
        bytes: of its files. licence: as its card says, "" where that is not there.
    """

    name: str
    folder: Path
    kind: str
    bytes: int
    licence: str


def snapshots() -> list[Snapshot]:
    """What lies in the hub's cache with its weights and is a model of diffusers or a teacher folder, by name. The cache
    is other programs' too, and is only read."""
    from huggingface_hub import constants

    found = []
    for place in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/snapshots/*")):
        repository = place.parents[1]
        name = f"{PREFIX}{repository.name.removeprefix('models--').replace('--', '/', 1)}"
        references = {path.read_text()[:40]: path.name for path in (repository / "refs").glob("*") if path.is_file()}
        revision = references.get(place.name, place.name)
        with suppress(OSError, UsageError):
            parts(name)
            if (kind := _kind_of(place)) and _has_weights(place):
                whole = name if revision == "main" else f"{name}@{revision}"
                found.append(Snapshot(whole, place, kind, disk_bytes(place), _licence_of(place)))
    return found


def _kind_of(folder: Path) -> str:
    """The class of a model of diffusers; "" for anything else."""
    if (folder / "teacher.json").is_file():
        return "teacher"
    for description in DESCRIPTIONS:
        with suppress(Unreadable):
            kind = read_mapping(folder / description).get("_class_name")
            if isinstance(kind, str):
                return kind[:80]
    return ""


def _licence_of(folder: Path) -> str:
    """What the head of a repository's card says."""
    try:
        head = read_text(folder / "README.md", 2**20).split("---")[1]
    except (Unreadable, IndexError):
        return ""
    found = re.search(r"^license:\s*(\S+)", head, re.MULTILINE)
    return found[1][:80] if found else ""


def _listed(folder: Path) -> Found | None:
    return chosen([place.name for place in folder.iterdir()]) if folder.is_dir() else None


def _weights_of(
    repository: str,
    revision: str | None,
    above: Sequence[str] = ("", *PARTS),
    dtype: torch.dtype = torch.float32,
    others: Sequence[str] = (),
) -> list[str]:
    """What else a teacher needs of a repository: vocabularies, and one variant of the weights of every part.

    Args:
        above: the folders of weights.
        dtype: in which they are used; the autoencoder's are in float32.
        others: names of weights in another format, the first of which is taken where there are no others.
    """
    from huggingface_hub import HfApi

    patterns = ["model.safetensors", *VOCABULARIES]
    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except Exception:  # without the network, what is in the cache will do; what else is wrong the download says
        return [*patterns, *(f"{folder}{name}" for folder in above for name in (*WHOLE, *others))]
    for folder in above:
        beside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
        own = torch.float32 if folder == "vae/" else dtype
        if found := chosen([name for name in beside if "/" not in name], own):
            patterns += [folder + name for name in (*found.files, *found.patterns)]
        elif other := next((name for name in others if name in beside), None):
            patterns.append(folder + other)
    return patterns


def parts(name: str) -> tuple[str, str | None]:
    """("ORG/REPO", revision or None) of `hf:ORG/REPO[@REVISION]`.

    Raises:
        UsageError: for another form.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not _REPOSITORY.fullmatch(repository) or ".." in name or not _REVISION.fullmatch(revision or "main"):
        raise UsageError(f"{name}: write it as hf:ORG/REPO or hf:ORG/REPO@REVISION")
    return repository, revision or None


def parts_of_file(name: str) -> tuple[str, str, str | None]:
    """("ORG/REPO", "PATH/TO/FILE", revision or None) of `hf:ORG/REPO/PATH/TO/FILE[@REVISION]`.

    Raises:
        UsageError: for another form.
    """
    whole, _, revision = name.removeprefix(PREFIX).partition("@")
    organisation, repository, path = (*whole.split("/", 2), "", "")[:3]
    sound = _REPOSITORY.fullmatch(f"{organisation}/{repository}") and _FILE.fullmatch(path)
    if not sound or ".." in name or not _REVISION.fullmatch(revision or "main"):
        raise UsageError(f"{name}: write a file of the hub as hf:ORG/REPO/FILE or hf:ORG/REPO/FILE@REVISION")
    return f"{organisation}/{repository}", path, revision or None


def is_file(name: str) -> bool:
    """Whether a name has the form of a file of the hub, not of a repository."""
    return name.startswith(PREFIX) and name.partition("@")[0].count("/") > 1
