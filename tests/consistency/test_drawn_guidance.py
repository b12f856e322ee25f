"""Guidance drawn for every sample and given to the student as an input (Luo et al. 2023, Algorithm 1)."""

import pytest
import torch
from diffusers import DiffusionPipeline
from pydantic import ValidationError

from distillkit import StudentGenerator, UsageError, load_student, load_teacher, with_guidance_input
from distillkit.jobs.context import job_context
from distillkit.jobs.sample import make_samples
from distillkit.students.artifact import save_student
from distillkit.students.description import describe_student
from distillkit.students.export import export
from distillkit_consistency.method import Consistency, ConsistencyConfig
from tests.models.pipelines import flux, sdxl, stable_diffusion
from tests.parts.toys import step_of, toy_teacher

PROMPTS = ["a cat", "two dogs"]
DRAWN = {"guidance": 3.0, "guidance_min": 2.0, "guidance_max": 6.0, "solver": "ddim"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_teacher(str(stable_diffusion(tmp_path_factory.mktemp("teacher") / "sd")))


def recipe_of(teacher, **settings):
    return Consistency().recipe(teacher, ConsistencyConfig(**{"levels": 8, **DRAWN, **settings}))


def encoded(teacher):
    return teacher.conditioner.encode(teacher.conditioner.parse(PROMPTS))


def test_every_sample_can_have_its_own_weight(teacher):
    x, t, condition = torch.randn(2, *teacher.spec.shape), torch.tensor([700.0, 90.0]), encoded(teacher)
    with torch.no_grad():
        both = teacher(x, t, condition, torch.tensor([1.0, 5.0]))
        alone = [
            teacher(x[i : i + 1], t[i : i + 1], condition.select(slice(i, i + 1)), w) for i, w in ((0, 1.0), (1, 5.0))
        ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_network_with_the_input_is_the_same_function_until_it_is_trained(teacher):
    made = with_guidance_input(teacher.copy_denoiser())
    assert made.takes_guidance and not teacher.denoiser.takes_guidance
    assert made.description["arguments"]["network"]["time_cond_proj_dim"] == 256
    x, t, condition = torch.randn(2, *teacher.spec.shape), torch.tensor([700.0, 90.0]), encoded(teacher)
    guided = condition.extended(guidance=torch.tensor([1.0, 9.0]))
    assert torch.equal(made(x, t, guided), teacher.denoiser(x, t, condition))
    made(x, t, guided).square().sum().backward()
    assert made.model.unet.time_embedding.cond_proj.weight.grad.abs().max() > 0
    with torch.no_grad():
        made.model.unet.time_embedding.cond_proj.weight.normal_()
    lower = condition.extended(guidance=torch.tensor([1.0, 2.0]))
    apart = (made(x, t, guided) - made(x, t, lower)).abs().flatten(1).amax(1)
    assert apart[0] == 0 and apart[1] > 1e-3
    assert torch.equal(made(x, t, condition)[0], made(x, t, lower)[0]), "no weight is no guidance"
    assert with_guidance_input(made) is made
    with pytest.raises(UsageError, match="--guidance-max"):
        with_guidance_input(toy_teacher("vp").denoiser)


def test_the_teachers_step_has_the_weight_that_student_and_target_see(teacher, monkeypatch):
    recipe = recipe_of(teacher)
    [objective] = recipe.objectives
    asked, given = [], []
    call = type(teacher).__call__
    monkeypatch.setattr(
        type(teacher),
        "__call__",
        lambda self, x, t, c, w=1.0, **more: asked.append((c, w)) or call(self, x, t, c, w, **more),
    )
    for network in (recipe.student.denoiser, objective.modules()["target"]):
        network.register_forward_hook(lambda net, seen, out: given.append(seen[2]["guidance"]))
    x0, noise, condition = *torch.randn(2, 2, *teacher.spec.shape), encoded(teacher)
    step = step_of(recipe, toy_teacher("vp"), size=400)
    weights = objective.weights(step)
    assert 2 <= weights.min() < 2.1 and 5.9 < weights.max() <= 6 and weights.mean().item() == pytest.approx(4, abs=0.2)
    t, t_next = torch.tensor([999.0, 300.0]), torch.tensor([700.0, 100.0])
    assert objective.losses(recipe.student.denoiser, x0, noise, t, t_next, condition, weights[:2]).isfinite().all()
    [(seen, used)] = asked
    assert torch.equal(used, weights[:2]) and "guidance" not in seen
    assert len(given) == 2 and all(torch.equal(each, weights[:2]) for each in given)
    assert recipe.guidance == 3 and recipe.student.sampler.input_guidance == 3


def test_a_network_that_embeds_guidance_is_not_guided_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.models.diffusers.flux.SIDE", 8)
    teacher = load_teacher(str(flux(tmp_path / "flux")))
    recipe, given = recipe_of(teacher), []
    assert recipe.guidance == 1 and recipe.student.sampler.input_guidance == 3
    for network in (teacher.denoiser, recipe.student.denoiser):
        network.register_forward_hook(lambda net, seen, out: given.append((len(seen[0]), seen[2]["guidance"])))
    x0, noise, weights = *torch.randn(2, 2, *teacher.spec.shape), torch.tensor([2.0, 5.0])
    t, t_next = torch.tensor([1.0, 0.5]), torch.tensor([0.8, 0.2])
    [objective] = recipe.objectives
    objective.losses(recipe.student.denoiser, x0, noise, t, t_next, encoded(teacher), weights)
    assert len(given) == 2 and all(count == 2 and torch.equal(each, weights) for count, each in given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 1.0}, "guidance 1.*2 to 6"),
        ({"guidance_min": 3.0, "guidance": 2.0}, "outside"),
        ({"guidance_min": 7.0}, "guidance_min 7 must be at most guidance_max 6"),
        ({"teacher_free": True}, "teacher_free"),
    ],
)
def test_weights_that_cannot_be_drawn_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ConsistencyConfig(**{**DRAWN, **settings})
    with pytest.raises(ValidationError, match="guidance_min 3 draws nothing without guidance_max"):
        ConsistencyConfig(guidance_min=3.0)
    assert ConsistencyConfig(**{**DRAWN, "guidance": 9.0, "guidance_max": 0.0}).drawn is None


def saved(teacher, folder):
    """A student of the method whose weights, the input's among them, are not the teacher's; loaded again."""
    recipe = recipe_of(teacher)
    student: StudentGenerator = recipe.student
    torch.manual_seed(1)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.05 * torch.randn_like(value))
    student.sampler = student.sampler.with_levels((999.0, 759.0, 499.0, 259.0))
    description = describe_student(
        student, teacher, method="consistency", method_package="c 1", guidance=recipe.guidance
    )
    save_student(folder, student, description)
    return load_student(folder)


@pytest.mark.parametrize("family", [stable_diffusion, sdxl])
def test_the_exported_pipelines_guidance_is_that_of_the_student(tmp_path, family):
    student = saved(load_teacher(str(family(tmp_path / "teacher"))), tmp_path / "student")
    export(student, "diffusers", tmp_path / "out", self_contained=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "guidance_scale=3.0" in card and "an input of the network" in card
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    noise, *more = [torch.randn(2, *student.generator.shape, generator=generator) for _ in range(4)]
    found = {}
    for weight in (1.0, 3.0, 5.5):
        sampled = student.with_guidance(weight)
        assert sampled.description.guidance == weight
        with torch.no_grad():
            ours = sampled.generator(noise, encoded(student), lambda k: more[k])
        theirs = pipeline(
            PROMPTS, timesteps=[999, 759, 499, 259], guidance_scale=weight, output_type="latent",
            generator=torch.Generator().manual_seed(3),
        ).images  # fmt: skip
        scale = ours.abs().max().item()
        torch.testing.assert_close(theirs / scale, ours / scale, rtol=0, atol=1e-4)
        found[weight] = ours
    with torch.no_grad():
        own = student.generator(noise, encoded(student), lambda k: more[k])
    assert torch.equal(own, found[3.0]) and (found[1.0] - found[5.5]).abs().max() > 1e-2


def test_samples_of_a_student_with_a_chosen_weight(teacher, tmp_path):
    student = saved(teacher, tmp_path / "student")
    with job_context(device="cpu", quiet=True) as context:
        made = [
            make_samples(str(tmp_path / "student"), 2, context, prompts=PROMPTS, guidance=w).decoded
            for w in (None, 3, 5)
        ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(made[2], student.with_guidance(5.0)(2, prompts=PROMPTS))


def test_a_weight_that_was_never_drawn_is_said(teacher, tmp_path, caplog, capsys):
    student = saved(teacher, tmp_path / "student")
    assert student.generator.sampler.trained_guidance == (2.0, 6.0)
    said = []
    for weight in (2.0, 4.0, 6.0):
        student.with_guidance(weight, said.append)
    assert not said
    assert student.with_guidance(6.5, said.append).description.guidance == 6.5
    student.with_guidance(1.5)
    told = "note: guidance {} lies outside of 2 to 6, which the student was trained with".format
    assert said == [told("6.5")] and caplog.messages == [told("1.5")]
    with job_context(device="cpu") as context:
        make_samples(str(tmp_path / "student"), 1, context, prompts=PROMPTS[:1], guidance=9)
    assert told("9") in " ".join("".join(capsys.readouterr()).split())
