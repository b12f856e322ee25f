"""Labels of image files: by a dataset.json as EDM's and StyleGAN's tools write it, or by folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import parse_json

LABELS = "dataset.json"

Labels = npt.NDArray[np.int64]

EDM_NAME = re.compile(r"\d{5}/img\d{8}\.\w+")
"""What EDM's and StyleGAN's tools call images: their folders are no classes."""

SPLIT = re.compile(r"(train|training|val|valid|validation|test|testing|eval|evaluation)([-_]?\d+)?", re.IGNORECASE)


@dataclass
class Labelling:
    """Labels of images in their order, or None.

    Args:
        class_names: of the classes in order, where they have some.
        notes: what people should know of it.
    """

    labels: Labels | None = None
    class_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def label_files(
    names: Sequence[str], described: Callable[[str], bytes | None], where: str, *, packed: bool = False
) -> Labelling:
    """Labels of files with these names, which have "/" between folders.

    A folder around all others is passed by: what is in it counts.

    Args:
        described: the text of the file of a name, None where there is none.
        where: the names are, for messages.
        packed: whether they are in one file.

    Raises:
        UsageError: where the folders are no classes but parts of a data set, such as train and val.
        DistillkitError: when a dataset.json is damaged or has no label for an image.
    """
    around = ""
    while True:
        text = described(around + LABELS)
        if text is not None:
            return read_labels(text, [name[len(around) :] for name in names], f"{where}{around}{LABELS}")
        tops = Counter(name[len(around) :].partition("/")[0] for name in names if "/" in name[len(around) :])
        beside = [name for name in names if "/" not in name[len(around) :]]
        if beside or len(tops) != 1:
            break
        around += f"{next(iter(tops))}/"
    if not tops:
        note = f"no classes: all are in one folder, {shown(around.rstrip('/'))}" if around else "no classes"
        return Labelling(notes=[note])
    if beside:
        return Labelling(
            notes=[f"no classes, as images lie beside the folders: {len(beside):,}, such as {shown(beside[0])}"]
        )
    if all(EDM_NAME.fullmatch(name[len(around) :]) for name in names):
        return Labelling(notes=[f"no classes: there is no {LABELS}"])
    _refuse_splits(sorted(tops), f"{where}{around}", packed=packed)
    classes = tuple(sorted(tops, key=int) if all(top.isdecimal() for top in tops) else sorted(tops))
    number = {top: index for index, top in enumerate(classes)}
    labels = [number[name[len(around) :].partition("/")[0]] for name in names]
    return Labelling(np.asarray(labels, dtype=np.int64), classes)


def _refuse_splits(folders: Sequence[str], where: str, *, packed: bool) -> None:
    """Refuse the parts of a data set as its classes.

    Raises:
        UsageError: with what to do.
    """
    splits = [name for name in folders if SPLIT.fullmatch(name)]
    training = [name for name in splits if name.lower().startswith("train")]
    if len(splits) == len(folders) or (training and len(splits) > len(training)):
        one = (training or splits)[0]
        choice = f"unpack it and give --data {one}" if packed else f"choose one, such as --data {shown(where + one)}"
        raise UsageError(
            f"{shown(where)} holds {', '.join(map(shown, splits))}, which are parts of a data set and no classes: "
            f"{choice}; if they are classes, rename them or write a {LABELS}"
        )


def read_labels(text: bytes, names: Sequence[str], where: str) -> Labelling:
    """Labels from the text of a dataset.json, {"labels": [[name, class], ...]} or {"labels": null}.

    Raises:
        DistillkitError: when it is damaged or names an image twice with different classes, a class is not a small
            non-negative integer, or an image has none.
    """
    by_name, notes = _listed(text, where)
    if by_name is None:
        return Labelling(notes=[f"no classes: {LABELS} holds none"])
    if missing := [name for name in names if name not in by_name]:
        raise DistillkitError(
            f"{where} has no label for {shown(missing[0])} ({len(missing):,} without): add them, or remove the images"
        )
    labels = check_labels([by_name[name] for name in names], names, where)
    if len(by_name) > len(names):
        absent = set(by_name).difference(names)
        notes.append(f"{LABELS} names {len(absent):,} images that are not there, such as {shown(min(absent))}")
    return Labelling(labels, notes=notes)


def _listed(text: bytes, where: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Label by name, None where there are none."""
    try:
        # Their number is bounded by the file's size where it is read.
        listed = parse_json(text, where, values=len(text))["labels"]
        entries = None if listed is None else [(name, label) for name, label in listed]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DistillkitError(
            f'{where} is not a list of labels, {{"labels": [["name.png", 0], ...]}}: {reason[:200]}'
        ) from error
    if entries is None:
        return None, []
    by_name: dict[str, Any] = {}
    twice = 0
    for name, label in entries:
        if not isinstance(name, str):
            raise DistillkitError(f"{where}: {str(name)[:40]!r} is not the name of an image")
        if name in by_name:
            twice += 1
            if by_name[name] != label:
                raise DistillkitError(
                    f"{where} names {shown(name)} twice, with the labels {str(by_name[name])[:40]} and "
                    f"{str(label)[:40]}; leave one"
                )
        by_name[name] = label
    return by_name, [f"{LABELS} names {twice:,} images twice, with one label"] if twice else []


def check_labels(values: Any, names: Sequence[str], where: str) -> Labels:
    """Class numbers as an array.

    Raises:
        DistillkitError: naming the image whose label is none, or far beyond the number of images.
    """
    for name, value in zip(names, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 10**6:
            raise DistillkitError(
                f"{where}: the label of {shown(name)} is {str(value)[:40]!r}, not a class number from 0"
            )
    labels = np.asarray(values, dtype=np.int64)
    if len(labels) and int(labels.max()) >= 10_000 + len(labels):
        name = names[int(labels.argmax())]
        raise DistillkitError(
            f"{where}: the label of {shown(name)} is {int(labels.max()):,}, and there are {len(labels):,} images: "
            "number the classes from 0 without gaps"
        )
    return labels


def shown(name: str, most: int = 200) -> str:
    """A name out of a file for a message: no control characters, not too long."""
    return (name if name.isprintable() else ascii(name))[:most]
