"""Students for other libraries, and for the hub."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.errors import UsageError
from distillkit.files import sha256, write_bytes, write_json
from distillkit.models.diffusers.unet2d import DiffusersUNet
from distillkit.reading import Unreadable, read_json, read_text
from distillkit.registry import blaming, registry
from distillkit.students.artifact import DESCRIPTION, Student
from distillkit.students.card import CARD, PICTURE, card, with_usage
from distillkit.students.evaluations import evaluations_of

log = logging.getLogger(__name__)

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
    if own := _own(student, CARD):
        return read_text(own)
    return card(student.description)


def _own(student: Student, name: str) -> Path | None:
    """A file that lies beside a student; None where it is not there, or is a link to elsewhere: a folder that was
    downloaded must not publish what lies outside of it."""
    path = student.folder / name if student.folder else None
    if path is None or not path.is_file():
        return None
    if path.resolve().is_relative_to(_repository(path.parent.resolve())):
        return path
    log.warning("%s is a link out of its folder, and is left out of the export", path)
    return None


def _repository(folder: Path) -> Path:
    """The folder itself; of a snapshot in the hub's cache, whose files are links, that of its repository."""
    snapshots = folder.parent
    is_cached = snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    return snapshots.parent / "blobs" if is_cached else folder


def export(student: Student, name: str, folder: Path) -> list[Path]:
    """Write a student in a format, with its card, whole or not at all; returns the files. A folder that already holds
    the same export is left as it is, so that what follows an export, such as an upload, can be repeated.

    Raises:
        UsageError: for an unknown format, a student that it cannot hold, or a folder that holds something else.
        DistillkitError: when a plugin's exporter fails.
    """
    offer = registry().find("exporters", name)
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not _may_be(folder, student):
        raise UsageError(f"{folder} is not an empty folder; choose another --output-dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        with blaming(f"export to {name}", offer.origin, "failed"):
            offer.value(student, made)
        _complete(made, student, name, offer.origin)
        if occupied:
            if not _alike(made, folder):
                raise UsageError(f"{folder} holds another export of this student; choose another --output-dir")
        else:
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _complete(made: Path, student: Student, name: str, origin: str) -> None:
    """Add what an exporter has not written itself: card, picture, description."""
    if not (made / CARD).exists():
        usage = f"Exported in the format `{name}` of {origin}; load it as that format's documentation says."
        write_bytes(made / CARD, with_usage(_card(student), usage, library=name).encode())
    if (picture := _own(student, PICTURE)) and not (made / PICTURE).exists():
        shutil.copyfile(picture, made / PICTURE)
    if not (made / DESCRIPTION).exists():
        write_json(made / DESCRIPTION, student.description.model_dump(mode="json"))


def _may_be(folder: Path, student: Student) -> bool:
    """Whether a folder says that it holds an export of this student."""
    try:
        return folder.is_dir() and read_json(folder / DESCRIPTION) == student.description.model_dump(mode="json")
    except Unreadable:
        return False


def _alike(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files."""
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (first, second)
    ]
    return names[0] == names[1] and all(sha256(first / name) == sha256(second / name) for name in names[0])
