"""A run before it begins: configuration, folder and context, from what people ask for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from distillkit.contracts.hooks import Tracker
from distillkit.contracts.method import Method, Preset
from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.files import slug
from distillkit.jobs.context import TIMEOUT, Context, job_context
from distillkit.jobs.distil import Distillation
from distillkit.jobs.launcher import TRAINING, launcher_settings
from distillkit.jobs.prompts import check_before_loading
from distillkit.jobs.reading import read_for
from distillkit.jobs.run import Run
from distillkit.jobs.teacher_weights import require_teacher_dtype
from distillkit.jobs.unread import without_effect
from distillkit.models.diffusers.options import unused_guide
from distillkit.models.store.reference import Reference
from distillkit.models.store.resolve import preset_name
from distillkit.models.store.resolve import resolve as resolve_teacher
from distillkit.registry import Installed, method_name, registry
from distillkit.runs.config import RunConfig, resolve
from distillkit.runs.folder import RunFolder
from distillkit.runs.options import nested, sections_of
from distillkit.runs.validation import ConfigFile, merge, read_config

AnyMethod = str | Path | type[Method]
"""A method by name, by the Python file that defines it, or its class."""


class Plan:
    """A run before it begins: configuration, folder and context, with nothing loaded or written yet."""

    def __init__(
        self, config: RunConfig, preset: Preset | None, folder: RunFolder, context: Context, method: Installed,
        teacher: Teacher | None, *, resuming: bool,
    ) -> None:  # fmt: skip
        self.config, self.preset, self.folder, self.context = config, preset, folder, context
        self.method, self.teacher, self.resuming = method, teacher, resuming

    @property
    def remark(self) -> str:
        """Where the settings come from."""
        if self.preset:
            return f"settings: preset {self.preset.name!r} ({self.preset.source}) and your own"
        return f"settings: {self.config.method} has no preset for {self.config.teacher}: defaults and your own, untuned"

    def _reference(self) -> Reference:
        """What the teacher's name stands for, and a guide's.

        Raises:
            UsageError: where it stands for nothing; for a run that is resumed what became of it.
        """
        try:
            return resolve_teacher(self.config.teacher, self.config.pipeline)
        except UsageError as error:
            if not self.resuming:
                raise
            raise UsageError(
                f"{self.folder.path} cannot go on, since what it learns from is not where it was: {error}\n"
                "Put it there again; a name without a whole path is looked for from the folder where the run began."
            ) from error

    def job(self, teacher: Teacher | None = None) -> Distillation:
        """The job, its teacher loaded."""
        context = self.context
        require_teacher_dtype(self.config.teacher_weights.dtype, context.device)
        loaded = teacher or self.teacher
        if loaded is None:
            reference = self._reference()
            check_before_loading(reference, self.config)
            loaded = read_for(reference, self.config, context)
        job = Distillation(self.config, self.folder, context, self.method, loaded)
        if loaded.guide and not job.guided:
            raise UsageError(unused_guide(loaded.guide.spec.name))
        if line := without_effect(job.reads, self.method.value, self.config.settings, self.preset):
            context.reporter.say(line)
        suggested = {"pairs": dict(self.preset.pairs)} if self.preset else {}
        for name, values in self.config.sources.items():
            # A preset's numbers for a source that this recipe leaves out are nobody's mistake.
            if values and name not in job.config.sources and values != suggested.get(name):
                context.reporter.say(
                    f"warning: {self.config.method} with these settings reads no {name}: "
                    f"{', '.join(f'sources.{name}.{key}' for key in values)} have no effect"
                )
        return job


@contextmanager
def planned(
    method: AnyMethod,
    teacher: str | Path | Teacher | None = None,
    *,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    config: str | Path | RunConfig | None = None,
    device: str = "auto",
    report_to: str | Tracker = "none",
    tracker_project: str | None = None,
    quiet: bool = False,
    timeout: float = TIMEOUT,
    values: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Plan]:
    """What `distil` would do with the same arguments; signals are noted while the context lasts."""
    offer = method_offer(method)
    if resume and (config or output_dir):
        raise UsageError("--resume takes the configuration and the folder from the run; drop --config and --output-dir")
    options = merge(values or {}, _options(offer.value, settings))
    at_hand = teacher if isinstance(teacher, Teacher) else None
    if teacher is not None:
        options["teacher"] = at_hand.spec.name if at_hand else str(teacher)
    command = f"distillkit run {shlex.quote(str(method)) if isinstance(method, str | Path) else offer.name}"
    file = RunFolder(Path(resume), command).saved_config() if resume else _file(config)
    known_as = at_hand.spec.name if at_hand else None
    resolved, preset = resolve(offer.value, teacher_name=known_as, file=file, options=options)
    if at_hand:
        resolved.pipeline.refuse_for(
            "this one is loaded: load_teacher(..., resolution=, embedded_guidance=, guide_with=) takes them"
        )
        if at_hand.guide:
            pipeline = resolved.pipeline.model_copy(update={"guide_with": at_hand.guide.spec.name})
            resolved = resolved.model_copy(update={"pipeline": pipeline})
    written = merge(file.values if file else {}, options).get("training") or {}
    training, remarks = launcher_settings().training(resolved.training, written)
    resolved = resolved.model_copy(update={"training": training})
    folder = RunFolder(_folder(output_dir, resume, offer.name, resolved.teacher), command)
    finished = Run(folder.path).config.training.duration if resume and folder.finished else 0
    if resume and folder.finished and resolved.training.duration <= finished:
        raise UsageError(
            f"{folder.path} is finished; there is nothing to resume. Sample from it: "
            f"distillkit sample {shlex.quote(str(folder.path))}; or go on for longer: --duration {2 * finished}"
        )
    with job_context(
        precision=resolved.training.precision, device=device, report_to=report_to,
        tracker_project=tracker_project, quiet=quiet, timeout=timeout, settled=TRAINING, remarks=remarks,
    ) as context:  # fmt: skip
        yield Plan(resolved, preset, context.agreed(folder), context, offer, at_hand, resuming=bool(resume))


def method_offer(method: AnyMethod) -> Installed:
    """A method as it is installed; a class that nothing offers comes from its module.

    Raises:
        UsageError: for an unknown name or a file without a method.
    """
    if isinstance(method, type):
        installed = registry().named("methods").get(method.name)
        if installed and installed.value is method:
            return installed
        return Installed(method, method.name, method.__module__, "")
    name = method_name(str(method))  # may load a file, after which there is another registry
    return registry().find("methods", name, "distillkit methods")


def _options(method: type[Method], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as nested values; `seed` belongs to no section."""
    flat = {name: value for name, value in settings.items() if value is not None}
    seed = {"seed": flat.pop("seed")} if "seed" in flat else {}
    return {**nested(flat, sections_of(method)), **seed}


def _file(config: str | Path | RunConfig | None) -> ConfigFile | None:
    if isinstance(config, RunConfig):
        return ConfigFile(Path("config"), config.model_dump(mode="json", exclude_unset=True), {})
    return None if config is None else read_config(Path(config))


def _folder(output_dir: str | Path | None, resume: str | Path | None, method: str, teacher: str) -> Path:
    if chosen := resume or output_dir:
        return Path(chosen).expanduser()
    name = slug(preset_name(teacher))
    return Path("runs") / f"{method}-{name}-{datetime.now():%Y%m%d-%H%M%S}"
