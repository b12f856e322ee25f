"""Experiment trackers: what a run logs, shown elsewhere. Their failures are warnings: local files are the record."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from distillkit.contracts.hooks import Tracker
from distillkit.errors import UsageError
from distillkit.files import write_json
from distillkit.reading import Unreadable, read_mapping
from distillkit.registry import registry

log = logging.getLogger(__name__)

PROJECT = "distillkit"
PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "comet_ml": "comet_ml",
    "aim": "aim", "clearml": "clearml", "swanlab": "swanlab",
}  # fmt: skip
"""The trackers that are known without a plugin, and the package of each."""
PROJECT_VARIABLES = {
    "wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "comet_ml": "COMET_PROJECT_NAME",
    "clearml": "CLEARML_PROJECT",
}  # fmt: skip
"""Where users of a tracker keep the project's name."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns of a run.

    Args:
        name: of the run's folder. project: that all runs belong to.
        config: method, teacher, seed and settings, nested.
        folder: of the run; what a tracker writes goes there.
        resumed: whether the run goes on after an interruption.
    """

    name: str = ""
    project: str = PROJECT
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    resumed: bool = False

    @property
    def plain(self) -> dict[str, Any]:
        """The configuration in one level, {"training.lr": 1e-3}, without what is neither text nor number."""
        return dict(_flat(self.config))


def require_tracker(name: str) -> None:
    """Refuse a tracker that nothing offers, or whose package is not installed.

    Raises:
        UsageError: naming those there are, or what to install.
    """
    offered = registry().named("trackers")
    if name == "none" or name in offered:
        return
    if name not in PACKAGES:
        raise UsageError(f"--report-to {name}: unknown tracker; known: {', '.join(['none', *PACKAGES, *offered])}")
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise UsageError(f"--report-to {name}: its package is not installed: pip install {PACKAGES[name]}")


def project_of(name: str, asked: str | None) -> str:
    """The project: as asked, by the tracker's own variable, by DISTILLKIT_PROJECT, or distillkit's."""
    own = os.environ.get(PROJECT_VARIABLES.get(name, ""), "")
    return asked or own or os.environ.get("DISTILLKIT_PROJECT", "") or PROJECT


class Trackers:
    """A run's tracker, by name or at hand; the first process alone has one.

    Args:
        which: "none", a name, or a tracker.
        run: what it learns of the run.
        accelerator: for the trackers that accelerate knows.
    """

    def __init__(
        self, which: str | Tracker = "none", run: TrackedRun | None = None, accelerator: Accelerator | None = None
    ) -> None:
        self._tracker: Tracker | None = None
        if which == "none" or (accelerator is not None and not accelerator.is_main_process):
            return
        self._guarded("is not available", lambda: setattr(self, "_tracker", _made(which, run, accelerator)))

    @property
    def active(self) -> bool:
        return self._tracker is not None

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Means or figures by name, after so many images."""
        if (tracker := self._tracker) is not None:
            self._guarded("failed", lambda: tracker.log(dict(values), images))

    def show(self, title: str, picture: Path | None, images: int) -> None:
        """A picture, by trackers that take some."""
        take = getattr(self._tracker, "log_picture", None)
        if take is not None and picture is not None:
            self._guarded("failed", lambda: take(title, picture, images))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], images: int) -> None:
        """The closing table, by trackers that take some."""
        take = getattr(self._tracker, "log_table", None)
        if take is not None:
            self._guarded("failed", lambda: take(title, list(columns), [list(row) for row in rows], images))

    def close(self) -> None:
        """Close the tracker, and nothing else: `Accelerator.end_training` would end the process group too, which the
        figures after the training need."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._guarded("failed at the end", tracker.close)

    def _guarded(self, what: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # any tracker may fail in any way; the run goes on
            self._tracker = None
            log.warning("the tracker %s (%s); the run goes on with metrics.jsonl alone", what, error)


def _made(which: str | Tracker, run: TrackedRun | None, accelerator: Accelerator | None) -> Tracker:
    run = run or TrackedRun()
    if not isinstance(which, str):
        return which
    if offer := registry().named("trackers").get(which):
        about = {"project": run.project, "folder": str(run.folder), "resumed": run.resumed}
        made: Tracker = offer.value(run.name, {**run.plain, **about})
        return made
    own: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return own[which](run) if which in own else Accelerates(which, run, accelerator or Accelerator())


class TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir runs` shows all runs side by side."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils import tensorboard  # noqa: F401 - a missing part of it is found before the training

        self.run = run
        self._writer: Any = None

    def writer(self, images: int) -> Any:
        """The writer; what an interrupted run wrote from here on is replaced."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self.run.folder / "tensorboard"), purge_step=images if self.run.resumed else None
            )
            if not self.run.resumed:
                lines = "\n".join(f"    {name}: {value}" for name, value in self.run.plain.items())
                self._writer.add_text("configuration", f"project {self.run.project}, run {self.run.name}\n\n{lines}")
        return self._writer

    def log(self, values: Mapping[str, float], images: int) -> None:
        for name, value in values.items():
            self.writer(images).add_scalar(name, value, images)
        self.writer(images).flush()

    def log_picture(self, title: str, picture: Path, images: int) -> None:
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        self.writer(images).add_image(title, pixels, images, dataformats="HWC")

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], images: int) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self.writer(images).add_text(title, text, images)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of W&B, the same one after a resume: its id is kept in the run's folder. WANDB_MODE=offline works.

    Raises:
        RuntimeError: where it would have to ask for a key.
    """

    def __init__(self, run: TrackedRun) -> None:
        wandb: Any = importlib.import_module("wandb")

        if os.environ.get("WANDB_MODE", "online") in ("online", "shared") and not _has_key():
            raise RuntimeError("W&B has no key: set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline")
        settings: dict[str, Any] = {"project": run.project, "id": self._id(run.folder), "resume": "allow"}
        if "WANDB_NAME" not in os.environ:
            settings["name"] = run.name
        if "WANDB_DIR" not in os.environ:
            settings["dir"] = str(run.folder)
        self._wandb = wandb
        self._run = wandb.init(config=dict(run.config), **settings)

    @staticmethod
    def _id(folder: Path) -> str:
        """Written before it is used, so that a run killed at any moment is found again."""
        path = folder / "tracker.json"
        try:
            return str(read_mapping(path)["wandb"])
        except (Unreadable, KeyError):
            made = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
            write_json(path, {"wandb": made})
            return made

    def log(self, values: Mapping[str, float], images: int) -> None:
        self._run.log(dict(values), step=images)

    def log_picture(self, title: str, picture: Path, images: int) -> None:
        self._run.log({title: self._wandb.Image(str(picture))}, step=images)

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], images: int) -> None:
        self._run.log({title: self._wandb.Table(columns=columns, data=rows)}, step=images)

    def close(self) -> None:
        self._run.finish()


def _has_key() -> bool:
    """Whether W&B finds a key without asking: in the environment or in the user's .netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    from requests.utils import get_netrc_auth

    return get_netrc_auth(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")) is not None


class Accelerates:
    """Any other tracker that accelerate knows, as far as it goes there."""

    def __init__(self, name: str, run: TrackedRun, accelerator: Accelerator) -> None:
        from accelerate.tracking import filter_trackers

        named = {
            "trackio": {"name": run.name, "resume": "allow"},
            "mlflow": {"run_name": run.name},
            "swanlab": {"experiment_name": run.name},
            "clearml": {"task_name": run.name, "continue_last_task": run.resumed},
        }
        accelerator.project_configuration.set_directories(str(run.folder))
        accelerator.log_with = filter_trackers(name, str(run.folder))
        accelerator.init_trackers(run.project, config=run.plain, init_kwargs={name: named.get(name, {})})
        if not accelerator.trackers:
            # accelerate leaves out what it cannot start without an error.
            raise RuntimeError(f"accelerate cannot start {name}")
        self._trackers = list(accelerator.trackers)

    def log(self, values: Mapping[str, float], images: int) -> None:
        for tracker in self._trackers:
            tracker.log(dict(values), step=images)

    def log_picture(self, title: str, picture: Path, images: int) -> None:
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        for tracker in self._trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({title: [pixels]}, step=images)

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], images: int) -> None:
        for tracker in self._trackers:
            if hasattr(tracker, "log_table"):
                tracker.log_table(title, columns=columns, data=rows, step=images)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _flat(values: Mapping[str, Any], above: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{above}{key}", value
