"""Adapters of EDM's convolutions, which peft does not know."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from distillkit.models.edm.blocks import Conv2d


class LoraConv2d(nn.Module, LoraLayer):
    """A convolution with an adapter: A is as the convolution, its resampling included, with fewer channels, B is a
    convolution of one pixel behind it.

    Args:
        base_layer: the convolution.
        adapter_name, config, r, lora_alpha: as peft gives them.
    """

    def __init__(
        self, base_layer: Conv2d, adapter_name: str, config: LoraConfig, r: int, lora_alpha: float, **_: Any
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        assert base_layer.weight is not None
        self._active_adapter = adapter_name
        self.r[adapter_name], self.lora_alpha[adapter_name], self.scaling[adapter_name] = r, lora_alpha, lora_alpha / r
        self.lora_dropout[adapter_name] = nn.Identity()
        self.lora_A[adapter_name] = base_layer.narrowed(r)
        self.lora_B[adapter_name] = nn.Conv2d(r, base_layer.out_channels, 1, bias=False)
        self.lora_bias[adapter_name] = False
        self.reset_lora_parameters(adapter_name, True)  # type: ignore[no-untyped-call]
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, Conv2d)
        return module.in_channels, module.out_channels

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        for name in self.active_adapters:
            lower: Any = self.lora_A[name]
            added = self.lora_B[name](lower(x.to(lower.weight.dtype))) * self.scaling[name]
            result = result + added.to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the convolution's weight (O, I, k, k)."""
        lower: Any = self.lora_A[adapter]
        upper: Any = self.lora_B[adapter]
        return torch.einsum("or,rikl->oikl", upper.weight[:, :, 0, 0], lower.weight) * self.scaling[adapter]
