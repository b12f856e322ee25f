"""Captions of images: texts beside the files of images, and their list as prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.text import PromptList, prompts_sha256
from distillkit.data.files import ImageFiles, counted
from distillkit.data.labels import shown
from distillkit.data.prompt_files import rows_of
from distillkit.data.prompts import kept_texts
from distillkit.data.tables import TABLES, captioned_rows
from distillkit.errors import DistillkitError
from distillkit.models.prompts import Prompts
from distillkit.text import redacted

METADATA = tuple(f"metadata{ending}" for ending in TABLES)
"""Tables of captions in a folder of images, by the names that Hugging Face's `imagefolder` gives them."""
LARGEST = 2**19
"""Bytes of a file that holds one caption."""


def beside(name: str) -> str:
    """The file of an image's caption: "a/b.jpg" -> "a/b.txt"."""
    return f"{name.rpartition('.')[0] or name}.txt"


def decoded(data: bytes | None, where: str) -> str:
    """The text of a caption's file; "" where there is none.

    Raises:
        DistillkitError: when it is not UTF-8, or too large.
    """
    if data is None:
        return ""
    if len(data) > LARGEST:
        raise DistillkitError(f"the caption {shown(where, 1000)} has more than {LARGEST:,} bytes")
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DistillkitError(f"the caption {shown(where, 1000)} is not UTF-8 text (byte {error.start:,})") from error


def texts_beside(names: Iterable[str], read: Callable[[str], bytes | None], where: str) -> Sequence[str]:
    """The captions of images with these names, in their order.

    Args:
        read: the bytes of the file of a name; None where there is none.
        where: the names are, for messages.

    Raises:
        DistillkitError: for a caption that is no text.
    """
    return kept_texts(decoded(read(beside(name)), where + beside(name)) for name in names)


def texts_listed(
    names: Sequence[str], open_table: Callable[[str], BinaryIO | None], where: str, column: str | None = None
) -> Sequence[str] | None:
    """The captions of images by the first table of metadata that lies beside them; None where there is none.

    Args:
        names: of the images, which have "/" between folders.
        open_table: the table of a name; None where there is none.
        where: the names are, for messages.
        column: of the captions, where several could be.

    Raises:
        UsageError: for a table without a column of captions.
        DistillkitError: for a damaged one.
    """
    tops = {name.partition("/")[0] for name in names}
    around = f"{next(iter(tops))}/" if len(tops) == 1 and all("/" in name for name in names) else ""
    for folder in dict.fromkeys(("", around)):
        for table in METADATA:
            if (file := open_table(folder + table)) is None:
                continue
            with file:
                path = Path(f"{where}{folder}{table}")
                listed = dict(captioned_rows(rows_of(file, path), path, None, column, required=True))
            return kept_texts(listed.get(name.removeprefix(folder), "") for name in names)
    return None


def captions_of(files: ImageFiles, path: str) -> PromptList | None:
    """One prompt for each image, in their order: its caption, or the name of its class; the empty prompt where it has
    none. None where no image has any.

    Args:
        path: of the images, for people.

    Raises:
        DistillkitError: for a caption that is no text.
    """
    texts = files.captions
    if texts is None and files.labels is not None and files.class_names:
        names = files.class_names
        texts = kept_texts(names[label].replace("_", " ") for label in files.labels.tolist())
    return None if texts is None else PromptList(texts, f"the captions in {redacted(path)}", prompts_sha256(texts))


def fingerprint_of(files: ImageFiles, conditioner: Conditioner) -> str:
    """Hash of images, and of their captions where a model reads them."""
    captions = captions_of(files, "") if conditioner.takes_text else None
    whole = f"{files.fingerprint} {captions.sha256}" if captions else ""
    return hashlib.sha256(whole.encode()).hexdigest() if captions else files.fingerprint


def prompt_numbers(files: ImageFiles, conditioner: Conditioner) -> tuple[Tensor, str]:
    """Keys (N,) int64 of the images' captions, and what people should know of it.

    Where the captions are the conditioner's list, they are the images' own numbers; else those of the same prompts in
    the list, and numbers after the list's for others.
    """
    captions = captions_of(files, "")
    if captions is None:
        return conditioner.parse([""]).expand(len(files)), "without captions: the empty prompt"
    if isinstance(conditioner, Prompts) and captions.sha256 == conditioner.listed:
        keys = torch.arange(len(files))
    else:
        known = _numbers(conditioner, captions.texts)
        keys = torch.tensor([known[text] for text in captions.texts], dtype=torch.int64)
    empty = sum(not text for text in captions.texts)
    note = "captions" if files.captions is not None else "the names of classes as captions"
    return keys, f"with {note}" + (f"; {counted(empty, 'image')} without, used with the empty prompt" if empty else "")


def _numbers(conditioner: Conditioner, texts: Iterable[str]) -> dict[str, int]:
    """The key of each text."""
    wanted = dict.fromkeys(texts, -1)
    if isinstance(conditioner, Prompts):
        for number, text in enumerate(conditioner.texts):
            if wanted.get(text, 0) < 0:
                wanted[text] = number
    others = [text for text, number in wanted.items() if number < 0]
    return {**wanted, **dict(zip(others, conditioner.parse(others).tolist(), strict=True))}
