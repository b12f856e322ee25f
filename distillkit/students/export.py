"""Students for other libraries, and for the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

from distillkit.contracts.hooks import Student as AnyStudent
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import write_bytes, write_json
from distillkit.models.diffusers.unet2d import DiffusersUNet
from distillkit.registry import blaming, registry, unknown
from distillkit.students.artifact import DESCRIPTION, Student
from distillkit.students.evaluations import evaluations_of

FILES = Path(__file__).parent / "diffusers_files"


def to_diffusers(student: Student, folder: Path) -> None:
    """A folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.

    UNet2DModels are saved as such, so that diffusers alone is enough; EDM's networks bring a file that builds them with
    distillkit.
    """
    generator = student.generator
    if not generator.spec.is_image:
        raise UsageError("students of points cannot be exported to diffusers, whose pipelines make images")
    start, evaluations = evaluations_of(generator)
    model: Any = generator.denoiser.model
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "DistilledPipeline"],
        "_diffusers_version": "0.32.0",
        "evaluations": [asdict(evaluation) for evaluation in evaluations],
        "shape": list(generator.spec.shape),
        "start": start,
        "num_classes": generator.spec.num_classes,
        "sign": 1.0,
        "clip": bool(getattr(generator.sampler, "clip", False)),
    }
    if isinstance(model, DiffusersUNet):
        index |= {"network": ["diffusers", "UNet2DModel"], "sign": model.sign}
        model.unet.save_pretrained(folder / "network")
    else:
        index["network"] = ["edm_network", "EDMNetwork"]
        state = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
        description = {
            "_class_name": "EDMNetwork",
            "_diffusers_version": "0.32.0",
            "description": generator.spec.network,
        }
        write_json(folder / "network" / "config.json", description)
        write_bytes(folder / "network" / "diffusion_pytorch_model.safetensors", save(state, metadata={"format": "pt"}))
        shutil.copyfile(FILES / "edm_network.py", folder / "network" / "edm_network.py")
    shutil.copyfile(FILES / "pipeline.py", folder / "pipeline.py")
    write_json(folder / "model_index.json", index)


EXPORTERS: Mapping[str, Callable[[Student, Path], None]] = {"diffusers": to_diffusers}


def exporter(name: str) -> Callable[[AnyStudent, Path], None]:
    """A way to write students, of this package or a plugin.

    Raises:
        UsageError: for an unknown one.
    """
    offered = registry().exporters
    if name in EXPORTERS:
        return EXPORTERS[name]
    if name not in offered:
        raise UsageError(unknown("format", name, [*EXPORTERS, *offered], "distillkit plugins"))
    return offered[name].value


def export(student: Student, source: Path, name: str, folder: Path) -> list[Path]:
    """Write a student in a format, with its card, whole or not at all; returns the files.

    Args:
        source: the student's own folder, for its card and its picture.

    Raises:
        UsageError: for an unknown format, a student that it cannot hold, or a folder that is not empty.
        DistillkitError: when a plugin's exporter fails.
    """
    write = exporter(name)
    origin = registry().exporters[name].origin if name in registry().exporters else "distillkit"
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; choose another --output-dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        with blaming(f"export to {name}", origin, "failed"):
            write(student, made)
        for extra in ("README.md", "samples.png", DESCRIPTION):
            if (source / extra).is_file() and not (made / extra).exists():
                shutil.copyfile(source / extra, made / extra)
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
