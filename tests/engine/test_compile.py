"""torch.compile of whole networks and of repeated blocks: the same losses, with features, checkpointing and copies."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from distillkit import Condition, load_teacher
from distillkit.contracts.denoiser import uncompiled
from distillkit.engine.preparation import checkpoint_gradients, compile_networks, repeated_blocks
from distillkit.models.build import build_denoiser
from tests.conftest import TINY_NETWORK
from tests.models import pipelines


class Graphs(list):
    """Those that were made, and what runs them."""

    def run(self, graph, inputs):
        return graph


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Graphs are traced and guarded as ever, and then run as they are: code for the CPU takes minutes to make."""
    made = Graphs()

    def backend(graph, inputs):
        made.append(graph)
        return made.run(graph, inputs)

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **given: plain(function, backend=backend, **given))
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


@pytest.fixture
def network():
    return perturbed(build_denoiser(TINY_NETWORK))


def perturbed(network):
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return network.eval()


def inputs(shape, condition, seed=0):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    return x, torch.tensor([0.5, 0.9]), condition


def passes(network, x, t, condition):
    """Outputs, features and gradients of a whole pass, of one that ends at the bottleneck, and of both at once."""
    network.zero_grad()
    x = x.clone().requires_grad_()
    out, ended = network(x, t, condition), network.features(x, t, condition)
    both, (on_the_way,) = network.with_features(x, t, condition)
    sum(v.square().mean() for v in (out, both, on_the_way, ended[0])).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [v.detach() for v in (out, both, on_the_way, ended[0])] + [x.grad, *gradients]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("anew", [False, True])
def test_a_compiled_network_gives_the_same_numbers_features_and_gradients(network, graphs, blocks, anew):
    given = inputs((1, 8, 8), Condition(labels=torch.tensor([1, 2])))
    expected = passes(network, *given)
    if anew:
        checkpoint_gradients(network)
    compile_networks([network], pytest.fail, blocks=blocks)
    assert_same(passes(network, *given), expected)
    assert graphs
    assert all((m._compiled_call_impl is not None) == blocks for m in repeated_blocks(network))
    assert (network.model._compiled_call_impl is None) == blocks


@pytest.mark.parametrize("family", ["pixart", "stable_diffusion"])
def test_blocks_of_diffusers_with_checkpointing_and_features(family, graphs, tmp_path):
    # With graphs of the backward pass, which keep other tensors than the plain block does.
    graphs.run = aot_eager
    teacher = load_teacher(str(getattr(pipelines, family)(tmp_path / "tiny")))
    network = perturbed(teacher.copy_denoiser())
    x, _, _ = inputs(teacher.spec.shape, None)
    condition = teacher.conditioner.encode(teacher.conditioner.parse(["a red cat", "a dog"]))
    given = (x, torch.tensor([100.0, 900.0]), condition)
    expected = passes(network, *given)
    checkpoint_gradients(network)
    compile_networks([network], pytest.fail, blocks=True)
    assert_same(passes(network, *given), expected)
    kinds = {type(block).__name__ for block in repeated_blocks(network)}
    assert kinds == {"BasicTransformerBlock"} and graphs


def test_blocks_that_are_alike_share_a_graph(graphs):
    network = build_denoiser({"kind": "distillkit:PointMLP", "arguments": {"network": {"width": 16, "layers": 6}}})
    given = (torch.randn(4, 2), torch.ones(4), Condition())
    with torch.no_grad():
        expected = network(*given)
        compile_networks([network], pytest.fail, blocks=True)
        torch.testing.assert_close(network(*given), expected)
    assert len(graphs) == 1


def test_graphs_stay_where_no_hook_is_in_the_way_and_copies_have_none(network, graphs):
    compile_networks([network], pytest.fail, blocks=True)
    blocks, bottleneck = repeated_blocks(network), network.model.bottleneck
    before = [block._compiled_call_impl for block in blocks]
    with uncompiled(network, [bottleneck.conv0]):
        assert [b is bottleneck for b in blocks] == [b._compiled_call_impl is None for b in blocks]
    with uncompiled(network):
        assert all(block._compiled_call_impl is None for block in blocks)
    with pytest.raises(ZeroDivisionError), uncompiled(network):
        raise ZeroDivisionError
    network.features(*inputs((1, 8, 8), Condition(labels=torch.tensor([1, 2]))))
    assert [block._compiled_call_impl for block in blocks] == before
    assert all(block._compiled_call_impl is None for block in repeated_blocks(copy.deepcopy(network)))


def test_hooks_of_a_block_stay_outside_of_its_graph(network, graphs):
    """As FSDP's, which bring the weights of a block together: no graph can hold them."""
    given, called = inputs((1, 8, 8), Condition(labels=torch.tensor([1, 2]))), []
    expected = network(*given)
    for block in repeated_blocks(network):
        block.register_forward_pre_hook(torch._dynamo.disable(lambda module, args: called.append(module)))
    compile_networks([network], pytest.fail, blocks=True)
    for _ in range(2):
        torch.testing.assert_close(network(*given), expected)
    assert called == 2 * repeated_blocks(network)
    assert graphs and not any("forward" in block.__dict__ for block in repeated_blocks(network))


def test_a_network_without_blocks_is_compiled_whole_and_that_is_said(network, graphs):
    said = []
    network.model = nn.Sequential(nn.Flatten())
    compile_networks([network], said.append, blocks=True)
    assert network.model._compiled_call_impl is not None
    assert len(said) == 1 and "Sequential" in said[0]


def test_a_training_follows_the_same_losses(bench, graphs):
    losses = {}
    for asked in ("off", "blocks"):
        trainer = bench.trainer(compile=asked)
        for _ in range(2):
            trainer.train_step()
        losses[asked] = trainer._means.read(trainer.accelerator)
    assert graphs and losses["off"].keys() == losses["blocks"].keys()
    for name, value in losses["off"].items():
        assert losses["blocks"][name] == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_pictures_of_a_training_make_no_graphs(bench, graphs):
    """Before: every kind of picture was of a size of its own, for which whole networks were compiled."""
    made = []
    for shown in (False, True):
        torch._dynamo.reset()
        graphs.clear()
        trainer = bench.trainer(compile="network", duration=32)

        def preview(student, step, trainer=trainer, shown=shown):
            if not shown:
                return
            teacher = trainer.teacher
            condition = teacher.conditioner.encode(torch.arange(3))
            teacher.sample(torch.zeros(3, *teacher.spec.shape), condition, steps=2)
            trainer.student(torch.zeros(3, *teacher.spec.shape), condition)

        trainer.run(bench.outputs(f"shown-{shown}", preview=preview))
        made.append(len(graphs))
    assert made[0] == made[1] > 0
