"""Noise levels: that networks are asked at all of them, with inputs that are as noisy, under any schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.learner import ScoreEstimator
from distillkit.contracts.method import Method
from distillkit.engine.losses import loss_of
from distillkit.errors import DistillkitError
from distillkit.testing.calls import Call, calls_of_step, names_of, recorded, recorded_draws
from distillkit.testing.failure import CheckFailure
from distillkit.testing.rescaled import rescaled
from distillkit.testing.setup import Parts, Settings, parts_of
from distillkit.testing.teachers import conditional, smallest

STEPS = 3


def levels_and_conditions_vary(method: type[Method], settings: Settings) -> None:
    """Every part asks every network at other noise levels in other steps, and under other conditions."""
    parts = parts_of(method, smallest(), settings, apart=True)
    steps = [calls_of_step(parts, index) for index in range(STEPS)]
    names = names_of(parts)
    for part in steps[0]:
        calls = [[call for call in step[part] if not call.partial] for step in steps]
        fixed = _trained_at_its_only_level(parts, [call for step in calls for call in step])
        for network in _networks(calls[0]):
            own = [[call for call in step if call.network is network] for step in calls]
            name = f"{part} asks {names.get(id(network), f'a {type(network).__name__}')}"
            free = [[call.t for call in step if not call.sampling] for step in own]
            if not fixed and all(free) and all(_equal(free[0], other) for other in free[1:]):
                raise CheckFailure(
                    f"{name} at the same noise levels in every step ({torch.cat(free[0]).unique()[:4].tolist()})",
                    "what is learnt at some levels alone says nothing of the others",
                    'draw levels in every step: step.uniform("level") or step.drawn_from(levels, "level")',
                )
            if _one_condition([call for step in own for call in step]):
                raise CheckFailure(
                    f"{name} under one condition alone",
                    "a class-conditional student would be trained towards one class",
                    "hand the conditions through: step.condition, step.pairs.condition or step.images.condition",
                )


def inputs_fit_their_levels(method: type[Method], settings: Settings) -> None:
    """What a network is given at a noise level holds that much noise."""
    parts = parts_of(method, smallest(), settings, apart=True)
    steps = [calls_of_step(parts, index) for index in range(STEPS)]
    names = names_of(parts)
    for part in steps[0]:
        calls = [call for step in steps for call in step[part]]
        # Samples without noise are as large as inputs at the lowest levels, and as data.
        clean = max([1.0, *(size for call in calls for size in _rms(call.x)[_ratios(call) < 0.1].tolist())])
        for network in _networks(calls):
            own = [call for call in calls if call.network is network]
            x = torch.cat([_rms(call.x) for call in own])
            t = torch.cat([call.t.to(torch.float64) for call in own])
            alpha, sigma = network.schedule.alpha(t), network.schedule.sigma(t)
            low, high = x < 0.5 * sigma, x > 3 * (alpha * clean + sigma)
            for wrong, word in ((low, "less"), (high, "more")):
                if wrong.double().mean() > 0.1:
                    worst = int(wrong.nonzero()[0])
                    raise CheckFailure(
                        f"{part} asks {names.get(id(network), type(network).__name__)} at t = {t[worst]:.3g} with "
                        f"inputs of size {x[worst]:.3g}, where x_t has noise of size {sigma[worst]:.3g}: {word} than "
                        "there should be",
                        "a denoiser that is asked at another level than its input's answers at random",
                        "make inputs by denoiser.schedule.add_noise(x0, noise, t) and ask at the same t",
                    )


def schedules_are_respected(method: type[Method], settings: Settings) -> None:
    """The same teacher on another scale of samples and of time gives gradients of the same direction."""
    teacher = conditional()
    directions = []
    for given in (teacher, rescaled(teacher)):
        try:
            parts = parts_of(method, given, settings, apart=True)
        except DistillkitError:
            return  # made for one family of models, and says so
        directions.append(_directions(parts))
    for name, first in directions[0].items():
        cosine = torch.nn.functional.cosine_similarity(first, directions[1][name], dim=0)
        if first.norm() > 0 and not cosine > 0.999:
            raise CheckFailure(
                f"the gradient of {name} changes its direction (cosine {cosine:.3f}) when the same teacher counts "
                "noise levels and samples on another scale: alpha 0.5 instead of 1, times three times as large",
                "the method would be another one for models of another family (vp, flow)",
                "use schedule.add_noise, schedule.ratio, schedule.at, schedule.grid and schedule.start; a time t is no "
                "noise level",
            )


def score_estimators_follow_the_student(method: type[Method], settings: Settings) -> None:
    """Score estimators are drawn to the student's own samples, at low noise levels most."""
    parts = parts_of(method, smallest(), settings, apart=True)
    for learner in parts.recipe.learners:
        if isinstance(learner, ScoreEstimator):
            ratios, cosines, factors = _denoising_gradients(parts, learner)
            if len(cosines) and cosines.mean() < 0.5:
                raise CheckFailure(
                    f"the loss of {learner.name} does not draw its answers to the student's samples (cosine "
                    f"{cosines.mean():.2f})",
                    "it would be the score of another distribution than the student's",
                    "denoise step.samples.detach() under step.condition, and compare with the same samples",
                )
            order = ratios.argsort()
            quarter = len(order) // 4
            if quarter and not factors[order[:quarter]].median() > 1.2 * factors[order[-quarter:]].median():
                raise CheckFailure(
                    f"the loss of {learner.name} weighs errors at low noise levels no more than at high ones",
                    "errors at low noise are small, so that all detail would be learnt last or never",
                    "weigh the squared error by denoiser.loss_weight(t), or by a falling function of schedule.ratio(t)",
                )


def streams_are_separate(method: type[Method], settings: Settings) -> None:
    """No part draws the stream of the student's input noise or conditions a second time."""
    parts = parts_of(method, smallest(), settings)
    step = parts.step()
    with recorded_draws() as purposes:
        parts.student_loss(step)
        for learner in parts.recipe.learners:
            loss_of(learner, step)
    drawn = vars(step)  # "noise" and "condition" are there once the step has drawn them itself
    again = [p for p in ("noise", "condition") if "noise" in drawn and purposes.count(p) > (p in drawn)]
    if again:
        raise CheckFailure(
            f"the stream {again[0]!r}, from which the student's inputs are drawn, is drawn again",
            "the noise would be the very noise that the samples were made from, and no noise at all",
            f'give the draw a purpose of its own, such as step.normal("kl/{again[0]}")',
        )


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _networks(calls: Sequence[Call]) -> list[Denoiser]:
    return list({id(call.network): call.network for call in calls}.values())


def _one_condition(calls: Sequence[Call]) -> bool:
    """Whether all calls are under conditions, and all these are one."""
    rows = [
        torch.cat([value.flatten(1).double() for value in map(_rows, c.condition.values())], 1)
        for c in calls
        if c.condition
    ]
    return bool(rows) and all(bool((row == rows[0][:1]).all()) for row in rows)


def _rows(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1)


def _trained_at_its_only_level(parts: Parts, calls: Sequence[Call]) -> bool:
    """Whether the student takes one evaluation and is trained at its level: there is no other to learn."""
    step, student = parts.step(needs=()), parts.recipe.student
    with torch.no_grad(), recorded() as sampling:
        student(step.noise, step.condition, lambda k: step.normal(f"check/{k}"))
    levels = [call.t for call in calls if call.network is student.denoiser and not call.sampling]
    return len(sampling) == 1 and bool(levels) and bool((torch.cat(levels) == sampling[0].t[0]).all())


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).double().square().mean(1).sqrt()


def _ratios(call: Call) -> Tensor:
    return call.network.schedule.ratio(call.t.to(torch.float64))


def _directions(parts: Parts) -> dict[str, Tensor]:
    """The gradient of every objective for the student, and of every learner for itself, over some steps."""
    found = {}
    student = parts.recipe.student
    for objective in parts.recipe.objectives:
        student.zero_grad()
        for index in range(STEPS):
            loss = parts.student_loss(parts.step(index), [objective])
            if loss.requires_grad:
                loss.backward()
        found[f"the objective {objective.name}"] = _gradient(student)
    for learner in parts.recipe.learners:
        learner.zero_grad()
        for index in range(STEPS):
            loss_of(learner, parts.step(index)).backward()
        found[f"the learner {learner.name}"] = _gradient(learner)
    return found


def _gradient(module: nn.Module) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in module.parameters()]
    )


def _denoising_gradients(parts: Parts, learner: ScoreEstimator) -> tuple[Tensor, Tensor, Tensor]:
    """Of every denoised sample: its noise level, the cosine between the gradient and the error, and their quotient."""
    ratios, cosines, factors = [], [], []
    for index in range(2 * STEPS):
        step = parts.step(index)
        step.release()
        answers: list[tuple[Tensor, Tensor]] = []

        def keep(module: Denoiser, args: tuple[Tensor, ...], out: Tensor, kept: list[tuple[Tensor, Tensor]] = answers):  # type: ignore[no-untyped-def]
            if out.requires_grad:
                out.retain_grad()
                kept.append((args[1], out))

        handle = learner.denoiser.register_forward_hook(keep)
        loss_of(learner, step).backward()
        handle.remove()
        for t, answer in answers:
            if answer.grad is not None and len(answer) == len(step) and "samples" in vars(step):
                error = (answer - step.samples).detach().flatten(1)
                gradient = answer.grad.flatten(1)
                ratios.append(learner.denoiser.schedule.ratio(t))
                cosines.append(torch.nn.functional.cosine_similarity(gradient, error))
                factors.append(gradient.norm(dim=1) / error.norm(dim=1))
    empty = torch.zeros(0)
    return tuple(torch.cat(v) if v else empty for v in (ratios, cosines, factors))  # type: ignore[return-value]
