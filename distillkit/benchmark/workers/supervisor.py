"""Hands the trainings of a benchmark to workers and starts again what died."""

from __future__ import annotations

import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distillkit.benchmark.outcomes import failed_run, failure, problems_of, state_of
from distillkit.benchmark.results import Results
from distillkit.benchmark.workers.launchers import Launcher, Started
from distillkit.benchmark.workers.ledger import TEACHER, Ledger
from distillkit.benchmark.workers.messages import (
    ALIVE,
    FOLDER,
    LOGS,
    ORDER,
    Answer,
    Assignment,
    Kind,
    Order,
    Place,
    Settings,
    Training,
    write_settings,
)  # fmt: skip
from distillkit.benchmark.workers.screen import Screen
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.progress import Reporter, clock

LOOK_SECONDS, SIGN_SECONDS = 0.2, 10.0


@dataclass
class Task:
    """Something to be done by one worker.

    Args:
        place: of the training among the jobs.
        deaths: of workers that were at it.
        began: when it was last given out.
    """

    assignment: Assignment
    name: str
    place: int = TEACHER
    deaths: int = 0
    began: float = 0.0


@dataclass
class Worker:
    """A worker, and what it does."""

    number: int
    place: Place
    started: Started | None = None
    task: Task | None = None
    ending: bool = False


class Supervisor:
    """A benchmark at work on several devices.

    Args:
        settings: of every worker.
        folder: of the benchmark; locked by the caller.
        most: workers at one time.
        retries: how often what died is tried again.
    """

    def __init__(
        self, settings: Settings, folder: Path, launcher: Launcher, *, most: int, retries: int, reporter: Reporter
    ) -> None:
        self.settings, self.folder, self.launcher = settings, folder, launcher
        self.most, self.retries, self.reporter, self.stop = most, retries, reporter, StopRequest()
        self.ledger = Ledger(settings.suite, folder)
        self.screen = Screen(reporter, settings.suite)
        self._workers: list[Worker] = []
        self._queue: deque[Task] = deque()
        self._given, self._signed = 0, -SIGN_SECONDS

    def run(self, stop: StopRequest) -> Results:
        """Do everything that is not done yet. A job that fails, or dies too often, does not stop the others.

        Args:
            stop: what a signal sets.

        Raises:
            Interrupted: after a signal, once every worker has stopped at a safe place; everything done is kept.
            UsageError, DistillkitError: when no job can be run, or the teacher cannot be measured.
        """
        self.stop = stop
        shutil.rmtree(self.folder / FOLDER, ignore_errors=True)
        write_settings(self.folder, self.settings)
        self._add("plan", "the plan", "plan")
        with self._workers_ended(), self.screen:
            while self._queue or any(worker.started for worker in self._workers):
                self._sign()
                self._start()
                for worker in self._workers:
                    self._look_at(worker)
                if self.stop:
                    self._stop()
                time.sleep(LOOK_SECONDS)
        return self.ledger.results

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            if worker.started is not None:
                worker.started.kill()

    @contextmanager
    def _workers_ended(self) -> Iterator[None]:
        """No worker outlives the bench, and their messages are removed."""
        try:
            yield
        finally:
            self.kill()
            shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def _add(self, kind: Kind, name: str, log: str, place: int = TEACHER, training: Training | None = None) -> None:
        self._given += 1
        assignment = Assignment(number=self._given, kind=kind, training=training, log=f"{LOGS}/{log}.log")
        self._queue.append(Task(assignment, name, place))

    def _sign(self) -> None:
        """Something new in a file at times: workers on other machines see that there still is a bench."""
        if time.monotonic() - self._signed >= SIGN_SECONDS:
            self._signed = time.monotonic()
            (self.folder / FOLDER / ALIVE).write_text(secrets.token_hex(8), encoding="utf-8")

    def _start(self) -> None:
        """As many workers as there is work for; those that are there take theirs as soon as they are looked at."""
        at_work = {worker.number for worker in self._workers if worker.started is not None}
        free = [number for number in range(1, self.most + 1) if number not in at_work]
        for number in free[: len(self._queue)]:
            place = Place.new(self.folder, number)
            others = [worker for worker in self._workers if worker.number != number]
            self._workers = [*others, Worker(number, place, self.launcher.start(place))]

    def _look_at(self, worker: Worker) -> None:
        if worker.started is None:
            return
        # In this order: what a worker answers last it answers before it ends.
        ended, answer = worker.started.ended(), worker.place.answer()
        if worker.task and answer and answer.number == worker.task.assignment.number:
            task, worker.task = worker.task, None
            self.screen.end(worker.number)
            self._take(task, answer)
        if ended is not None:
            worker.started = None
            self.screen.end(worker.number)
            self._died(worker, ended)
        elif worker.task is not None:
            training = worker.task.assignment.kind == "training"
            self.screen.show(worker.number, worker.task.name, worker.place.state(), training)
        elif not worker.ending:
            self._give(worker)

    def _give(self, worker: Worker) -> None:
        """The next task, or the end."""
        if not self._queue:
            worker.ending = True
            worker.place.send(ORDER, Order(end="when idle"))
            return
        worker.task = task = self._queue.popleft()
        task.began = time.monotonic()
        worker.place.send(ORDER, Order(assignment=task.assignment))
        if task.assignment.kind == "training":
            state = state_of(self.folder, self.ledger.jobs[task.place])
            where = self.launcher.share(worker.number)
            self.reporter.say(f"[{task.place + 1}/{len(self.ledger.jobs)}] {task.name}: {state}, on {where}")

    def _take(self, task: Task, answer: Answer) -> None:
        """What became of a task."""
        if answer.failure:
            kind = UsageError if answer.exit_code == UsageError.exit_code else DistillkitError
            raise kind(answer.failure)
        if task.assignment.kind == "plan":
            self._plan(answer)
            return
        self.ledger.take(task.place, answer)
        if answer.run is None:
            return
        if answer.run.kind == "training":
            self.screen.finished(task.name)
        if answer.run.state == "failed":
            self.reporter.say(f"{failure(answer.run)}; its log: {self.folder / task.assignment.log}")
        else:
            self.reporter.say(f"{task.name}: done in {clock(time.monotonic() - task.began)}")

    def _plan(self, answer: Answer) -> None:
        """From the plan to tasks: the teacher, then all trainings."""
        self.ledger.plan(answer)
        for problem in problems_of(self.ledger.jobs):
            self.reporter.say(f"cannot run: {problem}")
        self._add("teacher", "the teacher", "teacher")
        for place, (job, training) in enumerate(zip(self.ledger.jobs, answer.trainings, strict=True)):
            if not job.problem:
                self._add("training", job.title, job.name, place, training)
        self.screen.begin(sum(not job.published and not job.problem for job in self.ledger.jobs))

    def _died(self, worker: Worker, how: str) -> None:
        """A worker has ended: what it was at is tried again by a new one, unless it was to end."""
        task, worker.task = worker.task, None
        if task is None or self.stop:
            return
        task.deaths += 1
        log = self.folder / task.assignment.log
        log = log if log.exists() else worker.place.log
        if task.deaths <= self.retries:
            again = f"trying again ({task.deaths} of {self.retries})"
            self.reporter.say(f"{task.name}: its process {how}; {again}. Its log: {log}")
            self._queue.appendleft(task)
            return
        times = "once" if task.deaths == 1 else f"{task.deaths} times"
        reason = f"its process died {times}; the last one {how}. Its log: {log}"
        if task.place == TEACHER:
            raise DistillkitError(f"{task.name} could not be made: {reason}")
        run = failed_run(self.settings.suite, self.ledger.jobs[task.place], reason)
        self._take(task, Answer(number=task.assignment.number, run=run))

    def _stop(self) -> None:
        """Every worker stops at its next safe place, and the bench waits for them; those that have not begun have none
        to come to."""
        there = [worker for worker in self._workers if worker.started is not None]
        at_work = [worker for worker in there if worker.started and not worker.started.waiting()]
        withdrawn = [worker for worker in there if worker not in at_work]
        begun = f"stopping {len(at_work)} {'job' if len(at_work) == 1 else 'jobs'} at their next safe places"
        self.reporter.say(f"{begun}; withdrawn before their turn: {len(withdrawn)}" if withdrawn else begun)
        for worker in withdrawn:
            assert worker.started is not None
            worker.started.kill()
            worker.started = None
        for worker in at_work:
            assignment = worker.task.assignment if worker.task else None
            worker.place.send(ORDER, Order(assignment=assignment, end="at the next safe place"))
        while any(worker.started and worker.started.ended() is None for worker in at_work):
            self._sign()
            time.sleep(LOOK_SECONDS)
        for worker in at_work:
            # What was answered meanwhile is kept.
            self._look_at(worker)
        raise Interrupted("stopped; what was done is kept, and the same command continues", self.stop.signum or 2)
