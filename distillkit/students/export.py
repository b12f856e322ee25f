"""Students for other libraries, and for the hub."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import write_bytes, write_json
from distillkit.models.diffusers.unet2d import DiffusersUNet
from distillkit.registry import blaming, registry
from distillkit.students.artifact import DESCRIPTION, Student
from distillkit.students.card import CARD, PICTURE, card, with_usage
from distillkit.students.evaluations import evaluations_of

FILES = Path(__file__).parent / "diffusers_files"
SINCE = "0.32.0"
"""The version of diffusers that the files are written for."""


def to_diffusers(student: Student, folder: Path) -> None:
    """A folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.

    UNet2DModels are saved as such, so that diffusers alone is enough; other networks bring a file that builds them with
    distillkit and, where it is a plugin's, its package.

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
        model.unet.save_pretrained(folder / "network")
    else:
        index["network"] = ["distillkit_network", "DistillkitNetwork"]
        _write_network(student, folder / "network")
    index["evaluations"] = [asdict(evaluation) for evaluation in evaluations]
    shutil.copyfile(FILES / "pipeline.py", folder / "pipeline.py")
    write_json(folder / "model_index.json", index)
    write_bytes(folder / CARD, with_usage(_card(student), _usage(classes), library="diffusers").encode())


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
    state = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    config = {
        "_class_name": "DistillkitNetwork",
        "_diffusers_version": SINCE,
        "description": student.description.network,
    }
    write_json(folder / "config.json", config)
    write_bytes(folder / "diffusion_pytorch_model.safetensors", save(state, metadata={"format": "pt"}))
    shutil.copyfile(FILES / "distillkit_network.py", folder / "distillkit_network.py")


def _usage(classes: int) -> str:
    chosen = ", class_labels=[0] * 16" if classes else ""
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder", trust_remote_code=True)
images = pipeline(batch_size=16{chosen}).images
```"""


def _card(student: Student) -> str:
    """The student's own card, or one without figures where it has none, as a checkpoint's."""
    own = student.folder / CARD if student.folder else None
    if own and own.is_file():
        return own.read_text(encoding="utf-8")
    return card(student.description)


def export(student: Student, name: str, folder: Path) -> list[Path]:
    """Write a student in a format, with its card, whole or not at all; returns the files.

    Raises:
        UsageError: for an unknown format, a student that it cannot hold, or a folder that is not empty.
        DistillkitError: when a plugin's exporter fails.
    """
    offer = registry().find("exporters", name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; choose another --output-dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        with blaming(f"export to {name}", offer.origin, "failed"):
            offer.value(student, made)
        if not (made / CARD).exists():
            usage = f"Exported in the format `{name}` of {offer.origin}; load it as that format's documentation says."
            write_bytes(made / CARD, with_usage(_card(student), usage, library=name).encode())
        if student.folder and (student.folder / PICTURE).is_file() and not (made / PICTURE).exists():
            shutil.copyfile(student.folder / PICTURE, made / PICTURE)
        if not (made / DESCRIPTION).exists():
            write_json(made / DESCRIPTION, student.description.model_dump(mode="json"))
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder to the Hugging Face hub; returns its address.

    Raises:
        DistillkitError: when the hub refuses or cannot be reached; what it said, and what to do.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        created = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id, folder_path=folder, commit_message="A student, exported by distillkit"
        )
        return str(created)
    except Exception as error:  # the hub's client raises many kinds
        raise DistillkitError(
            f"cannot push to {repository}: {type(error).__name__}: {str(error).splitlines()[0]}\n"
            f"The export itself is in {folder}. Log in with `hf auth login` or set HF_TOKEN, and check that you may "
            "write there."
        ) from error
