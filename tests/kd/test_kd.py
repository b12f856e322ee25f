"""Knowledge distillation, and students with a network other than the teacher's."""

import pytest
import torch
from pydantic import ValidationError

from distillkit import UsageError, build_denoiser
from distillkit_kd.method import KDConfig, KnowledgeDistillation
from tests.parts.toys import gradients, step_of, toy_teacher


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_is_the_distance_to_the_teachers_sample(distance):
    teacher = toy_teacher("flow", "video")
    recipe = KnowledgeDistillation().recipe(teacher, KDConfig(distance=distance))
    step = step_of(recipe, teacher)
    off = recipe.student(step.pairs.noise, step.pairs.condition) - step.pairs.sample
    expected = off.abs().mean() if distance == "l1" else off.square().mean()
    torch.testing.assert_close(recipe.objectives[0](step), expected)
    assert recipe.guidance is None, "the guidance learnt is the pairs'"


def test_a_smaller_student(tiny_teacher):
    def size(network):
        return sum(p.numel() for p in network.parameters())

    recipe = KnowledgeDistillation().recipe(tiny_teacher, KDConfig(student_network={"model_channels": 4}))
    denoiser = recipe.student.denoiser
    assert size(denoiser) < size(tiny_teacher.denoiser) / 2
    assert denoiser.description["arguments"]["network"]["model_channels"] == 4
    assert denoiser.schedule == tiny_teacher.schedule and not denoiser.training
    rebuilt = build_denoiser(denoiser.description)
    rebuilt.load_state_dict(denoiser.state_dict())
    assert all(p.requires_grad for p in denoiser.parameters())
    found = gradients(recipe, tiny_teacher)["student"]
    assert any(g.abs().max() > 0 for g in found.values())


def test_no_change_is_the_same_network_with_fresh_weights(tiny_teacher):
    recipe = KnowledgeDistillation().recipe(tiny_teacher, KDConfig(student_network={}))
    mine, theirs = recipe.student.denoiser, tiny_teacher.denoiser
    assert mine.description == theirs.description
    assert any(not torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("text", ["{model_channels: 4}", "model_channels: 4", '{"model_channels": 4}'])
def test_the_command_line_gives_text(text):
    assert KDConfig(student_network=text).student_network == {"model_channels": 4}


@pytest.mark.parametrize("text", ["four", "[4]", "{model_channels: "])
def test_text_that_is_no_mapping_is_refused(text):
    with pytest.raises(ValidationError, match="student_network"):
        KDConfig(student_network=text)


def test_what_cannot_be_built_is_refused_by_name(tiny_teacher):
    with pytest.raises(UsageError, match="chanels"):
        KnowledgeDistillation().recipe(tiny_teacher, KDConfig(student_network={"chanels": 4}))
    with pytest.raises(UsageError, match="student_network"):
        KnowledgeDistillation().recipe(toy_teacher(), KDConfig(student_network={}))
