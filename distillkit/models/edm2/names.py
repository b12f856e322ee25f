"""Names of weights in EDM2's files, and here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

RENAMED = {"unet.": "model.", "logvar_fourier.": "logvar.fourier.", "logvar_linear.": "logvar.linear."}
"""Beginnings of names in the released files -> those of `EDM2Denoiser`."""


def ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by the names that they have here; others keep theirs."""
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    for theirs, own in RENAMED.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return name
