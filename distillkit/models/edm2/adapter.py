"""Adapters of EDM2's convolutions, which peft does not know."""

from __future__ import annotations

import math
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from distillkit.models.edm2.layers import MPConv


class LoraMPConv(nn.Module, LoraLayer):
    """A magnitude-preserving convolution with an adapter: B A is added to its weight before that is normalised, so that
    it preserves magnitudes with the adapter as without.

    Args:
        base_layer: the convolution.
        adapter_name, config, r, lora_alpha: as peft gives them.
    """

    def __init__(
        self, base_layer: MPConv, adapter_name: str, config: LoraConfig, r: int, lora_alpha: float, **_: Any
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        # Effective weights are smaller than W by the root of their number: in their terms B A is a usual layer's.
        self.scaling[adapter_name] = lora_alpha / r * math.sqrt(base_layer.fan_in)
        self.lora_dropout[adapter_name] = nn.Identity()
        self.lora_A[adapter_name] = nn.Linear(base_layer.fan_in, r, bias=False)
        self.lora_B[adapter_name] = nn.Linear(r, base_layer.out_channels, bias=False)
        self.lora_bias[adapter_name] = False
        self.reset_lora_parameters(adapter_name, True)  # type: ignore[no-untyped-call]
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, MPConv)
        return module.in_channels, module.out_channels

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        added = sum(self.get_delta_weight(name) for name in self.active_adapters)
        result: Tensor = self.base_layer(x, gain, added)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the convolution's weight, of its shape."""
        lower: Any = self.lora_A[adapter]
        upper: Any = self.lora_B[adapter]
        base: Any = self.base_layer
        delta: Tensor = upper.weight @ lower.weight * self.scaling[adapter]
        return delta.view(base.out_channels, base.in_channels, *base.kernel)
