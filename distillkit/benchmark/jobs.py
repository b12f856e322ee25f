"""From a suite to trainings: each entry's configuration, and as many images as the common budget pays for."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distillkit.benchmark.suite import Published, Suite
from distillkit.contracts.method import Method
from distillkit.contracts.teacher import Teacher
from distillkit.data.identity import teacher_identity
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.files import canonical_json
from distillkit.jobs.context import Context
from distillkit.jobs.distil import Distillation
from distillkit.jobs.launcher import launcher_settings
from distillkit.jobs.planned import method_offer
from distillkit.jobs.reading import read_for
from distillkit.jobs.spreading import asked_of
from distillkit.jobs.trial import forward_equivalents
from distillkit.models.hashes import content_hash
from distillkit.models.store.resolve import resolve as resolve_teacher
from distillkit.progress import Quiet
from distillkit.registry import Installed
from distillkit.runs.config import RunConfig, resolve
from distillkit.runs.folder import RunFolder
from distillkit.runs.validation import merge

TRAINING_CODE = (
    "contracts", "data", "diffusion", "embedded", "engine", "jobs", "models", "parallel", "parts", "students",
    "counts.py", "power_ema.py",
)  # fmt: skip
FIGURES_CODE = ("contracts", "data", "diffusion", "embedded", "evaluation", "models", "students")
"""The parts of distillkit that a trained student depends on, and those that its figures do."""

PUBLISHED = "published"
"""What stands in the place of the method and the package of a generator that others have trained."""


@dataclass(frozen=True)
class Job:
    """One training, or a published generator that is measured as it is.

    Args:
        entry: the suite's name for it.
        method: as it is installed; None where there is none of that name.
        passes: forward-equivalents of training on one image, by role.
        sources_cost: forward-equivalents of its data, such as noise-image pairs.
        key: hash of all that its result depends on.
        problem: why it cannot be run; empty if it can.
        published: what is measured without a training.
    """

    entry: str
    seed: int = 0
    method: Installed | None = None
    config: RunConfig | None = None
    passes: dict[str, float] | None = None
    sources_cost: int = 0
    key: str = ""
    problem: str = ""
    published: Published | None = None

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.entry}, published" if self.published else f"{self.entry}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Of its folder: what is made anew never mixes with what was made before."""
        if self.published:
            return f"{self.entry}-published"
        return f"{self.entry}-seed{self.seed}-{self.key}"

    @property
    def code(self) -> str:
        """Hash of the source of its method and of distillkit; empty where there is no method."""
        if self.method is None:
            return ""
        return hash_of([source_hash(self.method.value), own_source_hash(*sorted({*TRAINING_CODE, *FIGURES_CODE}))])

    @property
    def package(self) -> str:
        """Distribution and version that the method came from."""
        if self.published:
            return PUBLISHED
        return self.method.origin if self.method else ""


def jobs_of(suite: Suite, teacher: Teacher, context: Context) -> Iterator[Job]:
    """One job for each published generator, which is soon done; then for each entry and seed, seed by seed, so that a
    bench that is stopped early has compared all methods.

    What cannot be run is a job with a problem: it does not stop the others.
    """
    for entry, published in suite.published.items():
        yield Job(entry, key=hash_of(published.model_dump(mode="json"))[:8], published=published)
    quiet = replace(context, reporter=Quiet())
    first = [_planned(suite, entry, teacher, quiet) for entry in suite.methods]
    for seed in suite.training_seeds:
        for job in first:
            if job.config is None:
                yield replace(job, seed=seed)
                continue
            config = job.config.model_copy(update={"seed": seed})
            key = hash_of({"start": job.key, "config": config.model_dump(mode="json")})[:8]
            yield replace(job, seed=seed, config=config, key=key)


def _planned(suite: Suite, entry: str, teacher: Teacher, context: Context) -> Job:
    """The entry's job, of no seed yet; its key is that of all but its configuration."""
    method: Installed | None = None
    try:
        method = method_offer(suite.method_of(entry))
        planned = distillation(method, configuration(suite, entry, method), teacher, context)
        key = identity(planned, method, context.world)
        passes = forward_equivalents(
            planned.recipe, planned.teacher, context.accelerator, (planned.strategy, planned.networks)
        )
        images = affordable(
            suite.budget or 0, sum(passes.values()), planned.sources_cost, planned.config.training.batch
        )
        config = configuration(suite, entry, method, length(images, suite.curve_points))
    except Interrupted:
        raise
    except Exception as error:  # a method may fail in any way, and the others go on
        return Job(entry, method=method, problem=reason_of(error))
    # With the settings of the data that it reads completed, as the run's own folder keeps them.
    config = config.model_copy(update={"sources": planned.config.sources})
    return Job(entry, 0, method, config, passes, planned.sources_cost, key)


def reason_of(error: Exception) -> str:
    """Why something failed, for people."""
    return str(error) if isinstance(error, DistillkitError) else f"{type(error).__name__}: {error}"


def distillation(method: Installed, config: RunConfig, teacher: Teacher, context: Context) -> Distillation:
    """A prepared job without a folder, to plan with.

    Raises:
        UsageError, DistillkitError: what the run would be refused with.
    """
    planned = Distillation(config, RunFolder(Path(), ""), context, method, teacher_for(config, teacher, context))
    planned.prepare()
    return planned


def teacher_for(config: RunConfig, teacher: Teacher, context: Context) -> Teacher:
    """The teacher of one training: that of the whole suite, or one of its own where networks are held in parts.

    Raises:
        UsageError, DistillkitError: where it cannot be loaded.
    """
    if not asked_of(config.training, context).spreads:
        return teacher
    reference = resolve_teacher(config.teacher, config.pipeline)
    return read_for(reference, config, context) if reference.available else reference.fresh(0)


def precision_of(suite: Suite) -> str:
    """Of every training of the suite: its own, or what the launcher asks for."""
    return str(suite.training.get("precision") or launcher_settings().precision or "fp32")


def configuration(suite: Suite, entry: str, method: Installed, length: dict[str, Any] | None = None) -> RunConfig:
    """An entry's run: the method's preset, then what the suite says for all, then for the entry, then its length.

    Raises:
        UsageError: for bad values, a precision of the entry's own, or a launcher that asks for other settings; says in
            which entry.
    """
    own, precision = suite.methods[entry], precision_of(suite)
    guided, pairs = _guided(suite, method)
    options = {
        "teacher": suite.teacher,
        "pipeline": suite.pipeline.model_dump(exclude_none=True),
        "settings": merge(guided, own.settings),
        "training": merge({"precision": precision}, suite.training, own.training, length or {}),
        "student": own.student,
        "prompts": suite.prompts,
        "sources": merge(pairs, suite.sources, own.sources),
        "evaluation": {"protocol": suite.protocol or None, "samples": suite.samples},
    }
    try:
        config = resolve(method.value, options=options)[0]
        if config.training.precision != precision:
            raise UsageError(
                f"precision {config.training.precision}, and all trainings of this suite are in {precision}: set it "
                "for the whole suite (training: {precision: ...})"
            )
        training, _ = launcher_settings().training(config.training, merge(suite.training, own.training))
        return config.model_copy(update={"training": training})
    except UsageError as error:
        raise UsageError(f"entry {entry}: {error}") from error


def _guided(suite: Suite, method: Installed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the method and of its data that guide the teacher as the suite does: pairs follow a method that has a
    guidance of its own."""
    if suite.guidance == 1:
        return {}, {}
    if "guidance" in method.value.Config.model_fields:
        return {"guidance": suite.guidance}, {}
    return {}, {"pairs": {"guidance": suite.guidance}}


def affordable(budget: int, an_image: float, sources_cost: int, batch: int) -> int:
    """Images that a budget pays for, in whole batches.

    Raises:
        UsageError: when it does not even pay for one batch.
    """
    images = int((budget - sources_cost) / an_image) // batch * batch
    if images < batch:
        raise UsageError(
            f"the budget of {budget:,} forward-equivalents is too small: "
            + (f"the teacher's passes for its data cost {sources_cost:,} and " if sources_cost else "")
            + f"a batch of {batch} images costs {an_image * batch:,.0f}"
        )
    return images


def length(images: int, curve_points: int) -> dict[str, Any]:
    """Training values for a training of this length: figures for the curve, no pictures on the way."""
    return {"duration": images, "evaluate_every": max(1, images // curve_points), "sample_every": images}


def identity(planned: Distillation, method: Installed, processes: int) -> str:
    """Hash of all that a training's result depends on beside its configuration: a run is reused while it is the same.

    The source of the method's package or file counts, so that editing a plugin makes its runs anew; so does that of
    distillkit's own parts, the weights that the student starts from, and the data.
    """
    teacher = planned.teacher
    return hash_of(
        {
            "teacher": {**teacher_identity(teacher), "spec": teacher.spec.model_dump(mode="json")},
            "start": {
                "student": content_hash(planned.recipe.student.denoiser.state_dict()),
                **{learner.name: content_hash(learner.state_dict()) for learner in planned.recipe.learners},
            },
            "data": {source.name: source.fingerprint for source in planned.sources.values()},
            "distillkit": [version("distillkit"), own_source_hash(*TRAINING_CODE)],
            "method": [method.origin, source_hash(method.value)],
            "processes": processes,
        }
    )


def source_hash(method: type[Method]) -> str:
    """Hash of the Python files of the method's package, of its file, or of a notebook's cell."""
    package = importlib.import_module(method.__module__.partition(".")[0])
    folders = [Path(folder) for folder in getattr(package, "__path__", [])]
    if folders:
        return _files_hash(*folders)
    file = getattr(package, "__file__", None)
    try:
        text = Path(file).read_text(encoding="utf-8") if file else inspect.getsource(method)
    except (OSError, TypeError):  # typed at a prompt: there is no source to read
        text = ""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def own_source_hash(*parts: str) -> str:
    """Hash of the Python files of distillkit's own parts."""
    return _files_hash(*(Path(__file__).parents[1] / part for part in parts))


def _files_hash(*places: Path) -> str:
    files = sorted(file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place]))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def hash_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
