"""`python -m benchmarks.speed.dmd2_code FOLDER`: DMD2's step with its GAN, ours against the authors' own code.

FOLDER is a checkout of github.com/tianweiy/DMD2, which is imported from there. Both sides start from the same weights
and train with the settings of its experiments/imagenet (five critic updates for one of the generator, GAN weights 3e-3
and 1e-2, AdamW, clipping at 10) on an ADM network like ImageNet-64's, with fewer channels and levels. First both are
given the same draws, and losses and gradient norms are compared; then their steps are timed in turn, in seconds of
the process' CPU time; before, the memory of each is measured in a process of its own. Ours keeps a moving average of
the student's weights and counts its passes, which theirs does not.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit import Images, SampleRNG, Teacher, TeacherSpec
from distillkit.contracts.conditioner import ClassLabels
from distillkit.data.synthetic import SyntheticImages
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.environment import environment
from distillkit.models.build import build_denoiser
from distillkit.parts import Critic, DiscriminatorHead
from distillkit_dmd2.method import DMD2, DMD2Config

CLASSES, UPDATES, LR = 10, 5, 2e-6
GAN_WEIGHT, CRITIC_WEIGHT = 3e-3, 1e-2
SIGMA_MAX, LEVELS = 80.0, 1000
KL_LEVELS = range(20, 981)
"""Theirs: from 2 to 98 % of the grid."""


def architecture(given: argparse.Namespace) -> dict[str, Any]:
    """Arguments of an ADM network, as both sides name them."""
    return {
        "model_channels": given.channels, "channel_mult": given.mult, "channel_mult_emb": 4, "num_blocks": given.blocks,
        "attn_resolutions": [32, 16, 8], "augment_dim": 0, "dropout": 0.0, "label_dropout": 0.0,
    }  # fmt: skip


def teacher_of(given: argparse.Namespace) -> Teacher:
    """One with random weights, the same in every process."""
    torch.manual_seed(0)
    shape = {"img_resolution": given.resolution, "in_channels": 3, "out_channels": 3, "label_dim": CLASSES}
    arguments = {"network": {**shape, **architecture(given)}}
    denoiser = build_denoiser({"kind": "distillkit:DhariwalUNet", "arguments": arguments})
    with torch.no_grad():
        for parameter in denoiser.parameters():  # fresh layers that are silent would hide differences
            parameter.add_(0.02 * torch.randn_like(parameter))
    spec = TeacherSpec(name="adm", shape=(3, given.resolution, given.resolution))
    return Teacher(denoiser, spec, ClassLabels(classes=CLASSES))


class Ours:
    """The engine with the recipe of the plugin."""

    def __init__(self, given: argparse.Namespace, teacher: Teacher, head: DiscriminatorHead) -> None:
        self.teacher = teacher
        self.source = SyntheticImages(teacher, torch.device("cpu"))
        recipe = DMD2().recipe(teacher, DMD2Config(updates=UPDATES))
        critic = recipe.learners[0]
        assert isinstance(critic, Critic)
        critic.head.load_state_dict(head.state_dict())
        config = TrainingConfig(batch=given.batch, duration="1B", lr=LR, channels_last=given.channels_last)
        self.trainer = Trainer(
            recipe, teacher, config, accelerator=Accelerator(cpu=True), seed=0, sources={Images: self.source}, say=print
        )

    def step(self, *, student: bool) -> None:
        """An update of the critic, and before it of the student where it is its turn."""
        trainer = self.trainer
        while ((trainer.step + 1) % UPDATES == 0) != student:
            trainer.step += 1
        with trainer.cost.watch(trainer.roles()):
            trainer.train_step()

    def said(self) -> dict[str, float]:
        """Losses, weighted, and gradient norms since this was last asked."""
        return self.trainer._means.read(self.trainer.accelerator)


class Theirs:
    """Their unified model, called as their training script calls it."""

    def __init__(self, given: argparse.Namespace, teacher: Teacher, head: DiscriminatorHead) -> None:
        sys.path.insert(0, str(given.folder))
        import main.edm.edm_network as networks
        from main.edm.edm_unified_model import EDMUniModel

        networks.get_imagenet_edm_config = lambda: architecture(given)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, "teacher.pkl")
            weights.write_bytes(pickle.dumps({"ema": Weights(teacher.denoiser.state_dict())}))
            settings = SimpleNamespace(
                model_id=str(weights), dataset_name="imagenet", resolution=given.resolution, label_dim=CLASSES,
                use_fp16=False, sigma_data=0.5, sigma_max=SIGMA_MAX, sigma_min=0.002, rho=7.0, gan_classifier=True,
                diffusion_gan=True, diffusion_gan_max_timestep=LEVELS, num_train_timesteps=LEVELS,
                min_step_percent=0.02, max_step_percent=0.98, initialie_generator=True,
            )  # fmt: skip
            self.model = EDMUniModel(settings, None)
        # Theirs is written for 768 channels; ours has the same layers for any number.
        self.model.guidance_model.cls_pred_branch = copy.deepcopy(head.heads[0])
        self.model.train()
        self.given, self.eye = given, torch.eye(CLASSES)
        self.generator, self.guidance = self.model.feedforward_model, self.model.guidance_model
        self.updates = {
            part: torch.optim.AdamW([p for p in part.parameters() if p.requires_grad], lr=LR, weight_decay=0.01)
            for part in (self.generator, self.guidance)
        }
        image = torch.randn(given.batch, 3, given.resolution, given.resolution).clamp(-1, 1)
        self.real = {"real_image": image, "real_label": self.eye[torch.randint(CLASSES, (given.batch,))]}
        self.losses: dict[str, float] = {}

    def step(self, *, student: bool) -> None:
        """As `Ours.step`."""
        noise = torch.randn_like(self.real["real_image"]) * SIGMA_MAX
        labels = self.eye[torch.randint(CLASSES, (len(noise),))]
        self.step_from(noise, labels, self.real, student=student)

    def step_from(self, noise: Tensor, labels: Tensor, real: dict[str, Tensor], *, student: bool) -> None:
        """A step on given inputs, in the order of their training script."""
        self.losses.clear()
        sigma = torch.ones(len(noise)) * SIGMA_MAX
        found, log = self.model(
            noise, sigma, labels, real_train_dict=real, compute_generator_gradient=student, generator_turn=True
        )
        if student:
            total = found["loss_dm"] + found["gen_cls_loss"] * GAN_WEIGHT
            self._update(self.generator, total)
            self.updates[self.guidance].zero_grad()
            self.losses["loss/distribution_matching"] = found["loss_dm"].item()
            self.losses["loss/adversarial"] = found["gen_cls_loss"].item() * GAN_WEIGHT
        found, _ = self.model(
            noise, sigma, labels, real_train_dict=real, guidance_turn=True, guidance_data_dict=log["guidance_data_dict"]
        )
        total = found["loss_fake_mean"] + found["guidance_cls_loss"] * CRITIC_WEIGHT
        self._update(self.guidance, total)
        self.updates[self.generator].zero_grad()
        self.losses["loss/critic"] = total.item()

    def _update(self, part: torch.nn.Module, loss: Tensor) -> None:
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(part.parameters(), 10)
        self.updates[part].step()
        self.updates[part].zero_grad()
        self.losses[f"grad_norm/{'student' if part is self.generator else 'critic'}"] = norm.item()


class Weights:
    """What their code reads of a teacher's pickle."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Tensor]:
        return self.state


@contextmanager
def draws(noises: list[Tensor], numbers: list[Tensor]) -> Iterator[None]:
    """Let torch.randn_like and torch.randint give these, in this order."""
    before = torch.randn_like, torch.randint
    torch.randn_like = lambda like, **_: noises.pop(0)
    torch.randint = lambda low, high, shape, **_: numbers.pop(0).reshape(tuple(shape))
    try:
        yield
    finally:
        torch.randn_like, torch.randint = before


def compared(ours: Ours, theirs: Theirs) -> dict[str, float]:
    """The largest relative difference of losses and gradient norms over two rounds of steps with the same draws.

    Their discriminator sees the fake samples at noise of its own; here at that of the fake score's pass, as ours does.
    """
    largest: dict[str, float] = {}
    rng, shape, batch = SampleRNG(0), ours.teacher.spec.shape, range(theirs.given.batch)
    for number in range(2 * UPDATES):
        student = (number + 1) % UPDATES == 0
        ours.trainer.step = index = number

        def noise(purpose: str, index: int = index) -> Tensor:
            return rng.normal(purpose, index, batch, shape)

        def level(purpose: str, index: int = index) -> Tensor:
            # Our fake score's levels are listed from the largest, theirs from the smallest.
            return LEVELS - 1 - rng.integers(purpose, index, batch, LEVELS)

        images = ours.source.batch(rng, index, batch)
        keys = ours.teacher.conditioner.draw(rng.uniform("condition", index, batch))
        real = {"real_image": images.sample, "real_label": theirs.eye[images.condition["labels"]]}
        kl = KL_LEVELS.start + rng.integers("kl/level", index, batch, len(KL_LEVELS))
        first = ([noise("kl/noise"), noise("gan/noise")], [kl, level("gan/level")]) if student else ([], [])
        noises = [*first[0], noise("fake/noise"), noise("real/noise"), noise("fake/noise")]
        numbers = [*first[1], level("fake/level"), level("real/level"), level("fake/level")]
        with draws(noises, numbers):
            theirs.step_from(noise("noise") * SIGMA_MAX, theirs.eye[keys], real, student=student)
        ours.step(student=student)
        said = ours.said()
        for name, value in theirs.losses.items():
            difference = abs(said[name] - value) / abs(value)
            largest[name] = max(difference, largest.get(name, 0))
    return largest


def timed(sides: dict[str, Callable[..., None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of steps with the student's turn and without, in turn."""
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for student in (True, False):
            for name, step in sides.items():
                began = time.process_time()
                step(student=student)
                if number:  # the first is for warming up
                    kind = f"{name}, {'student and critic' if student else 'critic alone'}"
                    seconds.setdefault(kind, []).append(time.process_time() - began)
    return seconds


def memory(name: str) -> float:
    """MiB that training one side takes at most in a process of its own, above what the imports take."""
    command = [sys.executable, "-m", "benchmarks.speed.dmd2_code", *sys.argv[1:], "--alone", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def alone(given: argparse.Namespace) -> None:
    """One side for two rounds; prints its memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    teacher = teacher_of(given)
    head = DiscriminatorHead.on(teacher.denoiser, teacher)
    side = (Ours if given.alone == "ours" else Theirs)(given, teacher, head)
    del teacher, head
    for _ in range(2):
        for student in (True, False):
            side.step(student=student)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="checkout of DMD2")
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--mult", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", default="auto")
    parser.add_argument("--alone", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.alone:
        alone(given)
        return
    # First, while this process is small: its size at most is inherited.
    mebibytes = {name: memory(name) for name in ("ours", "theirs")}
    teacher = teacher_of(given)
    head = DiscriminatorHead.on(teacher.denoiser, teacher)
    ours, theirs = Ours(given, teacher, head), Theirs(given, teacher, head)
    differences = compared(ours, theirs)
    print("largest relative differences:", json.dumps(differences, indent=1))
    seconds = timed({"ours": ours.step, "theirs": theirs.step}, given.rounds)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    for name in ("ours", "theirs"):
        found[f"{name}, mean of a round"] = (
            found[f"{name}, student and critic"] + (UPDATES - 1) * found[f"{name}, critic alone"]
        ) / UPDATES
    kinds = ("student and critic", "critic alone", "mean of a round")
    speed = {kind: found[f"theirs, {kind}"] / found[f"ours, {kind}"] for kind in kinds}
    command = ["python", "-m", "benchmarks.speed.dmd2_code", "FOLDER", *sys.argv[2:]]
    report = {
        "theirs / ours, seconds": speed, "seconds": found, "mebibytes above the imports": mebibytes,
        "largest relative differences": differences,
        "network": {**architecture(given), "img_resolution": given.resolution,
                    "parameters": sum(p.numel() for p in teacher.denoiser.parameters())},
        "batch": given.batch, "environment": {**environment(), "command": shlex.join(command)},
    }  # fmt: skip
    print(
        json.dumps(
            {name: report[name] for name in ("theirs / ours, seconds", "seconds", "mebibytes above the imports")},
            indent=1,
        )
    )
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
