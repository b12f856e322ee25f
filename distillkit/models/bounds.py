"""What descriptions may ask of distillkit's own networks: sizes that are checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillkit.reading import first_problem
from distillkit.text import short

Count = Annotated[int, Field(ge=1, le=65_536)]
Few = Annotated[int, Field(ge=1, le=64)]
Share = Annotated[float, Field(ge=0, lt=1)]
Resolution = Annotated[int, Field(ge=1, le=8192)]


class _Sizes(BaseModel):
    """Arguments that decide how much is built; others pass to the network's constructor, which knows them."""

    model_config = ConfigDict(extra="ignore")


class UNetSizes(_Sizes):
    """Of SongUNet and DhariwalUNet."""

    img_resolution: Resolution = 1
    in_channels: Count = 1
    out_channels: Count = 1
    label_dim: int = Field(0, ge=0, le=1_000_000)
    augment_dim: int = Field(0, ge=0, le=65_536)
    model_channels: int = Field(128, ge=1, le=16_384)
    channel_mult: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field((1,), min_length=1, max_length=12)
    channel_mult_emb: Few = 4
    channel_mult_noise: Few = 1
    num_blocks: int = Field(4, ge=1, le=128)
    attn_resolutions: tuple[Resolution, ...] = Field((), max_length=64)
    dropout: Share = 0.0
    label_dropout: Share = 0.0
    resample_filter: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] = Field((1,), min_length=1, max_length=64)
    channels_per_head: Count = 64
    heads: Count | None = None
    groups: Count | None = None


class EDM2Sizes(UNetSizes):
    """Of EDM2UNet, and of the uncertainty beside it."""

    model_channels: int = Field(192, ge=1, le=16_384)
    channel_mult: tuple[Few, ...] = Field((1, 2, 3, 4), min_length=1, max_length=12)
    channel_mult_emb: Few | None = None  # type: ignore[assignment]
    channel_mult_noise: Few | None = None  # type: ignore[assignment]
    num_blocks: int = Field(3, ge=1, le=128)
    label_balance: float = Field(0.5, ge=0, le=1)
    concat_balance: float = Field(0.5, ge=0, le=1)
    res_balance: float = Field(0.3, ge=0, le=1)
    attn_balance: float = Field(0.3, ge=0, le=1)
    clip_act: float | None = Field(256, gt=0, le=1e30)
    channels_per_head: int = Field(64, ge=1, le=65_536)
    logvar_channels: int = Field(128, ge=0, le=65_536)


class PointMLPSizes(_Sizes):
    """Of PointMLP."""

    in_channels: Count = 2
    out_channels: Count = 2
    width: Count = 128
    layers: int = Field(3, ge=0, le=1024)
    label_dim: int = Field(0, ge=0, le=1_000_000)


class UNet2DSizes(_Sizes):
    """Of diffusers' UNet2DModel."""

    sample_size: Resolution | Annotated[tuple[Resolution, ...], Field(min_length=2, max_length=2)] | None = None
    in_channels: Count = 3
    out_channels: Count = 3
    layers_per_block: int = Field(2, ge=1, le=128)
    block_out_channels: tuple[Count, ...] = Field((224,), min_length=1, max_length=16)
    down_block_types: tuple[Annotated[str, Field(max_length=100)], ...] = Field((), max_length=16)
    up_block_types: tuple[Annotated[str, Field(max_length=100)], ...] = Field((), max_length=16)
    num_class_embeds: int | None = Field(None, ge=0, le=1_000_000)
    num_train_timesteps: int | None = Field(None, ge=1, le=1_000_000)
    norm_num_groups: int | None = Field(None, ge=1, le=65_536)
    attention_head_dim: int | None = Field(None, ge=1, le=65_536)


Each = Annotated[tuple[Count, ...], Field(max_length=64)] | Count
"""One number, or one for each block."""
Depth = Annotated[int, Field(ge=1, le=256)]
Depths = Depth | Annotated[tuple[Depth | Annotated[tuple[Depth, ...], Field(max_length=64)], ...], Field(max_length=64)]
"""How many layers: one number, one for each block, or one for each layer of each block."""
MOST_LAYERS = 4096


def _deepest(depths: Any) -> int:
    return max(map(_deepest, depths), default=1) if isinstance(depths, tuple) else int(depths or 1)


class UNet2DConditionSizes(_Sizes):
    """Of diffusers' UNet2DConditionModel."""

    sample_size: Resolution | Annotated[tuple[Resolution, ...], Field(min_length=2, max_length=2)] | None = None
    in_channels: Count = 4
    out_channels: Count = 4
    layers_per_block: Depths = 2
    transformer_layers_per_block: Depths = 1
    reverse_transformer_layers_per_block: Depths | None = None
    num_attention_heads: Each | None = None
    block_out_channels: tuple[Count, ...] = Field((320, 640, 1280, 1280), min_length=1, max_length=16)
    down_block_types: tuple[Annotated[str, Field(max_length=100)], ...] = Field((), max_length=16)
    up_block_types: tuple[Annotated[str, Field(max_length=100)], ...] = Field((), max_length=16)
    cross_attention_dim: Each = 1280
    attention_head_dim: Each = 8
    norm_num_groups: int | None = Field(None, ge=1, le=65_536)
    addition_time_embed_dim: int | None = Field(None, ge=1, le=65_536)
    projection_class_embeddings_input_dim: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        inner = max(_deepest(self.transformer_layers_per_block), _deepest(self.reverse_transformer_layers_per_block))
        layers = 2 * len(self.block_out_channels) * (_deepest(self.layers_per_block) + 1) * inner
        if layers > MOST_LAYERS:
            raise ValueError(f"{layers:,} layers are too many; at most {MOST_LAYERS:,}")
        return self


MOST_POSITIONS = 2**27
"""Numbers in the table of a transformer's positions, which is made before weights are read."""


class TransformerSizes(_Sizes):
    """Of diffusers' transformers of latents."""

    sample_size: int = Field(128, ge=1, le=8192)
    patch_size: Few = 2
    in_channels: Count = 4
    out_channels: Count | None = None
    num_layers: Depth = 28
    num_attention_heads: int = Field(16, ge=1, le=4096)
    attention_head_dim: int = Field(72, ge=1, le=16_384)
    num_embeds_ada_norm: int | None = Field(1000, ge=1, le=1_000_000)
    cross_attention_dim: Count | None = None
    caption_channels: Count | None = None
    norm_num_groups: int | None = Field(None, ge=1, le=65_536)

    @model_validator(mode="after")
    def _positions(self) -> Self:
        width = self.num_attention_heads * self.attention_head_dim
        if (count := (self.sample_size // self.patch_size) ** 2 * width) > MOST_POSITIONS:
            raise ValueError(f"a table of {count:,} numbers for positions is too large; at most {MOST_POSITIONS:,}")
        return self


class DiTSizes(_Sizes):
    """Of DiT's and SiT's own code."""

    img_resolution: Resolution = 32
    patch_size: Few = 2
    in_channels: Count = 4
    hidden_size: int = Field(1152, ge=4, le=65_536, multiple_of=4)
    depth: Depth = 28
    num_heads: int = Field(16, ge=1, le=4096)
    label_dim: int = Field(1000, ge=1, le=1_000_000)
    mlp_width: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.img_resolution % self.patch_size:
            raise ValueError(f"latents of {self.img_resolution} do not divide into patches of {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"{self.hidden_size} channels do not divide into {self.num_heads} heads")
        if (count := (self.img_resolution // self.patch_size) ** 2 * self.hidden_size) > MOST_POSITIONS:
            raise ValueError(f"a table of {count:,} numbers for positions is too large; at most {MOST_POSITIONS:,}")
        return self


class SD3Sizes(TransformerSizes):
    """Of diffusers' SD3Transformer2DModel."""

    in_channels: Count = 16
    num_layers: Depth = 18
    num_attention_heads: int = Field(18, ge=1, le=4096)
    attention_head_dim: int = Field(64, ge=1, le=16_384)
    joint_attention_dim: Count = 4096
    caption_projection_dim: Count = 1152
    pooled_projection_dim: Count = 2048
    pos_embed_max_size: int = Field(96, ge=1, le=4096)


class FluxSizes(_Sizes):
    """Of diffusers' FluxTransformer2DModel."""

    patch_size: int = Field(1, ge=1, le=1)
    in_channels: Count = 64
    out_channels: Count | None = None
    num_layers: int = Field(19, ge=0, le=256)
    num_single_layers: int = Field(38, ge=0, le=256)
    attention_head_dim: int = Field(128, ge=1, le=16_384)
    num_attention_heads: int = Field(24, ge=1, le=4096)
    joint_attention_dim: Count = 4096
    pooled_projection_dim: Count = 768
    axes_dims_rope: tuple[Annotated[int, Field(ge=2, le=16_384)], ...] = Field((16, 56, 56), min_length=3, max_length=3)


class VAESizes(_Sizes):
    """Of diffusers' AutoencoderKL."""

    in_channels: int = Field(3, ge=1, le=16)
    out_channels: int = Field(3, ge=1, le=16)
    latent_channels: int = Field(4, ge=1, le=4096)
    layers_per_block: int = Field(1, ge=1, le=128)
    block_out_channels: tuple[Count, ...] = Field((64,), min_length=1, max_length=9)
    down_block_types: tuple[Annotated[str, Field(max_length=100)], ...] = Field((), max_length=9)
    up_block_types: tuple[Annotated[str, Field(max_length=100)], ...] = Field((), max_length=9)
    norm_num_groups: int = Field(32, ge=1, le=65_536)
    sample_size: Resolution | Annotated[tuple[Resolution, ...], Field(min_length=2, max_length=2)] | None = None
    scaling_factor: float | None = Field(None, gt=0, le=1e6)
    shift_factor: float | None = Field(None, ge=-1e6, le=1e6)
    latents_mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] | None = Field(None, max_length=4096)
    latents_std: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] | None = Field(None, max_length=4096)


class TextSizes(_Sizes):
    """Of the text encoders of transformers."""

    vocab_size: int = Field(49_408, ge=1, le=10_000_000)
    max_position_embeddings: int = Field(77, ge=1, le=1_000_000)
    hidden_size: Count = 512
    intermediate_size: int = Field(2048, ge=1, le=1_000_000)
    projection_dim: int = Field(512, ge=0, le=65_536)
    num_hidden_layers: Depth = 12
    num_attention_heads: Count = 8


class T5Sizes(_Sizes):
    """Of T5's encoder."""

    vocab_size: int = Field(32_128, ge=1, le=10_000_000)
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: int = Field(2048, ge=1, le=1_000_000)
    num_layers: Depth = 6
    num_heads: Count = 8
    relative_attention_num_buckets: int = Field(32, ge=1, le=1_000_000)


TEXT_SIZES: Mapping[str, type[BaseModel]] = {"T5EncoderModel": T5Sizes}
"""Sizes by the class of a text encoder, where they are not `TextSizes`."""


def check(sizes: type[BaseModel], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments beyond what any network needs.

    Raises:
        ValueError: naming the first that is.
    """
    try:
        sizes.model_validate({name: _plain(value) for name, value in arguments.items()}, strict=False)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def check_sigma_data(value: Any) -> None:
    """Refuse a standard deviation of data that no data have.

    Raises:
        ValueError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e6:
        raise ValueError(f"sigma_data: it is {short(value)}, and a number from 1e-06 to 1e+06 is due")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
