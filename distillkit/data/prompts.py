"""Lists of prompts: read as streams, kept in memory where they are small and memory-mapped from the cache else."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from distillkit.contracts.text import PromptList, prompts_sha256
from distillkit.data.files import counted
from distillkit.data.labels import shown
from distillkit.data.prompt_files import Numbered, hub_texts, texts_in
from distillkit.errors import UsageError
from distillkit.files import cache_folder, note_use, remove_leftovers, replacing, sha256, slug, unwritable, write_json
from distillkit.locks import held, waiting
from distillkit.models.prompts import LONGEST
from distillkit.reading import Unreadable, read_mapping
from distillkit.text import printable

HUB = "hf:"
OPTION = "--prompts-column"

IN_MEMORY = 2**25
"""Bytes of texts that are kept in memory; more are kept in the cache."""
MOST = 10**8
"""Prompts of a list."""
FORMAT = 1
TEXTS, PLACES, DESCRIBED = "texts", "places.npy", "prompts.json"

Places = npt.NDArray[np.int64]


class PromptsConfig(BaseModel):
    """Prompts to train with, where the teacher makes pictures of text."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None, min_length=1, max_length=4096, json_schema_extra={"flag": "prompts"},
        description="file of prompts (one a line, csv, tsv, jsonl, json, parquet) or hf:ORG/NAME[:COLUMN]; those that "
        "come with the teacher or the captions of the data if none",
    )  # fmt: skip
    column: str | None = Field(
        None, max_length=1000, description="column of the prompts, where a table has several that could be"
    )
    split: str = Field("train", min_length=1, max_length=200, description="part of a data set of the hub that is read")
    unique: bool = Field(False, description="drop prompts that have been there before")
    encodings: Literal["auto", "store", "on-the-fly"] = Field(
        "auto",
        description="text encodings: made once into a store in the cache, or on the fly; auto goes by their size",
    )
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="what text encodings are rounded to")


class PromptTexts(Sequence[str]):
    """Texts by number, cut from one buffer when they are asked for.

    Args:
        data: of all in UTF-8.
        places: (N, 2) where each begins and ends in it.
    """

    def __init__(self, data: bytes | mmap.mmap, places: Places) -> None:
        self._data, self.places = data, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        start, end = self.places[number].tolist()
        return bytes(self._data[start:end]).decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def longest_first(self) -> Places:
        """Their numbers (N,) by length in bytes, descending."""
        return np.argsort(self.places[:, 0] - self.places[:, 1], kind="stable")


@dataclass(frozen=True)
class FoundPrompts:
    """A list that was read, and what people should know of it.

    Args:
        blank: lines or rows without a text, which were left out.
        repeated: prompts that had been there before.
        dropped: whether these were left out too.
    """

    prompts: PromptList
    blank: int = 0
    repeated: int = 0
    dropped: bool = False

    @property
    def summary(self) -> str:
        """'1,200 prompts from prompts.txt; 3 blank ones left out; 12 repeated (...)'."""
        parts = [f"{counted(len(self.prompts), 'prompt')} from {printable(self.prompts.name)}"]
        if self.blank:
            parts.append(f"{self.blank:,} blank left out")
        if self.repeated:
            kept = "left out" if self.dropped else "kept; --prompts-unique leaves them out"
            parts.append(f"{self.repeated:,} repeated, {kept}")
        return "; ".join(parts)


def open_prompts(config: PromptsConfig, say: Callable[[str], None] = lambda text: None) -> FoundPrompts:
    """The prompts that a configuration names. Nothing of them stays in memory where there are many.

    Args:
        say: hears what takes long, or where they are kept when the cache cannot be written.

    Raises:
        UsageError: when there are none, or a choice has to be made.
        DistillkitError: when the file is damaged or the data set cannot be had.
    """
    assert config.path is not None
    if config.path.startswith(HUB):
        repository, named = _repository(config.path)
        if named and config.column and named != config.column:
            raise UsageError(f"--prompts {config.path} names a column and {OPTION} {config.column} another")
        texts, contents = hub_texts(repository, config.split, named or config.column, OPTION)
        return _found(texts, config, "row", config.path, ["hub", repository, config.split, contents], say)
    path = Path(config.path).expanduser()
    identity = None
    try:
        if path.is_file() and path.stat().st_size > IN_MEMORY:
            identity = ["file", sha256(path), path.suffix.lower(), config.column or ""]
    except OSError as error:
        raise UsageError(f"no prompts in {shown(config.path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"no prompts in {shown(config.path)}: {error}") from error
    unit = {".csv": "row", ".tsv": "row", ".json": "entry", ".parquet": "row"}.get(path.suffix.lower(), "line")
    return _found(texts_in(path, config.column, OPTION), config, unit, config.path, identity, say)


def _repository(name: str) -> tuple[str, str | None]:
    """("ORG/NAME", column or None) of `hf:ORG/NAME[:COLUMN]`.

    Raises:
        UsageError: for another form.
    """
    repository, _, column = name.removeprefix(HUB).partition(":")
    if not re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", repository):
        raise UsageError(f"--prompts {shown(name)}: write it as hf:ORG/NAME or hf:ORG/NAME:COLUMN")
    return repository, column or None


def _found(
    texts: Numbered, config: PromptsConfig, unit: str, name: str, identity: list[str] | None,
    say: Callable[[str], None],
) -> FoundPrompts:  # fmt: skip
    """The list, from the cache where it is there.

    Args:
        identity: of the contents; None where they are small.
    """
    if identity is None:
        return _read(texts, config.unique, unit, name)[0]
    key = hashlib.sha256(repr([FORMAT, config.unique, *identity]).encode()).hexdigest()[:16]
    folder = cache_folder() / "prompts" / f"{slug(Path(name).stem)[:40]}-{key}"
    if kept := _kept(folder, name, config.unique):
        return kept
    if reason := unwritable(folder):
        say(f"note: {folder} cannot be written ({reason}), so the prompts are read anew in every run; DISTILLKIT_CACHE "
            "names another cache")  # fmt: skip
        return _read(texts, config.unique, unit, name)[0]
    # Of several processes one reads, and the others find what it has kept.
    with held(folder / ".lock", waiting(say, f"reading the prompts in {name}")):
        if kept := _kept(folder, name, config.unique):
            return kept
        say(f"reading the prompts in {name} for the first time")
        found, file = _read(texts, config.unique, unit, name)
        _keep(folder, found, file)
    return _kept(folder, name, config.unique) or found


def _read(texts: Numbered, unique: bool, unit: str, name: str) -> tuple[FoundPrompts, IO[bytes]]:
    """Everything there is, written one after the other into a file that is on the disk only where it is large."""
    file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - it stays as long as the list does
    places, digests, blank, end = array("q"), bytearray(), 0, 0
    for number, text in texts:
        text = (text or "").strip()  # noqa: PLW2901
        if not text:
            blank += 1
            continue
        data = _checked(text, f"{printable(name)}, {unit} {number:,}")
        file.write(data)
        places.extend((end, end + len(data)))
        digests += hashlib.blake2b(data, digest_size=16).digest()
        end += len(data)
        if len(places) > 2 * MOST:
            raise UsageError(f"{name} holds more than {MOST:,} prompts")
    table = np.frombuffer(places, np.int64).reshape(-1, 2)
    if not len(table):
        left = f": {counted(blank, unit)} without a text" if blank else ": it is empty"
        raise UsageError(f"no prompts in {shown(name)}{left}")
    first = _first_ones(np.frombuffer(digests, "<u8").reshape(-1, 2))
    kept = PromptTexts(_mapped(file), table[first] if unique else table)
    found = PromptList(kept, name, prompts_sha256(kept))
    return FoundPrompts(found, blank, int((~first).sum()), unique), file


def kept_texts(texts: Iterable[str]) -> PromptTexts:
    """Texts in one buffer, in memory where they are small and on the disk else; empty ones stay."""
    file, places, end = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY), array("q"), 0  # noqa: SIM115
    for number, text in enumerate(texts, 1):
        data = _checked(text, f"caption {number:,}")
        file.write(data)
        places.extend((end, end + len(data)))
        end += len(data)
    return PromptTexts(_mapped(file), np.frombuffer(places, np.int64).reshape(-1, 2))


def _checked(text: str, where: str) -> bytes:
    """A prompt's bytes.

    Raises:
        UsageError: for what is none.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{where}: a prompt of {len(text):,} characters; at most {LONGEST:,}")
    if "\0" in text:
        raise UsageError(f"{where} holds a zero byte: it is no text")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} holds half a character: it is no text") from error


def _first_ones(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """(N,) whether a row is there for the first time."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in their order
    ordered = digests[order]
    first = np.ones(len(digests), bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(1)
    return first


def _mapped(file: Any) -> bytes | mmap.mmap:
    """What was written into a file, mapped where it is on the disk."""
    file.flush()
    if not file._rolled:
        return bytes(file._file.getvalue())
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _keep(folder: Path, found: FoundPrompts, file: IO[bytes]) -> None:
    """Write a list into the cache, its description last."""
    texts = found.prompts.texts
    assert isinstance(texts, PromptTexts)
    remove_leftovers(folder)
    file.seek(0)
    with replacing(folder / TEXTS) as aside, aside.open("wb") as to:
        while part := file.read(2**22):
            to.write(part)
    with replacing(folder / PLACES) as aside, aside.open("wb") as to:
        np.save(to, texts.places)
    described = {
        "format": FORMAT, "sha256": found.prompts.sha256, "count": len(texts), "blank": found.blank,
        "repeated": found.repeated, "bytes": (folder / TEXTS).stat().st_size,
    }  # fmt: skip
    write_json(folder / DESCRIBED, described)


def _kept(folder: Path, name: str, unique: bool) -> FoundPrompts | None:
    """A list in the cache; None where it is not there whole."""
    try:
        described = read_mapping(folder / DESCRIBED)
        places = np.load(folder / PLACES, mmap_mode="r", allow_pickle=False)
        with (folder / TEXTS).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            size = os.fstat(file.fileno()).st_size
        whole = described["format"] == FORMAT and described["bytes"] == size and described["count"] == len(places)
        if not whole or places.shape != (len(places), 2) or places.dtype != np.int64:
            return None
        prompts = PromptList(PromptTexts(data, places), name, str(described["sha256"]))
        note_use(folder / DESCRIBED)
        return FoundPrompts(prompts, int(described["blank"]), int(described["repeated"]), unique)
    except (Unreadable, OSError, ValueError, KeyError, TypeError):
        return None
