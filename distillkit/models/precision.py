"""Teachers in less than float32: the weights of their networks and text encoders."""

from __future__ import annotations

import importlib.util
from collections import Counter

import torch
from torch import Tensor, nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.models.prompts import Prompts
from distillkit.models.text.frozen import FrozenText
from distillkit.weights import plain_tensors, weight_bytes

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
FP8_CAPABILITY = (8, 9)
"""Of the first GPUs that compute with 8-bit floating-point numbers: Ada and Hopper."""


def in_dtype(teacher: Teacher, dtype: torch.dtype) -> Teacher:
    """The same teacher with its weights in `dtype`; schedules, solvers and autoencoders stay in float32 or better.

    Raises:
        UsageError: for a network that computes in the type of its inputs alone, or another type.
    """
    check_dtype(dtype)
    if dtype == torch.float32:
        return teacher
    require_casts(teacher, DTYPES[dtype])
    for denoiser in teacher.denoisers:
        _cast(denoiser, dtype)
    conditioner = teacher.conditioner
    if isinstance(conditioner, Prompts) and isinstance(conditioner.encoder, FrozenText):
        encoder = conditioner.encoder.in_dtype(DTYPES[dtype])
        teacher.conditioner = conditioner.model_copy(update={"encoder": encoder})
    return teacher


def in_fp8(teacher: Teacher) -> Teacher:
    """The same teacher with the weights of its linear layers in 8-bit floating-point numbers (e4m3, a scale for each
    row), and all others as its text encoders in bfloat16, which is what it computes in.

    Raises:
        UsageError: for a network that computes in the type of its inputs alone.
    """
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    teacher = in_dtype(teacher, torch.bfloat16)
    for denoiser in teacher.denoisers:
        quantize_(denoiser, Float8WeightOnlyConfig())
    return teacher


def require_fp8(device: torch.device) -> None:
    """Refuse 8-bit weights where they cannot be had.

    Raises:
        UsageError: saying what is missing.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise UsageError(
            "--teacher-dtype fp8 needs a GPU that computes with 8-bit numbers (compute capability 8.9 or more: Ada, "
            f"Hopper and later); on {device.type} use bf16"
        )
    if importlib.util.find_spec("torchao") is None:
        raise UsageError(
            '--teacher-dtype fp8 needs torchao: pip install "distillkit[low-precision]" (or torchao), or use bf16'
        )


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse types that no network takes.

    Raises:
        UsageError: naming those that they do.
    """
    if dtype not in DTYPES:
        raise UsageError(f"weights are not loaded in {dtype}; known: {', '.join(map(str, DTYPES))}")


def require_casts(teacher: Teacher, dtype: str) -> None:
    """Refuse other weights than float32 for a network that computes in the type of its inputs.

    Raises:
        UsageError: naming the teacher, or what guides it.
    """
    names = [teacher.spec.name, *([teacher.guide.spec.name] if teacher.guide else [])]
    for name, denoiser in zip(names, teacher.denoisers, strict=True):
        if not casts(denoiser):
            raise UsageError(
                f"{name} takes no weights in {dtype}: its network computes in the type of its samples (`casts_inputs` "
                "is not set); load it in float32, runs compute in half precision with --precision bf16"
            )


def casts(denoiser: Denoiser) -> bool:
    """Whether a network takes float32 samples whatever its weights are: it says so by `casts_inputs`."""
    model = getattr(denoiser, "model", None)
    return bool(getattr(model, "casts_inputs", False)) and next(denoiser.parameters(), None) is not None


def described(teacher: Teacher) -> str:
    """What is in which type, for people."""
    sizes: Counter[str] = Counter()
    for name, parameter in (named for denoiser in teacher.denoisers for named in denoiser.named_parameters()):
        # Of 8 bits the numbers, not their scales.
        largest = max((tensor for _, tensor in plain_tensors({name: parameter})), key=Tensor.numel)
        sizes[str(largest.dtype).removeprefix("torch.")] += parameter.numel()
    shares = ", ".join(f"{kind} {size / sizes.total():.0%}" for kind, size in sizes.most_common())
    return f"{shares}, {sum(map(weight_bytes, teacher.denoisers)) / 1e6:,.1f} MB"


def _cast(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Weights in `dtype`; and what is no weight in the models of diffusers, as their pipelines load it."""
    from diffusers import ModelMixin

    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in denoiser.modules():
        if isinstance(module, ModelMixin):
            # Their own `to` warns of every model whose list of what to keep in float32 is there and empty.
            nn.Module.to(module, dtype)
