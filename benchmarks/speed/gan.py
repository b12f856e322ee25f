"""`python -m benchmarks.speed.gan`: DMD2's step with its GAN, time and memory against the same step written out.

"lean" ends the discriminator's passes at the layer that it reads, and lets the student's graph go before the critic's
is built. "whole" does neither: every pass is whole, and all losses are computed before the first backward pass. The
engine is to be near the first. Memory is what graphs hold at most for their backward passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed.bare_loop import Networks, adam, apply
from benchmarks.speed.timing import Bench, ratio
from distillkit import Condition, Images, SampleRNG, Teacher
from distillkit.data.synthetic import SyntheticImages
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.jobs.step_costs import SavedBytes
from distillkit.parts import DiscriminatorHead, discriminator_loss, generator_loss, weighted_error
from distillkit_dmd2.method import DMD2, DMD2Config

GAN_WEIGHT, CRITIC_WEIGHT = 3e-3, 1e-2


class BareGAN(Networks):
    """DMD2's step with nothing around it.

    Args:
        images: a batch of real images, the same in every step.
        lean: see this module.
    """

    def __init__(self, teacher: Teacher, images: Images, device: torch.device, *, lean: bool) -> None:
        super().__init__(teacher, len(images.sample), device)
        self.images, self.lean = images, lean
        self.head = DiscriminatorHead.on(self.fake, teacher).to(device)
        self.critic = torch.nn.ModuleList([self.fake, self.head])
        self.updates = [(network, adam(network)) for network in (self.student, self.critic)]

    def logits(self, x: Tensor, condition: Condition) -> Tensor:
        """The discriminator's, of x (B, ...) at random levels."""
        t = self.level()
        noisy = self.teacher.schedule.add_noise(x, self.noise(), t)
        if self.lean:
            return self.head(self.fake.features(noisy, t, condition))
        return self.head(self.fake.with_features(noisy, t, condition)[1])

    def student_loss(self, x: Tensor, condition: Condition) -> Tensor:
        """KL and the GAN's term, with gradient to x alone."""
        self.critic.requires_grad_(False)
        loss = self.kl(x, condition) + GAN_WEIGHT * generator_loss(self.logits(x, condition))
        self.critic.requires_grad_(True)
        return loss

    def critic_loss(self, x: Tensor, condition: Condition) -> Tensor:
        """Denoising score matching and the discriminator's loss."""
        t = self.level()
        noisy = self.teacher.schedule.add_noise(x, self.noise(), t)
        denoised, features = self.fake.with_features(noisy, t, condition)
        real = self.logits(self.images.sample, self.images.condition)
        matching = weighted_error(denoised, x, self.fake.loss_weight(t))
        return matching + CRITIC_WEIGHT * discriminator_loss(self.head(features), real)

    def step(self) -> None:
        """One update of both."""
        condition = self.condition()
        x = self.generated(self.noise(), condition)
        loss = self.student_loss(x, condition)
        if self.lean:
            loss.backward()
            del loss
        critic_loss = self.critic_loss(x.detach(), condition)
        if not self.lean:
            loss.backward()
        critic_loss.backward()
        apply(*self.updates)
        self.follow()


def main() -> None:
    bench = Bench.from_command_line(__doc__)
    teacher, device, batch = bench.teacher, bench.device, bench.batch
    source = SyntheticImages(teacher, device)
    images = source.batch(SampleRNG(0), 0, range(batch))
    settings = DMD2Config(updates=1, kl_weight=0.25, gan_weight=GAN_WEIGHT, critic_gan_weight=CRITIC_WEIGHT)
    config = TrainingConfig(batch=batch, duration="1B", lr=1e-5)
    trainer = Trainer(
        DMD2().recipe(teacher, settings),
        teacher,
        config,
        accelerator=bench.accelerator,
        seed=0,
        sources={Images: source},
    )
    actions = {
        "engine": trainer.train_step,
        "lean": BareGAN(teacher, images, device, lean=True).step,
        "whole": BareGAN(teacher, images, device, lean=False).step,
    }
    seconds = bench.in_turn(actions)
    held: dict[str, float] = {}
    for name, action in actions.items():
        with SavedBytes().counting() as counted:
            action()
        held[name] = counted.most / 2**20
    figures = {
        f"engine / {name}, {what}": value
        for name in ("lean", "whole")
        for what, value in (
            ("time", ratio(seconds["engine"], seconds[name])),
            ("memory", held["engine"] / held[name]),
        )
    }
    bench.report("DMD2 with its GAN", figures, seconds, mebibytes=held)


if __name__ == "__main__":
    main()
