"""A training loop for small networks: Adam, warm-up and cosine, a moving average, checkpoints, a limit in seconds.

Networks this small wait for launches on a GPU, so the whole step is recorded once as a CUDA graph and replayed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

SMOOTHING = 0.02
"""Of the loss that is shown: a mean over fifty steps."""
WARM_UP_STEPS = 5
"""Before a step is recorded: optimizers make their state in the first."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Attributes:
        steps: at most.
        lr: at its highest.
        ema: decay a step of the moving average, which is shorter in the beginning.
        seconds: at most, all sittings together; the learning rate falls with whichever limit is nearer.
        warmup: the share of training in which the learning rate rises.
        clip: the gradients' norm at most.
        save_every: seconds between checkpoints.
    """

    steps: int
    lr: float
    ema: float
    seconds: float = math.inf
    warmup: float = 0.03
    clip: float = 1.0
    save_every: float = 60.0


class Training:
    """A network in training: its moving average, its optimizer, and how far it is.

    Args:
        network: all that is trained, on its device.
        loss: draws a batch and computes the loss (); on a GPU without looking at any value.
        plan: how long and how fast.
    """

    def __init__(self, network: nn.Module, loss: Callable[[], Tensor], plan: Plan) -> None:
        self.network, self.loss, self.plan = network, loss, plan
        self.device = next(network.parameters()).device
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            network.parameters(), torch.tensor(plan.lr, device=self.device), betas=(0.9, 0.99), weight_decay=0.0,
            fused=True, capturable=self.device.type == "cuda",
        )  # fmt: skip
        self.step, self.seconds = 0, 0.0
        self.shown, self.shown_steps = torch.zeros((), device=self.device), 0
        self.lr, self.weight = torch.as_tensor(plan.lr, device=self.device), torch.ones((), device=self.device)
        both = [
            (mean, now)
            for mean, now in zip(self.average.state_dict().values(), network.state_dict().values(), strict=True)
            if mean.is_floating_point()
        ]
        self._means, self._nows = [mean for mean, _ in both], [now for _, now in both]

    @property
    def done(self) -> float:
        """The share of the nearer limit that is used up."""
        return max(self.step / self.plan.steps, self.seconds / self.plan.seconds)

    def schedule(self) -> None:
        """Set the learning rate, which rises and then falls as a cosine, and the average's weight of the present."""
        done, warmup = self.done, self.plan.warmup
        factor = done / warmup if done < warmup else (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
        self.lr.fill_(self.plan.lr * factor)
        self.weight.fill_(1 - min(self.plan.ema, (1 + self.step) / (10 + self.step)))

    def update(self) -> None:
        """One step; on a GPU it can be recorded."""
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            change = torch._foreach_sub(self._nows, self._means)
            torch._foreach_mul_(change, self.weight)
            torch._foreach_add_(self._means, change)
            self.shown.lerp_(value.detach(), SMOOTHING)

    def say(self) -> None:
        """Print how far it is."""
        loss = self.shown.item() / (1 - (1 - SMOOTHING) ** max(self.shown_steps, 1))
        print(f"step {self.step:,} of at most {self.plan.steps:,}, {self.seconds:.0f} s: loss {loss:.4f}", flush=True)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        aside = path.with_suffix(".part")
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        torch.save({**parts, "step": self.step, "seconds": self.seconds}, aside)
        aside.replace(path)

    def load(self, path: Path) -> None:
        """What `save` wrote."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.seconds = saved["step"], saved["seconds"]


def train(
    network: nn.Module, loss: Callable[[], Tensor], plan: Plan, checkpoint: Path, *, record: bool = True
) -> nn.Module:
    """Train `network`, from `checkpoint` if that is there, and give its moving average, in eval mode.

    A resumed training goes on with other random numbers.

    Args:
        network: see `Training`.
        loss: see `Training`.
        plan: how long and how fast.
        checkpoint: written while training, and kept.
        record: as a CUDA graph, on a GPU.
    """
    now = Training(network, loss, plan)
    if checkpoint.is_file():
        now.load(checkpoint)
        now.say()
    now.optimizer.param_groups[0]["lr"] = now.lr
    gpu = now.device.type == "cuda"
    began, saved_at, said_at = time.monotonic() - now.seconds, now.seconds, now.done + 0.05
    replay: Callable[[], None] = now.update
    network.train()
    while True:
        now.seconds = time.monotonic() - began
        done = now.done
        if done >= 1 or now.seconds - saved_at > plan.save_every:
            now.save(checkpoint)
            saved_at = now.seconds
        if done >= 1 or done >= said_at:
            now.say()
            said_at = done + 0.05
        if done >= 1:
            return now.average
        now.schedule()
        if gpu and record and now.shown_steps == WARM_UP_STEPS:
            replay = _recorded(now.update)
        replay()
        now.step += 1
        now.shown_steps += 1
        if gpu and now.step % 50 == 0:
            torch.cuda.synchronize()  # the clock is to say what was done, not what was asked for


def _recorded(update: Callable[[], None]) -> Callable[[], None]:
    """One replay of a CUDA graph of `update`, after some calls of it on a stream of its own, which train too."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay
