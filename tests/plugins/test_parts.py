"""Parts from outside: a plugin's own network, conditioner, codec, sampler and source make students that load."""

import re

import pytest
import torch

from distillkit import DistillkitError, UsageError, distil, evaluate, load_student
from distillkit.registry import BUILT_IN, KINDS, registry
from distillkit.testing import CHECKS
from distillkit.testing.setup import parts_of

PARTS = '''
import torch
from pydantic import Field

from distillkit import (
    Codec, Condition, Conditioner, Denoiser, Method, Objective, Pixels, Recipe, Sampler, Source, SourceConfig,
    StudentGenerator, Teacher, TeacherSpec, build_denoiser, hookimpl,
)
from distillkit.diffusion import FlowSchedule, euler_step, l2

DISTILLKIT_API = 2


class Line(Denoiser):
    """A denoiser of sequences (B, 2, L), which are neither images nor points."""

    def __init__(self, width):
        super().__init__()
        self.schedule = FlowSchedule()
        self.first, self.last = torch.nn.Conv1d(3, width, 3, padding=1), torch.nn.Conv1d(width, 2, 3, padding=1)

    def forward(self, x, t, condition):
        level = (t + condition["phase"]).to(x.dtype)[:, None, None].expand(-1, 1, x.shape[2])
        return self.last(self.first(torch.cat([x, level], 1)).tanh())


class Phases(Conditioner):
    phases: int

    @property
    def count(self):
        return self.phases

    def encode(self, keys):
        return Condition(phase=keys.float() / self.phases)


class Drawn(Codec):
    """Sequences (B, 2, L) as pictures (B, 1, 2, L)."""

    @property
    def content(self):
        return "images"

    def decode(self, samples):
        return Pixels().decode(samples[:, None])

    def encode(self, data):
        return Pixels().encode(data)[:, 0]

    def decoded_shape(self, shape):
        return (1, *shape)

    def encoded_shape(self, shape):
        return tuple(shape[1:])


class TwoSteps(Sampler):
    middle: float

    def __call__(self, denoiser, noise, condition, renoise=None):
        schedule, size = denoiser.schedule, len(noise)
        t, middle = (torch.full((size,), level, device=noise.device) for level in (schedule.t_max, self.middle))
        x = schedule.start(noise)
        x = euler_step(schedule, x, denoiser(x, t, condition), t, middle)
        return denoiser(x, middle, condition)


class Trajectories:
    """Points of the teacher's trajectories: noise, the way and the sample."""

    def __init__(self, noise, points, condition):
        self.noise, self.points, self.condition = noise, points, condition


class TrajectoryConfig(SourceConfig):
    steps: int = Field(3, ge=1, description="points of a trajectory")


class TrajectorySource(Source):
    name, batch_type, Config = "ways", Trajectories, TrajectoryConfig

    def open(self, job):
        return Solved(self.teacher, self.config.steps, job.device)

    @classmethod
    def synthetic(cls, teacher, device):
        return Solved(teacher, 2, device)


class Solved:
    def __init__(self, teacher, steps, device):
        self.teacher, self.steps, self.device = teacher, steps, device

    def batch(self, rng, step, indices):
        noise = rng.normal("ways", step, indices, self.teacher.spec.shape).to(self.device)
        keys = self.teacher.conditioner.draw(rng.uniform("ways/keys", step, indices))
        condition = self.teacher.conditioner.encode(keys.to(self.device))
        points = [self.teacher.sample(noise, condition, steps=1 + k) for k in range(self.steps)]
        return Trajectories(noise, torch.stack(points, 1), condition)


class Along(Objective):
    needs = (Trajectories,)

    def __call__(self, step):
        way = step[Trajectories]
        return l2(step.student(way.noise, way.condition), way.points[:, -1]).mean()


class Ways(Method):
    """Follows trajectories."""

    name = "ways"

    def recipe(self, teacher, config):
        schedule = teacher.schedule
        middle = schedule.at(torch.ones(1, dtype=torch.float64)).item()
        student = StudentGenerator(teacher.copy_denoiser(), TwoSteps(middle=middle), teacher.spec.shape)
        return Recipe(student, [Along()])


def load():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = build_denoiser({"kind": "my-parts:Line", "arguments": {"width": 4}})
    spec = TeacherSpec(name="lines", shape=(2, 6), solver_steps=2)
    return Teacher(denoiser, spec, Phases(phases=3), Drawn())


@hookimpl
def distillkit_methods():
    return [Ways]


@hookimpl
def distillkit_networks():
    return {"Line": Line}


@hookimpl
def distillkit_samplers():
    return {"TwoSteps": TwoSteps}


@hookimpl
def distillkit_conditioners():
    return {"Phases": Phases}


@hookimpl
def distillkit_codecs():
    return {"Drawn": Drawn}


@hookimpl
def distillkit_sources():
    return {"ways": TrajectorySource}


@hookimpl
def distillkit_teachers():
    return {"lines": load}
'''


@pytest.fixture
def parts(install, tmp_path):
    """The plugin, installed under a name that Python spells otherwise; returns what removes it."""
    remove = install("my_parts", PARTS)
    metadata = next((tmp_path / "site").glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text().replace("Name: my_parts", "Name: my-parts"))
    registry.cache_clear()
    return remove


def test_a_student_of_foreign_parts_is_saved_loaded_measured_and_refused_without_them(parts, tmp_path):
    run = distil(
        "ways", "lines", output_dir=tmp_path / "run", quiet=True, device="cpu", duration=64, batch=8, lr=1e-3,
        ways_steps=2, protocol="conformance", evaluation_samples=32,
    )  # fmt: skip
    assert run.config.sources["ways"] == {"steps": 2}
    student = load_student(tmp_path / "run")
    description = student.description
    assert description.network == {"kind": "my-parts:Line", "arguments": {"width": 4}}
    assert description.sampler["kind"] == "my-parts:TwoSteps" and description.codec == {"kind": "my-parts:Drawn"}
    assert description.conditioner == {"kind": "my-parts:Phases", "phases": 3} and student.nfe == 2
    assert student(4, seed=0).shape == (4, 1, 2, 6) and student(4, seed=0).equal(run.student(4, seed=0))
    again = evaluate(tmp_path / "run", "conformance", samples=32, quiet=True)
    assert again.figures[again.label].value == pytest.approx(run.record.figures[run.record.label].value)
    parts()
    with pytest.raises(UsageError, match="pip install my-parts"):
        load_student(tmp_path / "run")


def test_the_kit_gives_a_method_its_own_source(parts):
    method = registry().named("methods")["ways"].value
    teacher = registry().named("teachers")["lines"].value()
    step = parts_of(method, teacher, {}).step()
    [kind] = parts_of(method, teacher, {}).recipe.needs
    assert step[kind].points.shape == (8, 2, 2, 6) and kind.__name__ == "Trajectories"
    for check in ("needs_are_what_is_used", "every_pass_is_counted", "steps_are_deterministic", "resume_is_exact"):
        CHECKS[check](method, {})


BASES = {
    "methods": "Method", "samplers": "Sampler", "conditioners": "Conditioner", "codecs": "Codec", "sources": "Source",
    "encoders": "TextEncoder",
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trackers"])
def test_the_built_in_name_wins_for_every_kind(install, kind):
    name = next(name for name, offer in registry().named(kind).items() if offer.package == BUILT_IN)
    base, body = BASES.get(kind, "Denoiser"), f"name = {name!r}" if kind in ("methods", "sources") else "pass"
    value = "[Taken]" if kind == "methods" else f"{{{name!r}: Taken}}"
    install(
        "newcomer",
        f"from distillkit import {base}, hookimpl\n\n\nclass Taken({base}):\n    {body}\n\n\n"
        f"@hookimpl\ndef distillkit_{kind}():\n    return {value}\n",
    )
    found = registry()
    assert not found.broken and found.find(kind, name).package == BUILT_IN
    assert "newcomer 1.2" in found.refused[kind, name] and repr(name) in found.refused[kind, name]


def test_no_plugin_gets_a_tracker_that_two_offer(install):
    code = "from distillkit import hookimpl\n\n\n@hookimpl\ndef distillkit_trackers():\n    return {'lines': print}\n"
    install("first", code)
    install("second", code)
    with pytest.raises(UsageError, match=r"second 1\.2"):
        registry().find("trackers", "lines")


def test_a_part_whose_fields_do_not_fit_is_named(parts):
    with pytest.raises(DistillkitError, match=re.escape("my-parts:Phases")):
        registry().build("conditioners", {"kind": "my-parts:Phases", "phases": "many"})
    assert torch.equal(registry().build("conditioners", {"kind": "my-parts:Phases", "phases": 4}).encode(
        torch.tensor([2]))["phase"], torch.tensor([0.5]))  # fmt: skip
