"""DMD's presets and switches."""

import pytest

from distillkit import OneStep
from distillkit.parts import distance_for
from distillkit.registry import registry
from distillkit_dmd.method import DMD, DMDConfig
from tests.parts.toys import gradients, step_of, toy_teacher


@pytest.mark.parametrize(
    ("teacher", "weight", "pairs", "steps", "lr", "batch"),
    [
        ("edm-cifar10-cond", 0.25, 100_000, None, 5e-5, 392),
        ("edm-cifar10-uncond-ve", 0.5, 500_000, None, 5e-5, 392),
        ("edm-imagenet64", 0.25, 25_000, 256, 2e-6, 336),
    ],
)
def test_presets_are_the_papers(teacher, weight, pairs, steps, lr, batch):
    preset = DMD.preset_for(teacher)
    assert DMDConfig(**preset.settings).regression_weight == weight
    assert (preset.pairs["count"], preset.pairs.get("steps")) == (pairs, steps)
    assert (preset.training["lr"], preset.training["batch"]) == (lr, batch)
    assert preset.training["duration"] == "117.6M", "300,000 iterations of 392 or 350,000 of 336"
    assert DMD.preset_for("somebody-elses") is None


@pytest.mark.parametrize(
    ("settings", "objectives", "learners"),
    [
        ({}, ["distribution_matching", "regression"], ["fake_score"]),
        ({"kl_weight": 0}, ["regression"], []),
        ({"regression_weight": 0}, ["distribution_matching"], ["fake_score"]),
    ],
)
def test_a_term_that_is_off_costs_nothing(settings, objectives, learners):
    teacher = toy_teacher()
    recipe = DMD().recipe(teacher, DMDConfig(**settings))
    assert [o.name for o in recipe.objectives] == objectives
    assert [learner.name for learner in recipe.learners] == learners
    assert set(gradients(recipe, teacher)) == {"student", *learners}


def test_settings_reach_the_recipe():
    config = DMDConfig(
        kl_weight=0.5, regression_weight=2, distance="l1", guidance=3, level_min=0.5, level_max=0.6, fake_lr=1e-3,
        fake_updates=4,
    )  # fmt: skip
    recipe = DMD().recipe(toy_teacher(), config)
    kl, regression = recipe.objectives
    assert (kl.weight, kl.guidance, len(kl.times)) == (0.5, 3, 101)
    assert (regression.weight, regression.distance.name) == (2, "l1")
    assert recipe.learners[0].optimizer.model_dump(exclude_unset=True) == {"lr": 1e-3}
    assert (recipe.student_every, recipe.guidance) == (4, 3)
    assert recipe.student.sampler == OneStep()


def test_a_student_trained_with_lpips_says_so():
    teacher = toy_teacher()
    teacher.spec = teacher.spec.model_copy(update={"shape": (3, 32, 32)})
    assert distance_for(teacher).name == "lpips"
    remarks = [objective.remark for objective in DMD().recipe(teacher, DMDConfig()).objectives]
    assert remarks[0] == "" and "LPIPS" in remarks[1]


@pytest.mark.parametrize(("guidance", "name"), [(1.0, "fake_to_real_error"), (3.0, "fake_to_guided_error")])
@pytest.mark.parametrize("method", ["dmd", "dmd2", "f-distill", "sid", "sida"])
def test_the_fake_score_is_judged_by_what_a_guided_teacher_makes_of_it(method, guidance, name):
    """One that is exact is far better than a guided teacher on the student's samples, so 1 is no sign of health."""
    teacher, offer = toy_teacher(), registry().method(method)
    recipe = offer().recipe(teacher, offer.Config(guidance=guidance, **({"distance": "l2"} if method == "dmd" else {})))
    step, objective = step_of(recipe, teacher), recipe.objectives[0]
    objective(step)
    [diagnostic] = [found for found in objective.diagnostics if found.name.startswith("fake_to_")]
    assert diagnostic.name == name and step.logged[name] > 0
    assert {logged for logged in step.logged if logged.startswith("fake_to_")} == {name}
    assert diagnostic.ok[0] == (0.85 if guidance == 1 else 0) and diagnostic.ok[1] == 1.3
