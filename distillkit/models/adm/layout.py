"""Weights of guided-diffusion and improved-diffusion (`UNetModel`) as networks of distillkit.

Widths, depths, attention, classes and how the resolution changes are read from names and shapes. The number of heads,
the order of queries, keys and values, the betas and the size of pictures leave no trace in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distillkit.errors import DistillkitError, UsageError
from distillkit.models.adm.names import own_form, published_form, published_names
from distillkit.models.adm.settings import ADMSettings, Sizes, describe, known
from distillkit.models.build import build_denoiser
from distillkit.models.original import Original, Read, settled
from distillkit.models.store.folder import check_fit

SIGNS = ("time_embed.0.weight", "input_blocks.0.0.weight")
"""Names that all such weights have."""
CONSISTENCY = re.compile(r"(?P<kind>cd|ct|edm)_(?:imagenet64|bedroom256|cat256)(?:_l2|_lpips|_ema)?")
"""Files of openai/consistency_models, whose U-Nets have the same names and shapes under EDM's preconditioning."""
UPS = ("conv.weight", "in_layers.2.weight")
"""What layers that double the resolution have, behind a block and its attention."""


def read_adm(original: Original) -> Read:
    """The teacher of weights of a `UNetModel`.

    Raises:
        UsageError: for a setting that has to be said, is unknown, or does not fit the weights.
        DistillkitError: for weights that are damaged, or of a classifier, an upsampler or a consistency model.
    """
    _check_program(original.path)
    sizes = _sizes(original)
    settings, note = settled(ADMSettings, original, known(original, sizes))
    _check_divided(original, sizes, settings)
    spec = describe(original.name, sizes, settings)
    with torch.device("meta"):
        denoiser = build_denoiser(spec.network)
    network: Any = denoiser.model
    names, variance = published_names(network), sizes.in_channels if sizes.learned else 0
    weights = dict(network.named_parameters())
    expected = {theirs: published_form(ours, weights[ours], variance) for ours, theirs in names.items()}
    check_fit(expected, original.state, str(original.path))
    state = {
        f"model.{ours}": own_form(
            ours, original.state[theirs], network, variance, new_order=settings.use_new_attention_order
        )
        for ours, theirs in names.items()
    }
    # Blocks double by repeating pixels and halve by their mean.
    state |= {f"model.{name}": torch.full_like(taps, 0.25, device="cpu") for name, taps in network.named_buffers()}
    count = sum(weight.numel() for weight in weights.values())
    return Read(spec, state, tuple(_notes(sizes, settings, count, note)))


def _check_program(path: Path) -> None:
    """Refuse what predicts under another preconditioning, which its name alone says.

    Raises:
        DistillkitError: naming where the same weights can be read.
    """
    if found := CONSISTENCY.fullmatch(path.stem):
        where = (
            ""
            if found["kind"] == "edm"
            else f" Its weights are read from hf:openai/diffusers-{path.stem}, as a student."
        )
        raise DistillkitError(
            f"{path} is named like a file of openai/consistency_models, whose networks have guided-diffusion's names "
            f"and shapes but EDM's preconditioning: they would be taken for networks that predict noise.{where} Where "
            "it is guided-diffusion's, rename it"
        )


def _sizes(original: Original) -> Sizes:
    """What names and shapes say.

    Raises:
        DistillkitError: for a classifier, an upsampler, or weights that are no such network's.
    """
    path, state = original.path, original.state
    count = _count(original, "output_blocks")
    if not count:
        raise DistillkitError(
            f"{path} has no output_blocks: it is a classifier of guided-diffusion, which makes no picture, or cut short"
        )
    embedded, channels = original.shape(SIGNS[0], 2)
    in_channels = original.shape(SIGNS[1], 4)[1]
    out = original.shape("out.2.weight", 4)[0]
    if in_channels == 6 or out not in (in_channels, 2 * in_channels):
        raise DistillkitError(
            f"{path} takes {in_channels} channels and predicts {out}: a network that is given a small picture beside "
            "the noisy one, as the upsamplers are, cannot be distilled as one that makes pictures"
        )
    ups = [n for n in range(count) if any(f"output_blocks.{n}.{k}.{up}" in state for k in (1, 2) for up in UPS)]
    blocks = ups[0] if ups else count - 1
    if blocks < 1 or count % (blocks + 1) or _count(original, "input_blocks") != count or embedded != 4 * channels:
        raise DistillkitError(f"{path} has blocks or widths that no UNetModel has: it is damaged or of another program")
    starts = range(1, count, blocks + 1)
    widths = [original.shape(f"input_blocks.{n}.0.in_layers.2.weight", 4)[0] for n in starts]
    return Sizes(
        in_channels=in_channels,
        model_channels=channels,
        channel_mult=tuple(width // channels if width % channels == 0 else width / channels for width in widths),
        num_blocks=blocks,
        levels=tuple(level for level, n in enumerate(starts) if f"input_blocks.{n}.1.qkv.weight" in state),
        classes=original.shape("label_emb.weight", 2)[0] if "label_emb.weight" in state else 0,
        resample_blocks=len(starts) == 1 or f"input_blocks.{blocks + 1}.0.op.weight" not in state,
        adaptive_scale=original.shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
        learned=out != in_channels,
    )


def _count(original: Original, above: str) -> int:
    """How many modules a list of them has."""
    return len({name.split(".")[1] for name in original.state if name.startswith(f"{above}.")})


def _check_divided(original: Original, sizes: Sizes, settings: ADMSettings) -> None:
    """Refuse settings that the widths rule out.

    Raises:
        UsageError: naming both.
    """
    last = len(sizes.channel_mult) - 1
    if settings.image_size % 2**last:
        side = settings.image_size
        raise UsageError(f"{original.path}: pictures of {side} x {side} cannot be halved {last} times, as it does")
    heads, each = settings.num_heads, settings.num_head_channels
    for level in {*sizes.levels, last}:
        width = int(sizes.channel_mult[level] * sizes.model_channels)
        if width % (heads or each or 1):
            what = f"{heads} heads" if heads else f"heads of {each}"
            raise UsageError(f"{original.path}: its attention of {width} channels does not divide into {what}")


def _notes(sizes: Sizes, settings: ADMSettings, count: int, note: str) -> Iterator[str]:
    side = settings.image_size
    attended = ", ".join(str(side >> level) for level in sizes.levels)
    widths = ", ".join(f"{mult:g}" for mult in sizes.channel_mult)
    yield (
        f"UNetModel of guided-diffusion, {side} x {side} pixels, "
        f"{f'{sizes.classes:,} classes' if sizes.classes else 'unconditional'}, {count:,} parameters: "
        f"{sizes.model_channels} channels times {widths}, {sizes.num_blocks} blocks a level, attention "
        f"{f'at {attended} and ' if attended else ''}in the middle"
    )
    if note:
        yield note
    if not sizes.learned and sizes.resample_blocks:
        yield (
            "note: it predicts no variance, as guided-diffusion's published models do; networks under EDM's "
            "preconditioning, as openai/consistency_models has them, look like it and are not such a teacher"
        )
    if sizes.learned:
        yield "left out: the variance that it predicts beside the noise"
