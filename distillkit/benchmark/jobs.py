"""From a suite to trainings: each entry's configuration, and as many images as the common budget pays for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillkit.benchmark.suite import Suite
from distillkit.contracts.method import Method
from distillkit.contracts.teacher import Teacher
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import canonical_json
from distillkit.progress import Quiet
from distillkit.registry import registry
from distillkit.runs.config import RunConfig, merge, resolve
from distillkit.jobs.distil import Distillation
from distillkit.runs.folder import RunFolder
from distillkit.jobs.trial import forward_equivalents


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        entry: the suite's name for it.
        package: distribution and version that the method came from.
        passes: forward-equivalents of training on one image, by role.
        pairs_cost: forward-equivalents of its noise-image pairs.
        key: hash of all that its result depends on.
        problem: why it cannot be run; empty if it can.
    """

    entry: str
    method: str
    package: str
    seed: int
    config: RunConfig | None = None
    passes: dict[str, float] | None = None
    pairs_cost: int = 0
    key: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """Of its folder: what is made anew never mixes with what was made before."""
        return f"{self.entry}-seed{self.seed}-{self.key}"


def jobs_of(suite: Suite, teacher: Teacher, accelerator: Accelerator, stop: StopRequest) -> Iterator[Job]:
    """One job for each entry and seed, seed by seed, so that a bench that is stopped early has compared all methods.

    What cannot be run is a job with a problem: it does not stop the others.
    """
    first = {entry: _planned(suite, entry, teacher, accelerator, stop) for entry in suite.methods}
    for seed in range(suite.seeds):
        for job in first.values():
            if job.config is None:
                yield replace(job, seed=seed)
                continue
            config = job.config.model_copy(update={"seed": seed})
            key = identity(config, teacher, registry().method(job.method), job.package, accelerator.num_processes)
            yield replace(job, seed=seed, config=config, key=key)


def _planned(suite: Suite, entry: str, teacher: Teacher, accelerator: Accelerator, stop: StopRequest) -> Job:
    """The entry's job for seed 0, without its key."""
    name = suite.method_of(entry)
    installed = registry().methods.get(name)
    package = installed.origin if installed else ""
    try:
        config = configuration(suite, entry)
        planned = Distillation(config, RunFolder(Path(), ""), accelerator, Quiet(), stop, teacher=teacher)
        pairs_cost = planned.pairs_cost
        passes = forward_equivalents(planned.recipe, planned.teacher, accelerator)
        images = affordable(suite.budget, sum(passes.values()), pairs_cost, config.training.batch)
    except Exception as error:  # a method may fail in any way, and the others go on
        reason = str(error) if isinstance(error, DistillkitError) else f"{type(error).__name__}: {error}"
        return Job(entry, name, package, 0, problem=reason)
    config = configuration(suite, entry, lasting(images, suite.curve_points))
    return Job(entry, name, package, 0, config, passes, pairs_cost)


def configuration(suite: Suite, entry: str, length: dict[str, Any] | None = None) -> RunConfig:
    """An entry's run: the method's preset, then what the suite says for all, then for the entry, then its length.

    Raises:
        UsageError: for an unknown method or bad values; says in which entry.
    """
    own = suite.methods[entry]
    options = {
        "teacher": suite.teacher,
        "settings": own.settings,
        "training": merge(suite.training, own.training, length or {}),
        "pairs": own.pairs,
        "data": suite.data,
    }
    try:
        return resolve(registry().method(suite.method_of(entry)), options=options)[0]
    except UsageError as error:
        raise UsageError(f"entry {entry}: {error}") from error


def affordable(budget: int, an_image: float, pairs: int, batch: int) -> int:
    """Images that a budget pays for, in whole batches.

    Raises:
        UsageError: when it does not even pay for one batch.
    """
    images = int((budget - pairs) / an_image) // batch * batch
    if images < batch:
        raise UsageError(
            f"the budget of {budget:,} forward-equivalents is too small: "
            + (f"noise-image pairs cost {pairs:,} and " if pairs else "")
            + f"a batch of {batch} images costs {an_image * batch:,.0f}"
        )
    return images


def lasting(images: int, curve_points: int) -> dict[str, Any]:
    """Training values for a training of this length: scores for the curve, a few checkpoints, one more grid."""
    return {
        "duration": images,
        "evaluate_every": max(1, images // curve_points),
        "checkpoint_every": max(1, images // 4),
        "sample_every": images,
        "log_every": max(1, images // 40),
    }


def identity(config: RunConfig, teacher: Teacher, method: type[Method], package: str, processes: int) -> str:
    """Hash of all that a training's result depends on: a run is reused while this stays the same.

    The source of the method's package counts, so that editing a plugin makes its runs anew; of distillkit's own, the
    version does.
    """
    body = {
        "config": config.model_dump(mode="json"),
        "teacher": teacher.spec.weights_sha256,
        "distillkit": version("distillkit"),
        "package": package,
        "source": source_hash(method.__module__.partition(".")[0]),
        "processes": processes,
    }
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:8]


@cache
def source_hash(package: str) -> str:
    """Hash of a package's Python files, or of a single module's."""
    module = importlib.import_module(package)
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    files = sorted(f for folder in folders for f in folder.rglob("*.py"))
    if not folders and module.__file__:
        files = [Path(module.__file__)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
