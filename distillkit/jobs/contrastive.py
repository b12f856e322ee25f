"""Training a text encoder against pictures: contrastive learning as CLIP's (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.contracts.learner import Learner
from distillkit.contracts.source import Images
from distillkit.contracts.step import Draws
from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError
from distillkit.jobs.part import Part, in_passes
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.write import TEXT_WEIGHTS, Replaced
from distillkit.models.text.clip import ClipText
from distillkit.models.text.frozen import CLIP
from distillkit.models.text.load import build_text_model

CONTRASTIVE_TRAINING: Mapping[str, Any] = {
    "duration": "100M",
    "batch": 1024,
    "lr": 5e-4,
    "lr_schedule": "cosine",
    "warmup": "0.5%",
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.2,
    "ema_halflife": "100k",
}
"""Rate, optimiser and schedule of Radford et al. 2021, Tables 18 and 19 (ViT-B/32; their batch is 32,768); the duration
and the average are a beginning."""
PATCHES = 8
"""Of a side of a picture, about as many as ViT-B/32 has at 224 pixels."""
TEMPERATURE, COLDEST = 0.07, 0.01
ERROR = "retrieval error"


class Contrastive(Learner):
    """Symmetric cross entropy of pictures and their sentences: with unit vectors I_i of pictures and T_j of texts, the
    logits are I_i T_j / tau, each picture's own text is the right class of its row, and each text's own picture that of
    its column (Radford et al. 2021, section 2.3 and Figure 3).

    tau is learnt from 0.07 on and at least 0.01. Two pictures of one text are no negatives of each other. Negatives are
    those of a pass, so that here results depend on `batch_per_device` and on the number of processes.

    Args:
        text: CLIPTextModel; its vector is that of a text's last token.
        pictures: CLIPVisionModel, which nothing else uses.
        dim: of the vectors.
    """

    name = "text_encoder"
    needs = (Images,)
    text: Any
    pictures: Any

    def __init__(self, text: nn.Module, pictures: nn.Module, dim: int) -> None:
        super().__init__()
        self.text, self.pictures = text, pictures
        widths: list[int] = [self.text.config.hidden_size, self.pictures.config.hidden_size]
        self.text_projection, self.picture_projection = (nn.Linear(width, dim, bias=False) for width in widths)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def loss(self, step: Draws) -> Tensor:
        tokens = step.images.condition["tokens"]
        scale = self.log_scale.clamp(max=math.log(1 / COLDEST)).exp()
        logits = scale * self.of_pictures(step.images.sample) @ self.of_texts(tokens).T
        own = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
        same = (tokens[:, None] == tokens[None]).all(-1) & ~own
        logits = logits.float().masked_fill(same, -math.inf)
        right = torch.arange(len(tokens), device=tokens.device)
        step.log("temperature", 1 / scale)
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2

    def of_texts(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, dim) of tokens (B, L)."""
        return F.normalize(self.text_projection(self.text(tokens).pooler_output), dim=-1)

    def of_pictures(self, x: Tensor) -> Tensor:
        """Unit vectors (B, dim) of pictures (B, C, H, W) in [-1, 1]."""
        return F.normalize(self.picture_projection(self.pictures(x).pooler_output), dim=-1)


class TextEncoderPart(Part):
    """The one CLIPTextModel of a pipeline such as Stable Diffusion 1.

    Args:
        encoder: of the pipeline's conditioner.
        shape: of the pictures, (C, H, W).

    Raises:
        UsageError: for text encoders of another kind, or pictures that are not square.
    """

    name = "text-encoder"
    component = "text_encoder"

    def __init__(self, parts: PipelineParts, encoder: object, shape: tuple[int, ...], seed: int) -> None:
        super().__init__(parts)
        if not isinstance(encoder, ClipText):
            raise UsageError(
                f"the text encoder of {parts.source} is not one CLIPTextModel, as Stable Diffusion 1 has it, and only "
                "such a one is trained here; leave --part text-encoder out and keep it as it is"
            )
        channels, height, width = shape
        if height != width or height % PATCHES:
            raise UsageError(
                f"the images are {width} x {height}, and a text encoder is trained with square ones whose side is a "
                f"multiple of {PATCHES}: give --data-resolution"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            text: Any = build_text_model(parts, self.component, CLIP)
            # The tower of the pictures is as wide and as deep as that of the texts.
            pictures = picture_tower(text.config, channels, height)
            self.learner = Contrastive(text, pictures, text.config.projection_dim or text.config.hidden_size)

    def check(self, training: TrainingConfig, shape: tuple[int, ...], processes: int) -> None:
        if any(end - first < 2 for first, end in training.passes(processes)):
            raise UsageError(
                "a text encoder learns from the other pictures of a pass, and here is a pass of one picture: "
                "give a larger --batch or --batch-per-device"
            )
        for name in ("compile", "gradient_checkpointing"):
            if getattr(training, name) not in (False, "off"):
                raise UsageError(
                    f"--{name.replace('_', '-')} is for networks alone: leave it out with --part {self.name}"
                )

    @torch.no_grad()
    def figures(self, learner: Learner, held: Images) -> dict[str, float]:
        """Share of the pictures to which another of their different texts is nearer than their own."""
        assert isinstance(learner, Contrastive)
        device = next(learner.parameters()).device
        texts, own = held.condition["tokens"].unique(dim=0, return_inverse=True)
        vectors = learner.of_texts(texts.to(device))
        found = [(learner.of_pictures(x.to(device)) @ vectors.T).argmax(1).cpu() for x in in_passes(held.sample)]
        return {ERROR: (torch.cat(found) != own.cpu()).double().mean().item()}

    def replaced(self, learner: Learner, held: Images) -> Replaced:
        assert isinstance(learner, Contrastive)
        # Releases of transformers before 5 look for this prefix; later ones know both.
        state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in learner.text.state_dict().items()}
        return Replaced(state, {"dtype": "float32", "torch_dtype": "float32"}, TEXT_WEIGHTS)


def picture_tower(text: Any, channels: int, side: int) -> nn.Module:
    """A CLIPVisionModel with the sizes of a text tower's configuration, for square pictures."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=text.hidden_size, intermediate_size=text.intermediate_size, image_size=side,
        num_hidden_layers=text.num_hidden_layers, num_attention_heads=text.num_attention_heads,
        patch_size=side // PATCHES, num_channels=channels,
    )  # fmt: skip
    made: nn.Module = CLIPVisionModel(config)
    return made
