"""Python's way in; the command line calls exactly these functions.

run = distillkit.distil("dmd", teacher="edm-cifar10-cond", duration="2M", output_dir="runs/mine")
record = distillkit.evaluate(run, samples=10_000)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillkit.contracts.hooks import Tracker
from distillkit.contracts.method import Method
from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.evaluation.compare import Table
from distillkit.evaluation.compare import compare as compare_records
from distillkit.evaluation.record import Record, read_record
from distillkit.jobs.context import TIMEOUT, job_context, launch
from distillkit.jobs.evaluate import evaluate_subject
from distillkit.jobs.launcher import launcher_settings
from distillkit.jobs.options import EvaluationOptions
from distillkit.jobs.planned import AnyMethod, method_offer, planned
from distillkit.jobs.run import Run
from distillkit.runs.config import RunConfig
from distillkit.students.artifact import Student


def distil(
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
) -> Run:
    """Distil a teacher into a few-step student; what `distillkit run METHOD` does.

    Args:
        method: its name, a Python file that defines it, or its class.
        teacher: name, folder, file or hub repository, or a teacher at hand; the embedded one by default.
        output_dir: folder of the run; runs/METHOD-TEACHER-TIME by default.
        resume: go on with the run in this folder.
        config: a YAML file of settings, or a whole configuration; `settings` win.
        device: "auto", "cpu", "cuda" or "mps".
        report_to: a tracker beside metrics.jsonl: its name, or an object with `log(values, images)` and `close()`.
        tracker_project: its project; by its own variable such as WANDB_PROJECT, or "distillkit" by default.
        quiet: no progress.
        timeout: seconds for which one of several processes may keep the others waiting.
        values: settings nested as in a configuration file, below `settings`.
        settings: any setting by the name of its option: lr=1e-3, duration="100k", pairs_count=1024, data="folder",
            protocol="edm-cifar10", student="runs/other@best", start_ratio=2.5, kl_weight=0.5, prompts="prompts.txt",
            seed=1.

    Raises:
        UsageError: for a name, setting or folder that does not fit; says which.
        DistillkitError: when something fails.
        Interrupted: after SIGINT or SIGTERM, with everything saved; says how to go on.
    """
    with planned(
        method, teacher, output_dir=output_dir, resume=resume, config=config, device=device, report_to=report_to,
        tracker_project=tracker_project, quiet=quiet, timeout=timeout, values=values, **settings,
    ) as plan:  # fmt: skip
        job = plan.job()
        job.prepare()
        launch(plan.folder, job.config, plan.context, lambda: job.run(resume=plan.resuming), resume=plan.resuming,
               remark=plan.remark, inputs=job.inputs)  # fmt: skip
    return Run(plan.folder.path)


def evaluate(
    subject: str | Path | Student | Teacher | Run,
    protocol: str | None = None,
    *,
    device: str = "auto",
    quiet: bool = False,
    **options: Any,
) -> Record:
    """Measure a student, a run, a teacher or images; what `distillkit evaluate` does.

    Args:
        subject: a path or name as on the command line, or an object at hand.
        protocol: its name; the teacher's own by default.
        device: "auto", "cpu", "cuda" or "mps".
        quiet: no progress.
        options: fields of `EvaluationOptions`: samples, first_seed, nfe (one number), metrics, guidance, steps, solver,
            prompts, clip, precision, reference, extractor, batch, output, save_images.

    Raises:
        UsageError, DistillkitError: as `distil`.
    """
    if isinstance(nfe := options.get("nfe"), int):
        options["nfe"] = (nfe,)
    records = evaluate_all(subject, protocol, device=device, quiet=quiet, **options)
    return records[0][0]


def evaluate_all(
    subject: str | Path | Student | Teacher | Run,
    protocol: str | None = None,
    *,
    device: str = "auto",
    quiet: bool = False,
    **options: Any,
) -> Sequence[tuple[Record, Path]]:
    """As `evaluate`, for several numbers of evaluations (`nfe=(1, 2, 4)`): every record and where it was written; none
    on other processes than the first."""
    precision, remarks = launcher_settings().taken_precision(options.pop("precision", None))
    asked = EvaluationOptions(protocol=protocol, precision=precision, **options)
    measured = subject.folder if isinstance(subject, Run) else subject
    with job_context(
        precision=asked.precision, device=device, quiet=quiet, settled=("precision",), remarks=remarks
    ) as context:
        return [(made.record, made.path) for made in evaluate_subject(measured, asked, context)]


def compare(*records: Record | Run | str | Path) -> Table:
    """Records of one protocol in a table: values, errors and paired differences to the best; what `distillkit compare`
    does.

    Args:
        records: records, their files, or runs that have been measured.

    Raises:
        UsageError: for records of several protocols, or a run without one.
    """
    tables, _ = compare_records([_record(record) for record in records])
    if not tables:
        raise UsageError("compare takes at least one measured record")
    return tables[0]


def _record(given: Record | Run | str | Path) -> Record:
    if isinstance(given, Run):
        if given.record is None:
            raise UsageError(f"{given.folder} was measured under no protocol; measure it by `distillkit.evaluate`")
        return given.record
    record = given if isinstance(given, Record) else read_record(Path(given))
    if not isinstance(record, Record):
        raise UsageError(f"{given} is a quoted figure, and only measured ones are compared")
    return record


def load_method(name: str | Path) -> type[Method]:
    """A method's class by name, or from a Python file that defines it.

    Raises:
        UsageError: for an unknown name or a file without a method.
    """
    method: type[Method] = method_offer(name).value
    return method
