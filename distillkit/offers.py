"""What distillkit itself offers, by the hooks that everyone uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.codec import Codec, Pixels, Points
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.hooks import FeatureExtractor, Measure, hookimpl
from distillkit.contracts.sampler import OneStep, Sampler
from distillkit.contracts.source import Source
from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import TextEncoder


@hookimpl
def distillkit_teachers() -> Mapping[str, Callable[[], Teacher]]:
    from distillkit.models.adm import catalog as adm
    from distillkit.models.dit import catalog as dit
    from distillkit.models.edm import catalog as edm
    from distillkit.models.edm2 import catalog as edm2

    return {**edm.offers(), **edm2.offers(), **adm.offers(), **dit.offers()}


@hookimpl
def distillkit_networks() -> Mapping[str, Callable[..., Denoiser]]:
    from distillkit.models.networks import NETWORKS

    return NETWORKS


@hookimpl
def distillkit_samplers() -> Mapping[str, type[Sampler]]:
    from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, RenoisingSampler

    return {kind.__name__: kind for kind in (OneStep, ConsistencySampler, EulerSampler, RenoisingSampler)}


@hookimpl
def distillkit_conditioners() -> Mapping[str, type[Conditioner]]:
    from distillkit.models.prompts import Prompts

    return {"Unconditional": Unconditional, "ClassLabels": ClassLabels, "Prompts": Prompts}


@hookimpl
def distillkit_encoders() -> Mapping[str, type[TextEncoder]]:
    from distillkit.models.text.clip import ClipText
    from distillkit.models.text.flux import FluxText
    from distillkit.models.text.sd3 import SD3Text
    from distillkit.models.text.sdxl import SDXLText
    from distillkit.models.text.t5 import T5Text

    return {kind.__name__: kind for kind in (ClipText, SDXLText, T5Text, SD3Text, FluxText)}


@hookimpl
def distillkit_families() -> Mapping[str, Any]:
    from distillkit.models.diffusers import dit, flux, pixart, sd3, unet2d, unet_condition

    return {
        "UNet2DModel": unet2d.describe,
        "UNet2DConditionModel": unet_condition.describe,
        "DiTTransformer2DModel": dit.describe,
        "PixArtTransformer2DModel": pixart.describe,
        "SD3Transformer2DModel": sd3.describe,
        "FluxTransformer2DModel": flux.describe,
    }


@hookimpl
def distillkit_codecs() -> Mapping[str, type[Codec]]:
    from distillkit.models.diffusers.vae import AutoencoderKL
    from distillkit.models.edm2.vae import StabilityVAE

    return {"Pixels": Pixels, "Points": Points, "AutoencoderKL": AutoencoderKL, "StabilityVAE": StabilityVAE}


@hookimpl
def distillkit_sources() -> Mapping[str, type[Source[Any]]]:
    from distillkit.data.images import ImageSource
    from distillkit.data.pairs import PairSource

    return {source.name: source for source in (PairSource, ImageSource)}


@hookimpl
def distillkit_exporters() -> Mapping[str, Callable[..., None]]:
    from distillkit.students.export import to_diffusers, to_diffusers_lora

    return {"diffusers": to_diffusers, "diffusers-lora": to_diffusers_lora}


@hookimpl
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    from distillkit.evaluation.extractor import SHIPPED

    return SHIPPED


@hookimpl
def distillkit_protocols() -> Mapping[str, Mapping[str, Any] | Callable[[], Measure]]:
    from distillkit.evaluation.presets import shipped_presets

    return shipped_presets()
