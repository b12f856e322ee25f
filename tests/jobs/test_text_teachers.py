"""Every method on pipelines of text to images as they are loaded, with their text encoders and autoencoders."""

import pytest
import torch
from accelerate import Accelerator

from distillkit import Images, PromptList, load_teacher
from distillkit.engine.trainer import Trainer
from distillkit.jobs.recipe import recipe_of
from distillkit.parts import LPIPS
from distillkit.progress import Quiet
from distillkit.registry import registry
from distillkit.runs.config import resolve
from distillkit.testing.jobs import runs_on
from distillkit.testing.setup import synthetic_sources
from distillkit.testing.training import trainer_of, weights
from tests.models import pipelines

METHODS = ("consistency", "dmd", "dmd2", "kd", "progressive", "reflow", "sid")
VARIANTS = {
    "ect": {}, "f-distill": {"guidance": 4.0, "updates": 1}, "ladd": {},
    "meanflow": {"guidance": 4.0, "share": 1.0, "teacher_free": False},
    "scm": {"guidance": 4.0, "tangent": "jvp"}, "sida": {"guidance": 4.0}, "tcm": {"first_share": 0.0},
}  # fmt: skip
"""Methods of the same networks as another's: on two families, with settings that make them cheap."""
FAMILIES = {
    "Stable Diffusion": pipelines.stable_diffusion,
    "Stable Diffusion, v at zero terminal SNR": lambda folder: pipelines.stable_diffusion(
        folder, options={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    ),
    "XL": pipelines.sdxl,
    "DiT": pipelines.dit,
    "PixArt": pipelines.pixart,
    "Stable Diffusion 3": pipelines.sd3,
    "Flux": pipelines.flux,
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Teachers with a list of prompts, and noise for the data that methods ask for."""
    found, folder = {}, tmp_path_factory.mktemp("pipelines")

    def loaded(name):
        if name not in found:
            teacher = load_teacher(str(FAMILIES[name](folder / str(len(found)))), Quiet())
            if hasattr(teacher.conditioner, "encoder"):
                texts = [f"{word} cat" for word in ("a", "the", "no", "every")]
                teacher.conditioner = teacher.conditioner.with_prompts(PromptList(texts, "cats", "0" * 64))
            teacher.images = lambda device: registry().sources()[Images].synthetic(teacher, device)
            found[name] = teacher
        return found[name]

    return loaded


@pytest.mark.parametrize("method", METHODS)
def test_a_run_from_the_teacher_to_a_student_that_is_loaded_and_measured(method, teachers):
    runs_on(registry().method(method), teachers("Stable Diffusion"), {})


def test_a_run_of_several_steps_on_a_flow(teachers):
    runs_on(registry().method("dmd2"), teachers("Stable Diffusion 3"), {"evaluations": 2, "updates": 1})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_finite_on_every_family(method, family, teachers):
    guided = {"guidance": 4.0} if "guidance" in registry().method(method).Config.model_fields else {}
    if not teachers(family).conditioner.has_null:
        assert family == "Flux", "its guidance is an input"
        guided = {}
    # Flux reads 512 tokens of text with every picture.
    trainer = trainer_of(registry().method(method), teachers(family), guided, batch=2)
    for _ in range(trainer.recipe.student_every):
        trainer.train_step()
    assert all(value.isfinite().all() for value in weights(trainer).values())
    with torch.no_grad():
        step = trainer.student(torch.randn(2, *teachers(family).spec.shape), _condition(teachers(family)), _fresh)
    assert step.isfinite().all()


@pytest.mark.parametrize("family", ["XL", "Stable Diffusion 3"])
@pytest.mark.parametrize("method", VARIANTS)
def test_a_step_of_a_variant_is_finite_on_text(method, family, teachers):
    trainer = trainer_of(registry().method(method), teachers(family), VARIANTS[method], batch=2)
    trainer.train_step()
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_activations_that_are_recomputed_change_nothing(teachers):
    """Blocks of diffusers need more than the switch that they have."""
    trained = {}
    for saved in (False, True):
        trainer = trainer_of(registry().method("dmd2"), teachers("XL"), {}, gradient_checkpointing=saved)
        for _ in range(5):
            trainer.train_step()
        trained[saved] = weights(trainer)
        blocks = trainer.student.denoiser.model.unet.down_blocks
        assert all(block.gradient_checkpointing is saved for block in blocks)
    for name, value in trained[False].items():
        torch.testing.assert_close(trained[True][name], value, rtol=1e-4, atol=1e-6)


SD15 = ("hf:stable-diffusion-v1-5/stable-diffusion-v1-5", "hf:CompVis/stable-diffusion-v1-4")
SDXL = ("hf:stabilityai/stable-diffusion-xl-base-1.0",)


@pytest.mark.parametrize(
    ("method", "names", "family", "preset"),
    [
        *(
            (method, SD15, "Stable Diffusion", "sd15")
            for method in ("dmd", "dmd2", "f-distill", "sid", "consistency", "tcm", "progressive", "reflow")
        ),
        *((method, SDXL, "XL", "sdxl") for method in ("dmd", "dmd2", "f-distill", "consistency", "progressive")),
    ],
)
def test_presets_of_published_models_fit_them(method, names, family, preset, teachers, monkeypatch):
    # Reflow's last stage asks for it; the step here is of its first.
    monkeypatch.setattr(LPIPS, "pretrained", classmethod(lambda cls: cls(None)))
    offer = registry().named("methods")[method]
    found = [resolve(offer.value, options={"teacher": name})[1].name for name in names]
    assert found == [preset] * len(names)
    config, _ = resolve(offer.value, options={"teacher": names[0]})
    teacher = teachers(family)
    recipe = recipe_of(config, offer, teacher)
    times = {
        "dmd": (999,), "sid": (625,), "dmd2": (999, 749, 499, 249) if preset == "sdxl" else (999,),
        "consistency": (999, 759, 499, 259), "progressive": (999, 749, 499, 249, 0),
        "f-distill": (999,), "tcm": (999,), "reflow": (999,),
    }  # fmt: skip
    assert recipe.final_sampler.times(teacher.schedule) == times[method]
    assert config.training.warmup < 0.6 * config.training.duration
    guided = recipe.guidance if recipe.guidance is not None else config.sources["pairs"]["guidance"]
    assert guided > 1
    other, _ = resolve(offer.value, options={"teacher": names[0], "student": {"start_ratio": 2.0}})
    assert (other.student.start_ratio, other.student.times) == (2.0, None), "what is asked for wins over the preset"
    for objective in recipe.objectives:
        objective.prepare()
    training = config.training.model_copy(update={"batch": 2, "duration": 64, "precision": "fp32"})
    trainer = Trainer(
        recipe, teacher, training, accelerator=Accelerator(cpu=True), seed=0,
        sources=synthetic_sources(teacher, recipe.needs),
    )  # fmt: skip
    for _ in range(recipe.student_every):
        trainer.train_step()
    assert all(value.isfinite().all() for value in weights(trainer).values())


def _condition(teacher):
    return teacher.conditioner.encode(torch.tensor([0, 1]))


def _fresh(k):
    raise AssertionError("students of one step draw no fresh noise")
