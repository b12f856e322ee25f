"""Networks that constrain their weights, in a training."""

from __future__ import annotations

from distillkit.contracts.method import Method
from distillkit.models.edm2.layers import MPConv
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import Settings
from distillkit.testing.teachers import magnitude_preserving
from distillkit.testing.training import trainer_of

RATE = 0.02
"""A learning rate that takes weights well out of their constraint in one update."""
CLOSE = 1e-3


def constraints_hold_after_updates(method: type[Method], settings: Settings) -> None:
    """Student and learners made of a network that normalises its weights have them normalised after every update
    (`Denoiser.after_update`)."""
    trainer = trainer_of(method, magnitude_preserving(), settings, lr=RATE)
    for _ in range(max(2, trainer.recipe.student_every)):
        trainer.train_step()
    for role, module in {"student": trainer.student, **{part.name: part for part in trainer.recipe.learners}}.items():
        for name, layer in module.named_modules():
            if not isinstance(layer, MPConv) or not layer.weight.requires_grad:
                continue
            apart = (layer.weight.detach().flatten(1).square().mean(1).sqrt() - 1).abs().max().item()
            if apart > CLOSE:
                raise CheckFailure(
                    f"after its updates the weights of the {role}'s {name} are {apart:.2g} away from unit magnitude",
                    "such networks (EDM2's) learn ever more slowly where their weights may grow",
                    "name a learner's network `denoiser`; let a denoiser of your own pass `after_update` on to what it "
                    "wraps",
                )
