"""Writes network pickles of EDM's form with Python's own pickler: persistent objects that carry their source code."""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SOURCE = "import pathlib\npathlib.Path('canary').write_text('the source in the file was executed')\n"


class EasyDict(dict):
    """A dict subclass, as EDM's settings are."""


class Persistent(nn.Module):
    """A module that is pickled as EDM's persistence pickles it."""

    def __init__(self, class_name: str, **state: Any) -> None:
        super().__init__()
        self.__dict__["class_name"] = class_name
        self.__dict__.update(state)

    def __reduce__(self):
        state = {key: value for key, value in self.__dict__.items() if key != "class_name"}
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def edm_modules() -> Iterator[None]:
    """The modules that such files name, for the pickler to find; gone afterwards."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the file's own reconstruction was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util = types.ModuleType("dnnlib.util")
    util.EasyDict, EasyDict.__module__, EasyDict.__qualname__ = EasyDict, "dnnlib.util", "EasyDict"
    added = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence,
             "dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}  # fmt: skip
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def persistent(module: nn.Module, class_name: str | None = None, **state: Any) -> nn.Module:
    """A copy of a module's tree in EDM's form; ModuleDicts stay what they are."""
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: persistent(child) for name, child in module.items()})
    out = Persistent(
        class_name or type(module).__name__,
        _init_args=(),
        _init_kwargs=EasyDict(),
        # numpy scalars appear among the attributes of the published networks.
        skip_scale=np.sqrt(0.5),
        count=np.int64(3),
        **state,
    )
    for name, value in module._parameters.items():
        out.register_parameter(name, value)
    for name, value in module._buffers.items():
        out.register_buffer(name, value)
    out.register_buffer("scratch", torch.ones(2), persistent=False)
    for name, child in module._modules.items():
        if child is not None:
            out.add_module(name, persistent(child))
    return out


def network_bytes(
    denoiser: nn.Module,
    kwargs: dict[str, Any],
    *,
    class_name: str = "EDMPrecond",
    protocol: int = 4,
    where: str = "ema",
) -> bytes:
    """The bytes of {where: network}, as EDM's training writes them."""
    with edm_modules():
        network = persistent(denoiser, class_name)
        network.__dict__["_init_kwargs"] = EasyDict(kwargs)
        return pickle.dumps({where: network, "dataset_kwargs": {"path": "x.zip"}, "loss_fn": None}, protocol=protocol)


def edm_kwargs(constructor: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as the published files hold them."""
    return {**constructor, "use_fp16": False, "channel_mult": tuple(constructor["channel_mult"])}


def write_network(path: Path, denoiser: nn.Module, constructor: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(network_bytes(denoiser, edm_kwargs(constructor), **options))
    return path
