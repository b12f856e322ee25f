"""Every method on every schedule and rank: losses and gradients are finite, and reach what they should."""

import pytest
import torch
from pydantic import ValidationError

from distillkit.registry import registry
from tests.parts.toys import gradients, toy_teacher

METHODS = {
    "kd": [{}, {"distance": "l1"}],
    "dmd": [{}, {"guidance": 2.0, "regression_weight": 0}],
    "dmd2": [{}, {"evaluations": 3}, {"gan_weight": 0}, {"gan_level_min": 0.4, "r1_weight": 1.0, "r1": "inputs"}],
    "f-distill": [{}, {"divergence": "jeffreys", "gan_features": "teacher", "guidance": 2.0}],
    "sid": [{}, {"guidance": 2.0, "fake_guidance": 1.5, "fake_levels": "grid"}],
    "sida": [{"gan_weight": 0.1, "r1_weight": 1.0}],
    "ladd": [{}, {"source": "images", "evaluations": 2, "r1": "inputs"}],
    "consistency": [{}, {"teacher_free": True, "source": "pairs", "weighting": "karras"}],
    "ect": [{}, {"curriculum": "ict"}, {"teacher_free": False, "source": "pairs", "target_decay": 0.5}],
    "tcm": [{}, {"first_share": 0.0, "teacher_free": False, "source": "pairs"}],
    "scm": [{"tangent_warmup": 0}, {"teacher_free": True, "source": "pairs", "tangent": "jvp", "adaptive": False}],
    "meanflow": [{"share": 1.0}, {"teacher_free": True, "source": "pairs", "tangent": "jvp"}],
    "progressive": [{"start_steps": 1}, {"start_steps": 8, "weighting": "snr+1", "source": "pairs"}],
    "reflow": [{}, {"rounds": 0, "distance": "pseudo-huber"}],
}


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [("edm", "points"), ("vp", "images"), ("vp, no signal at the end", "video"), ("flow", "points"), ("flow", "video")],
)
@pytest.mark.parametrize(("name", "settings"), [(name, s) for name, given in METHODS.items() for s in given])
def test_losses_and_gradients_are_finite(name, settings, schedule, shape):
    teacher, method = toy_teacher(schedule, shape), registry().method(name)
    recipe = method().recipe(teacher, method.Config(**settings))
    recipe.student.sampler = recipe.stages[0].sampler or recipe.student.sampler
    with torch.no_grad():  # scores that agree everywhere teach nothing
        for parameter in (p for learner in recipe.learners for p in learner.parameters()):
            parameter.add_(0.1)
    for role, found in gradients(recipe, teacher).items():
        assert found and all(g.isfinite().all() for g in found.values()), role
        assert any(g.abs().max() > 0 for g in found.values()), role
    assert all(p.grad is None for p in teacher.denoiser.parameters())


@pytest.mark.parametrize("name", ["consistency", "ect", "meanflow", "scm", "tcm"])
def test_guidance_is_refused_where_there_is_no_teacher_to_guide(name):
    settings = registry().method(name).Config
    with pytest.raises(ValidationError, match=r"guidance 2 is the teacher's.*--no-teacher-free"):
        settings(teacher_free=True, guidance=2.0)
    assert settings(teacher_free=False, guidance=2.0).guidance == 2 and settings(teacher_free=True).guidance == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_by_whole_sentences(name):
    assert registry().method(name).summary().endswith("."), registry().method(name).summary()


@pytest.mark.parametrize("name", METHODS)
def test_what_the_help_shows_of_a_setting_can_be_typed(name):
    from distillkit.cli.option_models import _show

    settings = registry().method(name).Config
    defaults = {key: default for key, default in settings().model_dump().items() if default is not None}
    typed = settings(**{key: _show(default) for key, default in defaults.items()}).model_dump()
    for key, default in defaults.items():
        assert typed[key] == pytest.approx(default), key


@pytest.mark.parametrize("name", METHODS)
def test_presets_say_only_what_differs_and_where_it_comes_from(name):
    from distillkit.counts import parse_count
    from distillkit.data.pairs import PairsConfig
    from distillkit.engine.config import TrainingConfig

    method = registry().method(name)
    for preset in method.presets:
        assert preset.source and "recalled" not in preset.source
        for model, values in (
            (method.Config, preset.settings), (TrainingConfig, preset.training), (PairsConfig, preset.pairs),
        ):  # fmt: skip
            whole = model.model_validate(values)
            for key, value in values.items():
                default = model.model_fields[key].get_default(call_default_factory=True)
                assert parse_count(value) != default, f"{preset.name}: {key} is the default"
                assert getattr(whole, key) == parse_count(value)
