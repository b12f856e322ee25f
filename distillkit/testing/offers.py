"""What the kit's small teachers are made of, offered by hook, so that their students can be saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.hooks import hookimpl


@hookimpl
def distillkit_networks() -> Mapping[str, Callable[..., Denoiser]]:
    from distillkit.testing.parts import SmallTextDenoiser, small_denoiser

    return {"SmallNetwork": small_denoiser, "SmallTextDenoiser": SmallTextDenoiser}


@hookimpl
def distillkit_conditioners() -> Mapping[str, type[Conditioner]]:
    from distillkit.testing.parts import SmallPrompts

    return {"SmallPrompts": SmallPrompts}


@hookimpl
def distillkit_codecs() -> Mapping[str, type[Codec]]:
    from distillkit.testing.parts import SmallLatents

    return {"SmallLatents": SmallLatents}
