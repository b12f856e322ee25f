"""Files that hold weights alone: whose they are by the names in them, and where to go from there."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from distillkit.errors import UsageError
from distillkit.models.original import WithoutNetwork

LORA = "LoRA"
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (LORA, ("lora_A.", "lora_B.", "lora_up.", "lora_down.", "lora.up", "lora.down")),
    ("Stable Diffusion", ("model.diffusion_model.",)),
    ("diffusers", ("conv_in.weight", "time_embedding.linear_1.weight")),
)
"""Kinds of weights by names that theirs contain, the surest first."""


def kind_of(names: Collection[str]) -> str:
    """The kind of network that weights of these names are for; empty where they show nothing."""
    for kind, signs in KINDS:
        matches = all if kind == "diffusers" else any
        if matches(any(sign in name for name in names) for sign in signs):
            return kind
    return ""


def without_network(path: Path, names: Collection[str]) -> UsageError:
    """Says what to do with a file of weights that does not say which network they are for; `WithoutNetwork` where it
    is enough to say whose it is."""
    kind, folder = kind_of(names), path.absolute().parent
    if kind == LORA:
        return UsageError(
            f"{path} holds a LoRA and no whole network: fuse it into its model (fuse_lora), and save that"
        )
    if (folder / "teacher.json").is_file():
        return WithoutNetwork(
            f"{path} holds the weights of a teacher folder: name the folder, {shlex.quote(str(folder))}"
        )
    if kind == "Stable Diffusion":
        return UsageError(
            f"{path} holds a whole Stable Diffusion checkpoint, a latent text model; pixel models of class UNet2DModel "
            "and EDM's networks are read"
        )
    if kind == "diffusers":
        where = folder if (folder / "config.json").is_file() else None
        name = (
            "name its folder, " + shlex.quote(str(where.parent if where.name == "unet" else where))
            if where
            else ("its config.json is needed too: name a folder that has both")
        )
        return UsageError(f"{path} holds the weights of a diffusers model: {name}")
    return WithoutNetwork(
        f"{path} holds weights but not the arguments of their network. Say whose network they are for: "
        f"distillkit teachers convert {shlex.quote(str(path))} --like edm-cifar10-cond (or a teacher folder); a "
        "student's are for distillkit students convert"
    )
