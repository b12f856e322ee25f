"""Students of pixels as folders of diffusers: a small pipeline of their own, which runs a table of numbers."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.errors import UsageError
from distillkit.files import write_json
from distillkit.models.diffusers.unet2d import DiffusersUNet
from distillkit.students.artifact import Student
from distillkit.students.evaluations import evaluations_of
from distillkit.weight_files import SHARD_BYTES, write_weights

FILES = Path(__file__).parent / "diffusers_files"
SINCE = "0.32.0"
"""The version of diffusers that the files are written for."""


def write_own_pipeline(student: Student, folder: Path) -> str:
    """A folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.

    UNet2DModels are saved as such, so that diffusers alone is enough; other networks bring a file that builds them with
    distillkit and, where it is a plugin's, its package.

    Returns:
        How it is used, for the card.

    Raises:
        UsageError: for a student of anything but pixels, with other conditions than classes, or with a sampler or a
            denoiser that is not one of distillkit's.
    """
    generator = student.generator
    classes = _classes(student)
    start, evaluations = evaluations_of(generator)
    model: Any = generator.denoiser.model
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "DistilledPipeline"],
        "_diffusers_version": SINCE,
        "shape": list(generator.shape),
        "start": start,
        "num_classes": classes,
        "sign": 1.0,
        "clip": bool(getattr(generator.sampler, "clip", False)),
    }
    if isinstance(model, DiffusersUNet):
        index |= {"network": ["diffusers", "UNet2DModel"], "sign": model.sign}
        evaluations = [replace(line, t=line.t * model.time_scale) for line in evaluations]
        model.unet.save_pretrained(folder / "network", max_shard_size=SHARD_BYTES)
    else:
        index["network"] = ["distillkit_network", "DistillkitNetwork"]
        _write_network(student, folder / "network")
    index["evaluations"] = [asdict(evaluation) for evaluation in evaluations]
    shutil.copyfile(FILES / "pipeline.py", folder / "pipeline.py")
    write_json(folder / "model_index.json", index)
    return _usage(classes)


def _classes(student: Student) -> int:
    """The number of classes, 0 for none, of a student whose samples and conditions the pipeline can make."""
    codec, conditioner = student.codec, student.conditioner
    if type(codec) is not Pixels or codec.video:
        raise UsageError(
            f"the diffusers format holds students of pixels; this one's samples {student.generator.shape} become "
            f"{codec.content} by the codec {student.description.codec.get('kind')}, which the pipeline does not have"
        )
    if type(conditioner) not in (ClassLabels, Unconditional):
        raise UsageError(
            "the diffusers format holds students of classes or of nothing; this one's conditions are made by the "
            f"conditioner {student.description.conditioner.get('kind')}"
        )
    return conditioner.count


def _write_network(student: Student, folder: Path) -> None:
    model: Any = student.generator.denoiser.model
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    config = {
        "_class_name": "DistillkitNetwork",
        "_diffusers_version": SINCE,
        "description": student.description.network,
    }
    write_json(folder / "config.json", config)
    write_weights(folder, "diffusion_pytorch_model", state)
    shutil.copyfile(FILES / "distillkit_network.py", folder / "distillkit_network.py")


def _usage(classes: int) -> str:
    chosen = ", class_labels=[0] * 16" if classes else ""
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder", trust_remote_code=True)
images = pipeline(batch_size=16{chosen}).images
```"""
