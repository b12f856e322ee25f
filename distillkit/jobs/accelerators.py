"""The device and processes of a run."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from distillkit.errors import UsageError
from distillkit.registry import registry

TRACKERS = ("none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "swanlab")


def make_accelerator(precision: str, device: str, report_to: str, logging_folder: str) -> Accelerator:
    """An Accelerator for "auto", "cpu", "cuda" or "mps"; reads RANK, WORLD_SIZE, LOCAL_RANK where launchers set them.

    Args:
        report_to: a tracker that accelerate knows, a plugin's, or "none".

    Raises:
        UsageError: when the device is not there or does not know the precision.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise UsageError(f"--device {device}: this machine has none that torch can use; try --device cpu")
    cpu = device == "cpu" or (device == "auto" and not (there["cuda"] or there["mps"]))
    if precision == "fp16" and cpu:
        raise UsageError("--precision fp16 needs a GPU; on the CPU use fp32 or bf16")
    if cpu:
        # Spare accelerate's launcher questions: torchrun on a machine without GPU means gloo.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    return Accelerator(
        cpu=cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=report_to if report_to in TRACKERS[1:] else None,
        project_dir=logging_folder,
    )


def require_tracker(name: str) -> None:
    """Refuse a tracker that neither accelerate nor a plugin has.

    Raises:
        UsageError: naming those there are.
    """
    known = [*TRACKERS, *registry().trackers]
    if name not in known:
        raise UsageError(f"--report-to {name}: unknown tracker; known: {', '.join(known)}")
