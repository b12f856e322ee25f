"""What the kit's small teachers are made of, offered by hook, so that their students can be saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.hooks import FeatureExtractor, hookimpl


@hookimpl
def distillkit_networks() -> Mapping[str, Callable[..., Denoiser]]:
    from distillkit.testing.parts import small_denoiser

    return {"SmallNetwork": small_denoiser}


@hookimpl
def distillkit_conditioners() -> Mapping[str, type[Conditioner]]:
    from distillkit.testing.parts import SmallPrompts

    return {"SmallPrompts": SmallPrompts}


@hookimpl
def distillkit_codecs() -> Mapping[str, type[Codec]]:
    from distillkit.testing.parts import SmallLatents

    return {"SmallLatents": SmallLatents}


@hookimpl
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    from distillkit.testing.protocol import SimpleStatistics

    return {"simple-statistics": SimpleStatistics}


@hookimpl
def distillkit_protocols() -> Mapping[str, Mapping[str, Any]]:
    from distillkit.testing.protocol import NAME, PROTOCOL

    return {NAME: PROTOCOL}
