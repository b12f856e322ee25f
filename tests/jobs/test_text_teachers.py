"""Every method on pipelines of text to images as they are loaded, with their text encoders and autoencoders."""

import pytest
import torch

from distillkit import Images, PromptList, load_teacher
from distillkit.progress import Quiet
from distillkit.registry import registry
from distillkit.testing.jobs import runs_on
from distillkit.testing.training import trainer_of, weights
from tests.models import pipelines

METHODS = ("consistency", "dmd", "dmd2", "kd", "progressive", "sid")
FAMILIES = {
    "Stable Diffusion": pipelines.stable_diffusion,
    "Stable Diffusion, v at zero terminal SNR": lambda folder: pipelines.stable_diffusion(
        folder, options={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    ),
    "XL": pipelines.sdxl,
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_finite_on_every_family(method, family, teachers):
    guided = {"guidance": 4.0} if "guidance" in registry().method(method).Config.model_fields else {}
    trainer = trainer_of(registry().method(method), teachers(family), guided)
    for _ in range(trainer.recipe.student_every):
        trainer.train_step()
    assert all(value.isfinite().all() for value in weights(trainer).values())
    with torch.no_grad():
        step = trainer.student(torch.randn(2, *teachers(family).spec.shape), _condition(teachers(family)), _fresh)
    assert step.isfinite().all()


def _condition(teacher):
    return teacher.conditioner.encode(torch.tensor([0, 1]))


def _fresh(k):
    raise AssertionError("students of one step draw no fresh noise")
