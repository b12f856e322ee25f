"""CLIPs in open_clip's format (`open_clip_config.json` beside a state dict) as CLIPs of transformers.

The networks are the same (Radford et al. 2021, arXiv 2103.00020; Cherti et al. 2022, arXiv 2212.07143), the names are
not: open_clip keeps query, key and value of a layer in one matrix, and its projections the other way round.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ftfy
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.models.bounds import Count, Depth
from distillkit.reading import read_mapping, validated
from distillkit.text import short

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
"""In the order in which they are looked for."""
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(\w+)\.(\w+)(?:\.(weight|bias))?")
_TEXT = re.compile(r"text\.(transformer|token_embedding|positional_embedding|ln_final|text_projection)\b")
_FIXED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    )
    for kind in ("weight", "bias")
}
_TURNED = ("visual.proj", "text_projection")
_PARTS = {
    ("ln_1", "weight"): "layer_norm1", ("ln_1", "bias"): "layer_norm1", ("ln_2", "weight"): "layer_norm2",
    ("ln_2", "bias"): "layer_norm2", ("attn", "out_proj"): "self_attn.out_proj", ("mlp", "c_fc"): "mlp.fc1",
    ("mlp", "c_proj"): "mlp.fc2",
}  # fmt: skip


class _Tower(BaseModel):
    """What both towers have; a key that is not known may say that something is off, and nothing else."""

    model_config = ConfigDict(extra="ignore")

    layers: Depth = 12
    width: Count
    mlp_ratio: float = Field(4.0, gt=0, le=64)

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name, value in values.items():
                if name not in cls.model_fields and value not in (None, False, 0, "", "learnable", "linear"):
                    raise ValueError(f"{short(name)} {short(value)} is not followed")
        return values

    def common(self, activation: str, heads: int) -> dict[str, Any]:
        """Of transformers' configuration.

        Raises:
            ValueError: where the heads do not divide the width.
        """
        if self.width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {self.width}")
        return {
            "hidden_size": self.width, "intermediate_size": int(self.width * self.mlp_ratio), "hidden_act": activation,
            "num_hidden_layers": self.layers, "num_attention_heads": heads, "layer_norm_eps": 1e-5,
        }  # fmt: skip


class _Vision(_Tower):
    width: Count = 768
    head_width: Count = 64
    patch_size: int = Field(16, ge=1, le=4096)
    image_size: int = Field(224, ge=1, le=4096)
    pool_type: Literal["tok"] = "tok"

    # Do not change what is computed.
    patch_dropout: float = 0.0
    output_tokens: bool = False

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        pair = isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]
        return value[0] if pair else value


class _Text(_Tower):
    width: Count = 512
    heads: Count = 8
    context_length: int = Field(77, ge=2, le=65_536)
    vocab_size: int = Field(49_408, ge=2, le=10_000_000)
    pool_type: Literal["argmax"] = "argmax"

    # Padding stands behind the end of the text and is not seen; the tokenizer is that of the folder.
    pad_id: int = 0
    eos_id: int = 2
    output_tokens: bool = False
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")

    embed_dim: Count
    quick_gelu: bool = False
    vision_cfg: _Vision
    text_cfg: _Text


class Images(BaseModel):
    """How open_clip prepares images, as far as that is followed."""

    model_config = ConfigDict(extra="ignore")

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "random", None] = "bicubic"
    resize_mode: Literal["shortest", None] = "shortest"
    size: Any = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _every_channel(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int | float) else value


class OpenClip(BaseModel):
    """`open_clip_config.json`.

    Raises:
        DistillkitError: on reading, for a kind of network that CLIPs of transformers are not; names the key.
    """

    model_config = ConfigDict(extra="ignore")

    model_cfg: _Model
    preprocess_cfg: Images = Field(default_factory=Images)

    @property
    def config(self) -> dict[str, Any]:
        """Of transformers' CLIPModel.

        Raises:
            ValueError: where a tower's heads do not divide its width.
        """
        model, vision, text = self.model_cfg, self.model_cfg.vision_cfg, self.model_cfg.text_cfg
        act = "quick_gelu" if model.quick_gelu else "gelu"
        return {
            "model_type": "clip",
            "projection_dim": model.embed_dim,
            "vision_config": {
                **vision.common(act, max(1, vision.width // vision.head_width)), "image_size": vision.image_size,
                "patch_size": vision.patch_size, "projection_dim": model.embed_dim,
            },
            # 2 is transformers' word for open_clip's rule: a text ends at the largest number of its tokens.
            "text_config": {
                **text.common(act, text.heads), "vocab_size": text.vocab_size, "projection_dim": model.embed_dim,
                "max_position_embeddings": text.context_length, "eos_token_id": 2, "bos_token_id": 0,
                "pad_token_id": 1,
            },
        }  # fmt: skip


def cleaned(text: str) -> str:
    """A text as open_clip's tokenizers read it: broken characters repaired, HTML's names for signs and white space
    replaced, in lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def is_open_clip(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_open_clip(folder: Path) -> OpenClip:
    """The configuration in a folder of open_clip's.

    Raises:
        UsageError: for a network that is not followed; names the key.
        DistillkitError: when it is damaged.
    """
    path = folder / CONFIG
    found = validated(OpenClip, read_mapping(path), str(path))
    try:
        _ = found.config
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return found


def weights_of(folder: Path) -> Path:
    """The file with the weights.

    Raises:
        UsageError: when there is none.
    """
    if found := next((folder / name for name in WEIGHTS if (folder / name).is_file()), None):
        return found
    raise UsageError(f"{folder} has no weights of open_clip; {' or '.join(WEIGHTS)} is needed")


def converted(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A state dict of open_clip by transformers' names.

    Raises:
        DistillkitError: for a name that is no CLIP's.
    """
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = name.removeprefix("text.") if _TEXT.match(name) else name  # where the towers are apart
        if plain in _FIXED:
            made[_FIXED[plain]] = value.t().contiguous() if plain in _TURNED else value
        elif plain not in ("attn_mask", "logit_bias"):
            made |= dict(_of_layer(plain, value, where))
    return made


def _of_layer(name: str, value: Tensor, where: str) -> Iterator[tuple[str, Tensor]]:
    found = _LAYER.fullmatch(name)
    if not found:
        raise DistillkitError(f"{where}: the weight {short(name)} is none of a CLIP of open_clip")
    visual, number, part, inner, kind = found.groups()
    layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if part == "attn" and inner in ("in_proj_weight", "in_proj_bias") and value.shape[0] % 3 == 0:
        for target, piece in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
            yield f"{layer}.self_attn.{target}.{inner.removeprefix('in_proj_')}", piece.contiguous()
        return
    if (whole := _PARTS.get((part, inner))) is None:
        raise DistillkitError(f"{where}: the weight {short(name)} is none of a CLIP of open_clip")
    yield f"{layer}.{whole}.{kind or inner}", value
