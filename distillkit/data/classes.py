"""From the classes and captions of images to the numbers that a model knows them by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillkit.contracts.conditioner import Conditioner
from distillkit.data.captions import prompt_numbers
from distillkit.data.files import ImageFiles
from distillkit.data.labels import shown
from distillkit.errors import UsageError


def numbers_of(files: ImageFiles, conditioner: Conditioner) -> tuple[Tensor, str]:
    """Keys (N,) int64 of the images, zeros where there is nothing to choose, and what people should know of it.

    Of models of text they are the numbers of the images' captions.

    Classes with names that the model knows are its classes of these names: a folder called 7 is class 7, also where it
    is the only one. Where it knows none of them, they are taken in their order.

    Raises:
        UsageError: for more classes than the model has, or names of which it knows some alone.
    """
    if conditioner.takes_text:
        return prompt_numbers(files, conditioner)
    keys = torch.zeros(len(files), dtype=torch.int64)
    if files.labels is None or not conditioner.count:
        return keys, "used without labels" if files.labels is not None else ""
    known, ours = conditioner.names(torch.arange(conditioner.count)), list(files.class_names)
    labels = files.labels
    there = [name for name in ours if name in known]
    note = ""
    if ours and len(there) == len(ours):
        labels = np.asarray([known.index(name) for name in ours], dtype=np.int64)[labels]
    elif any(known.index(name) != ours.index(name) for name in there):
        strange = next(name for name in ours if name not in known)
        raise UsageError(
            f"the model knows some of the images' classes by name, such as {shown(there[0], 40)}, but not "
            f"{shown(strange, 40)}, which cannot be right by order either: rename them to the model's "
            f"({', '.join(known[:4])}, ...) or write a dataset.json"
        )
    elif int(labels.max()) < conditioner.count and known != ours:
        note = f"classes by their order: {shown(ours[0], 40)} is the model's {known[0]}" if ours else ""
    if int(labels.max()) >= conditioner.count:
        raise UsageError(
            f"the images have labels up to {int(labels.max()):,} and the model knows {conditioner.summary()}"
        )
    used = len(np.unique(labels))
    if used < conditioner.count:
        fewer = f"{used:,} of the model's {conditioner.summary()}"
        note = f"{note}; {fewer}" if note else fewer
    return torch.from_numpy(labels.copy()), note
