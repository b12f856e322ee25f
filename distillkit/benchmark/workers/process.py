"""A worker: loads the teacher once, then does what it is given, one thing after the other, until it is to end.

Started as `python -m distillkit.benchmark.workers.process FOLDER NAME`, or by torchrun where a job has several
processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from distillkit.benchmark.harness import Bench, ProcessUnusable
from distillkit.benchmark.jobs import precision_of
from distillkit.benchmark.outcomes import known_records, run_folder
from distillkit.benchmark.workers.messages import (
    ANSWER,
    Answer,
    Assignment,
    Place,
    Settings,
    Training,
    read_settings,
)  # fmt: skip
from distillkit.benchmark.workers.reporting import FileReporter
from distillkit.benchmark.workers.watching import Watch
from distillkit.environment import environment
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.jobs.context import Context, is_first_process, job_context
from distillkit.jobs.launcher import TRAINING
from distillkit.locks import held
from distillkit.models.store.resolve import resolve
from distillkit.registry import load_file
from distillkit.runs.folder import LOCK, RunFolder

LOOK_SECONDS = 0.2


class Worker:
    """Does assignments.

    Args:
        place: its folder.
        context: of all its assignments.
    """

    def __init__(self, settings: Settings, place: Place, context: Context) -> None:
        self.settings, self.place, self.context = settings, place, context
        known = place.answer()
        self.done = known.number if known else 0
        self._bench: Bench | None = None

    def work(self) -> None:
        """Until the bench says that it is enough, or a signal comes.

        Raises:
            Interrupted: after a signal, with everything kept.
            DistillkitError: where this process cannot go on.
        """
        while (assignment := self._next()) is not None:
            with _output_into(self.place.bench / assignment.log):
                answer = self._outcome(assignment)
            if self.context.main:
                self.place.send(ANSWER, answer)
            self.done = assignment.number

    def _next(self) -> Assignment | None:
        """The next assignment, the same for all processes; None to end."""
        found: list[Assignment | None] = [None]
        if self.context.main:
            found[0] = self._wait()
        if self.context.world > 1:
            broadcast_object_list(found)
        return found[0]

    def _wait(self) -> Assignment | None:
        while not self.context.stopped():
            order = self.place.order()
            if order.assignment and order.assignment.number != self.done:
                return order.assignment
            if order.end:
                return None
            time.sleep(LOOK_SECONDS)
        return None

    def _outcome(self, assignment: Assignment) -> Answer:
        if self.context.main:
            self.context = replace(self.context, reporter=FileReporter(self.place, assignment.number))
        try:
            bench = self._loaded()
            bench.context = self.context
            return self._answer(bench, assignment)
        except (Interrupted, ProcessUnusable):
            raise
        except DistillkitError as error:
            return Answer(number=assignment.number, failure=str(error), exit_code=error.exit_code)

    def _answer(self, bench: Bench, assignment: Assignment) -> Answer:
        bench.begin()
        if assignment.kind == "plan":
            trainings = tuple(Training.of(job) for job in bench.plan())
            return Answer(number=assignment.number, trainings=trainings, environment=environment())
        run = None
        if assignment.kind == "teacher":
            bench.measure_teacher()
        else:
            assert assignment.training is not None
            job = assignment.training.job(self.settings.suite)
            self._wait_for_another(run_folder(self.place.bench, job))
            run = bench.outcome(job)
        known, made = known_records(self.place.bench), bench.results
        return Answer(
            number=assignment.number, run=run, teacher_records=made.teacher_records, grid=made.grid,
            measured={path: key for path, key in made.measured.items() if known.get(path) != key},
        )  # fmt: skip

    def _wait_for_another(self, folder: RunFolder) -> None:
        """A worker of an earlier bench, which was killed, may still be on its way to a safe place."""

        def waiting() -> None:
            self.context.stop_if_asked("before the training began")

        if self.context.main and (folder / LOCK).exists():
            with held(folder / LOCK, waiting):
                pass
        self.context.accelerator.wait_for_everyone()

    def _loaded(self) -> Bench:
        if self._bench is None:
            suite, context = self.settings.suite, self.context
            reference = resolve(suite.teacher, suite.pipeline)
            reference.check()
            teacher = reference.load(context.reporter, context.stopped)
            self._bench = Bench(suite, self.place.bench, teacher, context)
        return self._bench


@contextlib.contextmanager
def _output_into(log: Path) -> Iterator[None]:
    """What the process writes, its libraries' C code included, goes into a file while the context lasts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    streams = (sys.stdout, sys.stderr)
    former = [os.dup(stream.fileno()) for stream in streams]
    with log.open("ab") as file:
        for stream in streams:
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        yield
    except BaseException:
        # Whoever looks for the reason looks here first.
        traceback.print_exc()
        raise
    finally:
        for stream, handle in zip(streams, former, strict=True):
            stream.flush()
            os.dup2(handle, stream.fileno())
            os.close(handle)


def main(folder: str, name: str) -> int:
    """Work as the worker of that name in a benchmark's folder; returns the exit code."""
    place = Place(Path(folder), name)
    try:
        settings = read_settings(place.bench)
        sys.argv = ["distillkit", *settings.arguments]
        with Watch(place, settings.silence) as watch:
            for file in settings.plugins:
                load_file(file)
            with job_context(
                precision=precision_of(settings.suite), device=settings.device, quiet=True, timeout=settings.timeout,
                settled=TRAINING,
            ) as context:  # fmt: skip
                watch.follow(context.stop)
                Worker(settings, place, context).work()
    except Interrupted as stopped:
        return stopped.exit_code
    except DistillkitError as error:
        print(f"distillkit: {error}", file=sys.stderr, flush=True)  # noqa: T201
        assignment = place.order().assignment
        if isinstance(error, UsageError) and assignment and is_first_process():
            # Another process would refuse it as well.
            place.send(ANSWER, Answer(number=assignment.number, failure=str(error), exit_code=error.exit_code))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
