"""A learner trained alone: its weights move, and what is kept is their moving average."""

import torch
from accelerate import Accelerator

from distillkit import Images
from distillkit.engine.config import TrainingConfig
from distillkit.engine.learning import LearnerTrainer
from distillkit.jobs.autoencoder import Autoencoder, AutoencoderConfig
from tests.jobs.test_parts import Served
from tests.models import pipelines


def test_what_is_kept_is_the_average_of_the_weights():
    torch.manual_seed(0)
    learner = Autoencoder(pipelines.vae(), AutoencoderConfig())
    config = TrainingConfig(batch=2, duration=6, lr=1e-2, ema_halflife="50%", ema_rampup=1.0, channels_last="off")
    trainer = LearnerTrainer(
        learner, config, accelerator=Accelerator(cpu=True), seed=0, sources={Images: Served(torch.rand(2, 3, 16, 16))}
    )
    weight = next(iter(learner.parameters()))
    kept = next(iter(trainer.ema.parameters()))
    average = weight.detach().clone()
    for seen in (2, 4, 6):
        before = weight.detach().clone()
        trainer.train_step()
        assert not torch.equal(weight, before)
        # Half-life of 3 images, at most the images that were seen.
        average.lerp_(weight.detach(), 1 - 0.5 ** (2 / min(3, seen)))
        torch.testing.assert_close(kept.detach(), average)
    assert learner.training and not trainer.ema.training
