"""Attention of EDM's networks: fused where it can be, in the layout of its feature maps, differentiable forwards."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distillkit.engine.cost import flop_counter
from distillkit.models.edm.blocks import UNetBlock, attention

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]


class Called(TorchDispatchMode):
    """Notes which operations run."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.functions = [*getattr(self, "functions", []), function]
        return function(*args, **(kwargs or {}))


def plain(block, x):
    """Attention by the formula, the released weights' order of q, k and v spelt out."""
    batch, channels, height, width = x.shape
    parts = block.qkv(block.norm2(x)).reshape(batch, block.heads, channels // block.heads, 3, height * width)
    q, k, v = parts.unbind(3)
    weights = torch.einsum("bhcq,bhck->bhqk", q, k).div(q.shape[2] ** 0.5).softmax(-1)
    attended = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(x.shape)
    return (block.proj(attended) + x) * block.skip_scale


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = UNetBlock(16, 16, 4, heads=2, skip_scale=0.5)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    return block


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_attention_is_attention_in_either_layout(block, layout):
    x = torch.randn(2, 16, 3, 5).contiguous(memory_format=layout).requires_grad_()
    with Called() as called:
        out = block._attend(x)
    assert called.functions.count(FUSED) == 1
    expected = plain(block, x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(out)
    gradients = [torch.autograd.grad(o, [x, block.qkv.weight], direction) for o in (out, expected)]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    assert out.is_contiguous(memory_format=layout)


def test_attention_is_differentiated_forwards_too():
    q, k, v, direction, weights = torch.randn(5, 2, 1, 4, 8, dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda q: attention(q, k, v), (q,), (direction,))
    gradient = torch.func.vjp(lambda q: attention(q, k, v), q)[1](weights)[0]
    torch.testing.assert_close((tangent * weights).sum(), (gradient * direction).sum())


def test_operations_of_fused_attention_are_counted():
    q = torch.randn(2, 3, 8, 4, requires_grad=True)
    with flop_counter() as forward:
        out = attention(q, q, q)
    assert forward.get_total_flops() == 2 * 2 * (2 * 3 * 8 * 8 * 4)
    with flop_counter() as backward:
        out.sum().backward()
    assert backward.get_total_flops() >= 2 * forward.get_total_flops()
