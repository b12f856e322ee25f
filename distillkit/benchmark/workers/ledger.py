"""The results of a benchmark whose trainings end in any order, kept as those of one that does them in turn."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from distillkit.benchmark.jobs import Job
from distillkit.benchmark.outcomes import failed_run, known_records, require_some
from distillkit.benchmark.results import Results, Run, write_results
from distillkit.benchmark.suite import Suite
from distillkit.benchmark.workers.messages import Answer
from distillkit.environment import environment

TEACHER = -1
"""The place of the teacher's answer, before those of all trainings."""


class Ledger:
    """Takes answers and writes results.json.

    Args:
        folder: of the benchmark.
    """

    def __init__(self, suite: Suite, folder: Path) -> None:
        self.suite, self.folder = suite, folder
        self.jobs: list[Job] = []
        self._known, self._answers = known_records(folder), dict[int, Answer]()
        self.results = Results(suite=suite, created=datetime.now(UTC).isoformat(timespec="seconds"))

    def plan(self, answer: Answer) -> None:
        """All trainings are known.

        Raises:
            DistillkitError: when none of them can be run.
        """
        self.jobs = [training.job(self.suite) for training in answer.trainings]
        require_some(self.jobs)
        where = {**answer.environment, "command": environment()["command"]}
        self.results = self.results.model_copy(update={"environment": where})

    def take(self, place: int, answer: Answer) -> None:
        """What became of the job at that place in `jobs`, or of the teacher."""
        self._answers[place] = answer
        # Without the teacher there is nothing to compare with yet.
        if TEACHER in self._answers:
            self.results = self._in_turn()
            write_results(self.folder, self.results)

    def _in_turn(self) -> Results:
        measured, grid = dict(self._known), dict[str, str]()
        for _, answer in sorted(self._answers.items()):
            measured |= answer.measured
            grid |= answer.grid
        runs = (self._run(place, job) for place, job in enumerate(self.jobs))
        return self.results.model_copy(
            update={
                "runs": tuple(run for run in runs if run is not None), "measured": measured, "grid": grid,
                "teacher_records": self._answers[TEACHER].teacher_records,
            }
        )  # fmt: skip

    def _run(self, place: int, job: Job) -> Run | None:
        if job.problem:
            return failed_run(self.suite, job, job.problem)
        answer = self._answers.get(place)
        return answer.run if answer else None
