"""A plugin's own kind of data: its batch type, its source, and an objective that reads it."""

import pytest
import torch

from distillkit import OneStep, SampleRNG, SourceJob, Step, StudentGenerator, UsageError
from distillkit import registry as registries
from distillkit.registry import load_file, registry
from tests.data.teachers import linear_teacher

CPU = torch.device("cpu")
PLUGIN = '''
from dataclasses import dataclass

import torch
from pydantic import Field

import distillkit
from distillkit import Condition, Objective, Source, SourceConfig, SourcePlan, UsageError
from distillkit.diffusion import euler_step


@dataclass(frozen=True)
class Trajectories:
    """States (B, S, ...) of the teacher's ODE at `times` (S,), and conditions."""

    states: torch.Tensor
    times: torch.Tensor
    condition: Condition


class TrajectoryConfig(SourceConfig):
    steps: int = Field(4, ge=2, description="states of a trajectory")


class Solved:
    """Trajectories solved when they are asked for."""

    def __init__(self, teacher, steps, device):
        self.teacher, self.device = teacher, device
        self.times = teacher.schedule.grid(steps).float()

    def batch(self, rng, step, indices):
        teacher, schedule = self.teacher, self.teacher.schedule
        keys = teacher.conditioner.draw(rng.uniform("trajectories/condition", step, indices))
        condition = teacher.conditioner.encode(keys).to(self.device)
        x = schedule.start(rng.normal("trajectories/noise", step, indices, teacher.spec.shape).to(self.device))
        states = [x]
        for t, t_next in zip(self.times[:-1], self.times[1:]):
            t, t_next = t.expand(len(x)), t_next.expand(len(x))
            x = euler_step(schedule, x, teacher(x, t, condition), t, t_next)
            states.append(x)
        return Trajectories(torch.stack(states, 1), self.times, condition)


class TrajectorySource(Source[Trajectories]):
    name = "trajectories"
    batch_type = Trajectories
    Config = TrajectoryConfig

    def check(self):
        if self.config.steps > 100:
            raise UsageError("--trajectories-steps: at most 100")

    @property
    def cost(self):
        return self.config.steps - 1

    def plan(self):
        return SourcePlan(f"trajectories of {self.config.steps} states, solved as they are read")

    def open(self, job):
        return Solved(self.teacher, self.config.steps, job.device)

    @classmethod
    def synthetic(cls, teacher, device):
        return Solved(teacher, 2, device)


class Following(Objective):
    """The student's output against the last state."""

    name = "following"
    needs = (Trajectories,)

    def __call__(self, step):
        batch = step[Trajectories]
        start = batch.states[:, 0] / step.student.schedule.t_max
        return (step.student(start, batch.condition) - batch.states[:, -1]).square().mean()


@distillkit.hookimpl
def distillkit_sources():
    return {"trajectories": TrajectorySource}
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(registries, "_FILES", [])
    registry.cache_clear()
    path = tmp_path / "own.py"
    path.write_text(PLUGIN)
    load_file(path)
    yield registry().find("sources", "trajectories")
    registry.cache_clear()


def step_of(teacher, source, needs, indices, device=CPU):
    return Step(
        index=3, indices=indices, student=StudentGenerator(teacher.copy_denoiser(), OneStep(), teacher.spec.shape),
        conditioner=teacher.conditioner, rng=SampleRNG(0), device=device, needs=frozenset(needs),
        sources=dict.fromkeys(needs, source),
    )  # fmt: skip


def test_it_is_offered_beside_the_built_in_ones(plugin):
    assert plugin.kind == "own.py:trajectories"
    assert {"pairs", "data"} <= set(registry().named("sources"))


def test_an_objective_reads_it_through_the_step(plugin):
    module = __import__("sys").modules["distillkit_file_own"]
    teacher = linear_teacher((3, 8, 8))
    source = plugin.value(teacher, plugin.value.Config.model_validate({"steps": 5}))
    source.check()
    assert source.cost == 4 and "5 states" in source.plan().summary
    opened, objective = source.open(SourceJob(CPU)), module.Following()
    whole = step_of(teacher, opened, objective.needs, range(6))
    batch = whole[module.Trajectories]
    assert batch.states.shape == (6, 5, 3, 8, 8) and batch is whole[module.Trajectories], "drawn once"
    part = step_of(teacher, opened, objective.needs, range(2, 6))
    torch.testing.assert_close(part[module.Trajectories].states, batch.states[2:], rtol=1e-5, atol=1e-4)
    objective(whole).backward()
    assert whole.student.denoiser.weight.grad.abs() > 0
    undeclared = step_of(teacher, opened, (), range(2))
    with pytest.raises(RuntimeError, match="Trajectories"):
        undeclared[module.Trajectories]


def test_its_settings_and_checks_are_its_own(plugin):
    with pytest.raises(ValueError, match="steps"):
        plugin.value.Config.model_validate({"steps": 1})
    with pytest.raises(UsageError, match="trajectories-steps"):
        plugin.value(linear_teacher(), plugin.value.Config.model_validate({"steps": 101})).check()


def test_its_synthetic_twin_serves_the_same_type(plugin):
    batch = plugin.value.synthetic(linear_teacher((3, 8, 8)), CPU).batch(SampleRNG(0), 0, range(4))
    assert type(batch).__name__ == "Trajectories" and batch.states.shape[:1] == (4,)
