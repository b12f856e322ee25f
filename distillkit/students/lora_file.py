"""Students of adapters as LoRA files that pipelines of diffusers load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import UsageError
from distillkit.files import write_tensors
from distillkit.models.adapters import NAME, layers_of
from distillkit.reading import read_mapping
from distillkit.students.artifact import Student
from distillkit.students.plain_pipeline import (
    PLACE,
    comes_along,
    for_people,
    from_where,
    network_of,
    note_of,
    parts_of,
    pipeline_call,
    pipeline_class,
)
from distillkit.students.schedulers import scheduler_of

FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for."""
MERGED = "--to diffusers writes the student with its adapters merged"


def write_lora(student: Student, folder: Path, *, self_contained: bool = False) -> str:
    """A LoRA file, and the scheduler that takes the student's steps.

    The scale alpha / rank is in the weights, so that it is kept whatever the version that loads them.

    Args:
        self_contained: with a copy of the teacher's pipeline in `base`. One that comes with a Python package is always
            copied, as diffusers does not know where that lies.

    Returns:
        How it is used, for the card.

    Raises:
        UsageError: for a student without adapters, with more than adapters, or whose pipeline loads no such file.
    """
    import diffusers

    described = student.description.adapter
    if described is None:
        raise UsageError("the student has no adapters but weights of its own: export it by --to diffusers")
    used = parts_of(student)
    if not used:
        raise UsageError(
            f"the teacher {student.description.teacher.name} is no pipeline of diffusers that loads a LoRA; {MERGED}"
        )
    source = used[0]
    kind = pipeline_class(read_mapping(source.folder / "model_index.json"), source)
    if not hasattr(kind, "load_lora_weights"):
        raise UsageError(f"a {kind.__name__} of diffusers loads no LoRA; {MERGED}")
    component, network = network_of(student)
    weights = _weights(network, component, student)
    scheduler = scheduler_of(student.generator)
    call = pipeline_call(student, kind, scheduler)
    write_tensors(folder / FILE, weights, {"format": "pt"})
    plain: Any = getattr(diffusers, scheduler.name)(**scheduler.config)
    plain.save_pretrained(folder / "scheduler")
    copied = self_contained or comes_along(source.source)
    if copied:
        shutil.copytree(source.folder, folder / "base")
    where = 'f"{folder}/base"' if copied else from_where(source)
    return f"""```python
from diffusers import DiffusionPipeline, {scheduler.name}

folder = "{PLACE}"
pipeline = DiffusionPipeline.from_pretrained({where})
pipeline.load_lora_weights(folder)
pipeline.scheduler = {scheduler.name}.from_pretrained(folder, subfolder="scheduler")
image = pipeline({for_people(call)}).images[0]
```

The adapters are a {described.layers.title}; their scale is in the weights of the file.

{note_of(student)}"""


def _weights(network: Any, component: str, student: Student) -> dict[str, Tensor]:
    """The adapters by the names that diffusers gives them, times their scale.

    Raises:
        UsageError: where more than adapters was trained.
    """
    found: dict[str, Tensor] = {}
    for name, layer in layers_of(network).items():
        lower, upper = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight * layer.scaling[NAME]
        found[f"{component}.{name}.lora_A.weight"] = _plain(lower)
        found[f"{component}.{name}.lora_B.weight"] = _plain(upper)
    own = student.generator.denoiser.state_dict()
    if more := [name for name in own if ".lora_A." not in name and ".lora_B." not in name]:
        raise UsageError(
            f"the student has layers that its teacher lacks ({more[0]}), which no LoRA file holds; {MERGED}"
        )
    return found


@torch.no_grad()
def _plain(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32).contiguous().clone()
