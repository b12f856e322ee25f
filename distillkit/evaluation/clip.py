"""The CLIP score: how well images fit their prompts, by a CLIP in the format of transformers or of open_clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.errors import UsageError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.features import GROUPS, groups_of
from distillkit.evaluation.protocol import ExtractorSpec
from distillkit.evaluation.record import Figure
from distillkit.files import canonical_json, sha256, slug
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.folder import folder_name
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.weights import chosen, read_state, weights_sha256
from distillkit.models.text import open_clip
from distillkit.models.text.load import load_text_model, load_tokenizer, made_model, quietly
from distillkit.reading import Missing, read_mapping, validated

FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens*.json",
)
TEXTS_AT_ONCE = 256


class _Preprocessing(BaseModel):
    """What a model's files say of its images, as far as it is followed: the sizes, and the moments of colours.

    Args:
        nearest: where the crop cannot be in the middle, where it begins is rounded, halves to even, as torchvision
            does; else down.
    """

    size: int = Field(224, ge=1, le=4096)
    crop: int = Field(224, ge=1, le=4096)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    nearest: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> _Preprocessing:
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        wanted = {"size": _side(size, "shortest_edge"), "crop": _side(crop, "height")}
        wanted |= {name: config[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in config}
        if config.get("resample", 3) != 3:
            raise UsageError(f"{where}: resample {config['resample']} is not followed; known: 3 (bicubic)")
        return validated(cls, wanted, where)

    @property
    def summary(self) -> str:
        """How an image is resized, for the protocol."""
        crop = f"centre {self.crop}{', rounded' if self.nearest else ''}"
        return f"PIL bicubic on bytes, shortest side to {self.size}, {crop}"

    def resized(self, image: Any) -> Any:
        """An image (H, W, 3) uint8 as (crop, crop, 3)."""
        height, width = image.shape[:2]
        scaled = (
            (self.size, int(self.size * height / width))
            if width <= height
            else (int(self.size * width / height), self.size)
        )
        made = Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
        rest = (made.width - self.crop, made.height - self.crop)
        left, top = (round(side / 2) if self.nearest else side // 2 for side in rest)
        return np.asarray(made.crop((left, top, left + self.crop, top + self.crop)))


@dataclass(frozen=True)
class _Files:
    """A CLIP as its folder has it.

    Args:
        clean: what is done to a text before it is read.
    """

    network: Any
    images: _Preprocessing
    weights_sha256: str
    clean: Callable[[str], str]


def _of_transformers(name: str, folder: Path) -> _Files:
    parts = PipelineParts(source=str(folder.parent))
    if (kind := read_config(folder / "config.json").get("model_type")) != "clip":
        raise UsageError(
            f"{name} is a {kind or 'model without a type'}, and no CLIP in the format of transformers or open_clip"
        )
    network = load_text_model(parts, folder.name, "CLIPModel", torch.device("cpu"))
    path = folder / "preprocessor_config.json"
    images = _Preprocessing.of(read_mapping(path) if path.is_file() else {}, str(path))
    return _Files(network, images, weights_sha256(folder), str)


def _of_open_clip(folder: Path) -> _Files:
    described, weights = open_clip.read_open_clip(folder), open_clip.weights_of(folder)
    state = open_clip.converted(read_state(weights), str(weights))
    network = made_model("CLIPModel", described.config, state, weights)
    side, said = described.model_cfg.vision_cfg.image_size, described.preprocess_cfg
    moments = {name: value for name in ("mean", "std") if (value := getattr(said, name)) is not None}
    images = _Preprocessing(size=side, crop=side, nearest=True, **moments)
    return _Files(network, images, sha256(weights), open_clip.cleaned)


def _side(size: object, name: str) -> object:
    return size.get(name, size.get("height")) if isinstance(size, Mapping) else size


class Clip(FeatureExtractor):
    """A CLIP of transformers, or one in open_clip's format (Radford et al. 2021, arXiv 2103.00020).

    It gives embeddings (B, d) float32 of length 1, of images and of texts. Images are resized as CLIP's own code does:
    shortest side by PIL's bicubic filter on bytes, centre crop. Texts end at the tokenizer's limit.

    Args:
        name: a folder, or `hf:ORG/REPO[@REVISION]`.
        prefix: before every text, such as "A photo depicts ".

    Raises:
        UsageError: when there is no CLIP of that name.
        DistillkitError: when its files are damaged, or cannot be had.
    """

    network: Any
    mean: Tensor
    std: Tensor
    takes: ClassVar[tuple[Content, ...]] = ("images",)

    def __init__(self, name: str, *, prefix: str = "") -> None:
        super().__init__()
        folder = _located(name)
        files = _of_open_clip(folder) if _is_open_clip(folder) else _of_transformers(name, folder)
        self.network, self.images, self.clean = files.network, files.images, files.clean
        self.tokenizer, self.prefix = load_tokenizer(PipelineParts(source=str(folder.parent)), folder.name), prefix
        for moment in ("mean", "std"):
            self.register_buffer(moment, torch.tensor(getattr(self.images, moment))[:, None, None])
        self.spec = ExtractorSpec(
            id=f"{slug(folder_name(folder))}/cosine", weights_sha256=files.weights_sha256,
            dim=int(self.network.config.projection_dim),
            input=f"RGB 0..1, mean {self.images.mean}, std {self.images.std}; texts "
            f"{f'after {prefix!r}' if prefix else 'as they are'}, vocabulary {self._vocabulary()}; "
            f"{self._towers()}",
            resize=self.images.summary,
            scale="100 max(0, cosine)",
        )  # fmt: skip

    def _towers(self) -> str:
        """What of the networks is not in the weights."""
        towers = (self.network.config.vision_config, self.network.config.text_config)
        return " and ".join(
            f"{tower.hidden_act}, {tower.num_attention_heads} heads, eps {tower.layer_norm_eps:g}" for tower in towers
        )

    def _vocabulary(self) -> str:
        known = [sorted(self.tokenizer.get_vocab().items()), self.tokenizer.model_max_length]
        return hashlib.sha256(canonical_json(known).encode()).hexdigest()[:16]

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        made = np.stack([self.images.resized(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])
        values = torch.from_numpy(made).to(self.mean.device).permute(0, 3, 1, 2).float() / 255
        seen = self.network.vision_model(pixel_values=(values - self.mean) / self.std).pooler_output
        return torch.nn.functional.normalize(self.network.visual_projection(seen).float())

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, d) of texts, on the CPU."""
        made, device = [], self.mean.device
        limit = min(self.tokenizer.model_max_length, self.network.config.text_config.max_position_embeddings)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = [self.clean(f"{self.prefix}{text}") for text in texts[start : start + TEXTS_AT_ONCE]]
            with quietly():
                tokens = self.tokenizer(part, padding=True, max_length=limit, truncation=True, return_tensors="pt")
            seen = self.network.text_model(
                input_ids=tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device)
            ).pooler_output
            made.append(torch.nn.functional.normalize(self.network.text_projection(seen).float()).cpu())
        return torch.cat(made)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        UsageError: when it is not there.
    """
    try:
        return read_mapping(path)
    except Missing as error:
        raise UsageError(
            f"{path.parent} holds no model in the format of transformers: {path.name} is missing"
        ) from error


def _is_open_clip(folder: Path) -> bool:
    """Whether a folder holds a CLIP in open_clip's format, and none in that of transformers."""
    names = [place.name for place in folder.iterdir()]
    return open_clip.is_open_clip(folder) and not ("config.json" in names and chosen(names))


def _located(name: str) -> Path:
    """The folder of a CLIP; downloaded where it is not in the hub's cache."""
    if name.startswith(hub.PREFIX):
        return hub.files_of(name, (*FILES, open_clip.CONFIG), open_clip.WEIGHTS)
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"--clip {name}: there is no such folder; a model of the hub is written as hf:ORG/REPO")
    return folder


def clip_figure(images: Tensor, clip: Clip, prompts: Sequence[str]) -> Figure:
    """The mean over samples of 100 max(0, cos(image, prompt)), and its standard error.

    Args:
        images: (N, d) embeddings in the samples' order; sample i is of prompt i modulo their number.

    Raises:
        UsageError: without prompts.
    """
    if not prompts:
        raise UsageError("the CLIP score compares images with their prompts, and there are none: --prompts FILE")
    count = len(images)
    texts = clip.texts(prompts[: min(count, len(prompts))])
    scores = 100 * (images * texts[torch.arange(count) % len(texts)]).sum(1).double().clamp(min=0)
    left_out: tuple[float, ...] = ()
    if count >= 2 * GROUPS:
        groups = groups_of(count)
        left_out = tuple(scores[groups != group].mean().item() for group in range(GROUPS))
    return Figure(
        value=scores.mean().item(), estimator="clip-score@1", leave_one_out=left_out,
        standard_error=(scores.std() / count**0.5).item(),
    )  # fmt: skip
