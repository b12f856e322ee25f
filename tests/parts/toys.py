"""Teachers of every schedule and rank in a few numbers, and a step to try objectives and learners on."""

from __future__ import annotations

import torch
from torch import nn

from distillkit import ClassLabels, Condition, Images, Pairs, Pixels, Points, SampleRNG, Step, Teacher, TeacherSpec
from distillkit.diffusion import EDMSchedule, FlowSchedule, PredictionDenoiser, VPSchedule

SHAPES = {"points": (2,), "images": (3, 4, 4), "video": (2, 3, 4, 4)}
SCHEDULES = {
    "edm": (EDMSchedule(), "sample"),
    "vp": (VPSchedule(steps=100), "epsilon"),
    "vp, no signal at the end": (VPSchedule(steps=100, zero_terminal_snr=True), "v_prediction"),
    "flow": (FlowSchedule(shift=3.0), "velocity"),
}


class Toy(nn.Module):
    """F(x_t, t, condition): one linear layer over the channels, the level and the label added."""

    def __init__(self, channels: int, t_max: float) -> None:
        super().__init__()
        self.t_max = t_max
        self.bottleneck, self.last = nn.Linear(channels, 8), nn.Linear(8, channels)
        self.level, self.label = nn.Linear(1, 8), nn.Embedding(4, 8)

    @property
    def time_layers(self):
        return [self.level]

    def forward(self, x, t, condition):
        hidden = self.bottleneck(x.movedim(1, -1))
        embedded = self.level(t[:, None] / self.t_max) + self.label(condition["labels"] + 1)
        hidden = torch.tanh(hidden + embedded.reshape(len(x), *(1,) * (x.ndim - 2), 8))
        return self.last(hidden).movedim(-1, 1)


def toy_teacher(schedule: str = "edm", shape: str = "images") -> Teacher:
    """Three classes and the null label; random weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made, prediction = SCHEDULES[schedule]
        denoiser = PredictionDenoiser(Toy(SHAPES[shape][0], made.t_max), made, prediction)
    codec = Points() if shape == "points" else Pixels(video=shape == "video")
    return Teacher(denoiser, TeacherSpec(name="toy", shape=SHAPES[shape]), ClassLabels(classes=3), codec)


class Noise:
    """Batches of noise as pairs or images."""

    def __init__(self, teacher: Teacher, kind: type) -> None:
        self.teacher, self.kind = teacher, kind

    def batch(self, rng, step, indices):
        noise, sample = (rng.normal(name, step, indices, self.teacher.spec.shape) for name in ("z", "y"))
        condition = Condition(labels=torch.tensor([i % 3 for i in indices]))
        return Pairs(noise, sample, condition) if self.kind is Pairs else Images(sample, condition)


def step_of(recipe, teacher: Teacher, *, index: int = 0, size: int = 4, due: bool = True) -> Step:
    """A step of the recipe as the engine would make it, on noise for data."""
    return Step(
        index=index, indices=range(size), student=recipe.student, conditioner=teacher.conditioner, rng=SampleRNG(0),
        device=torch.device("cpu"), student_due=due, needs=recipe.needs,
        sources={kind: Noise(teacher, kind) for kind in (Pairs, Images)}, stage=recipe.stages[0],
    )  # fmt: skip


def gradients(recipe, teacher: Teacher, **how) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients of the student and of every learner after one step, in the engine's order."""
    step = step_of(recipe, teacher, **how)
    learnt = [p for learner in recipe.learners for p in learner.parameters()]
    for parameter in learnt:
        parameter.requires_grad_(False)
    sum(objective(step) * objective.weight for objective in recipe.objectives).backward()
    for parameter in learnt:
        parameter.requires_grad_(True)
    found = {"student": _gradients(recipe.student)}
    step.release()
    for learner in recipe.learners:
        learner.loss(step).backward()
        found[learner.name] = _gradients(learner)
    assert all(torch.equal(g, _gradients(recipe.student)[name]) for name, g in found["student"].items()), (
        "a learner's loss must not reach the student"
    )
    return found


def _gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
