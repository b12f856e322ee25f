"""What can go wrong with networks in parts, on two processes. A program of tests."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from distillkit import Condition
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.outputs import Outputs
from distillkit.engine.preparation import compile_networks
from distillkit.engine.processes import Processes
from distillkit.engine.state import collect, require_finite
from distillkit.engine.trackers import Trackers
from distillkit.errors import DistillkitError, UsageError
from distillkit.jobs.spreading import asked_of
from distillkit.models.counting import count_evaluations
from distillkit.models.hashes import content_hash
from distillkit.parallel.choice import Asked, _fitting, choose
from distillkit.parallel.copies import lazily, own_memory
from distillkit.parallel.strategy import local_of
from distillkit.progress import Quiet
from distillkit_dmd2.method import DMD2
from tests.parallel.reading import (
    every_training_of_a_bench_has_its_own_teacher,
    one_reads_and_all_have_the_same,
    types_of_weights_are_those_of_the_file,
    what_cannot_be_made_without_weights_is_read_by_all,
    what_is_not_the_same_is_refused,
)
from tests.parallel.small import (
    CPU,
    RANK,
    WORLD,
    member,
    same,
    strategy,
    teacher,
    trained,
    trainer_of,
    whole_weights,
)

GAN = {"gan_weight": 0.1, "critic_gan_weight": 0.1, "updates": 1}
LAYERS = ("model.inner.0", "bottleneck")


def passes(denoiser, how, x):
    t = torch.tensor([1.0, 2.0], dtype=torch.float64)
    if how == "features":
        return sum(f.square().sum() for f in denoiser.features(x, t, Condition(), LAYERS))
    denoised, features = denoiser.with_features(x, t, Condition(), LAYERS)
    return denoised.square().sum() + sum(f.square().sum() for f in features)


def nothing_is_left_whole(denoiser):
    parts = [p for p in denoiser.parameters() if p.ndim]
    assert all(isinstance(p, DTensor) for p in parts), "a block stays gathered"


def passes_that_end_early():
    """Gradients are those of a whole network, and every block is freed, however a pass ends."""
    spread, whole = teacher().copy_denoiser(), teacher().copy_denoiser()
    shard = strategy("shard")
    shard.spread(spread, offload=True)  # which means nothing on a CPU
    gradients = shard.gradients(spread)
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).view(2, 2) * (RANK + 1)
    for how in ("features", "with features", "features"):
        with torch.no_grad():
            same({"": passes(spread, how, x)}, {"": passes(whole, how, x)}, how)
        nothing_is_left_whole(spread)
        # A frozen pass between: gradients go through it to its input alone.
        spread.requires_grad_(False)
        inner = x.clone().requires_grad_()
        passes(spread, how, inner).backward()
        nothing_is_left_whole(spread)
        expected = x.clone().requires_grad_()
        passes(whole.requires_grad_(False), how, expected).backward()
        whole.requires_grad_(True)
        spread.requires_grad_(True)
        same({"": inner.grad}, {"": expected.grad}, how)
        with gradients.passing(last=True):
            passes(spread, how, x).backward()
        gradients.average()
        passes(whole, how, x).backward()
        nothing_is_left_whole(spread)
        for (name, p), q in zip(spread.named_parameters(), whole.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), (how, name)
            if q.grad is not None:
                dist.all_reduce(q.grad)
                found = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                same({name: found}, {name: q.grad / WORLD}, how)
        for network in (spread, whole):
            network.zero_grad(set_to_none=True)


def only_the_last_pass_sends_gradients():
    spread, sent = teacher().copy_denoiser(), []
    shard = strategy("shard")
    shard.spread(spread)
    gradients = shard.gradients(spread)
    with pytest.MonkeyPatch.context() as patch:
        real = dist.reduce_scatter_single
        patch.setattr(dist, "reduce_scatter_single", lambda *a, **named: (sent.append(1), real(*a, **named))[1])
        for last in (False, False, True):
            with gradients.passing(last=last):
                passes(spread, "with features", torch.ones(2, 2, dtype=torch.float64)).backward()
            assert bool(sent) == last
    assert len(sent) == 4, "three blocks and the rest"
    gradients.average()


def a_network_in_bfloat16():
    """The critic is gathered in half precision, its gradient and weights are float32, although its first pass is the
    frozen one of the student's loss; without half precision too."""
    for precision in ("bf16", "no"):
        named = "fp32" if precision == "no" else precision
        trainer = trainer_of(
            DMD2, GAN, "shard", make=lambda: teacher(torch.float32), accelerator=member(precision), precision=named
        )
        critic, seen = trainer.recipe.learners[0], set()
        block = critic.denoiser.model.inner[0]
        block.register_forward_pre_hook(lambda module, args, seen=seen: seen.add(module.weight.dtype))
        real = trainer.strategy.gradients
        kinds = set()

        def watching(module, real=real, kinds=kinds):
            made = real(module)
            clip = made.clip
            made.clip = lambda most: (kinds.update(p.grad.dtype for p in module.parameters()), clip(most))[1]
            return made

        trainer.strategy.gradients = watching
        before = {name: local_of(p).clone() for name, p in critic.named_parameters()}
        losses = trained(trainer, 2)
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}, seen
        assert kinds == {torch.float32}, kinds
        assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
        assert all(not torch.equal(before[name], local_of(p)) for name, p in critic.named_parameters())
        assert all(p.dtype == torch.float32 for p in critic.parameters())
        # Outside of a step, as previews evaluate it.
        with torch.inference_mode(), trainer.strategy.uneven():
            if RANK == 0:
                critic.denoiser(torch.zeros(1, 2), torch.ones(1), Condition())


def a_training_goes_on_from_what_was_saved(folder):
    """Checkpoints of one process and of two, either from the other, and whole networks from those in parts."""
    for saved, taken_up in (("shard", "shard"), ("shard", "replicate"), ("replicate", "shard")):
        checkpoints = Checkpoints(folder / f"{saved}-{taken_up}")
        first, second = (trainer_of(DMD2, GAN, parallel) for parallel in (saved, taken_up))
        trained(first, 3)
        first.save(outputs_in(checkpoints))
        checkpoints.wait()
        second.restore(checkpoints.load())
        same(whole_weights(second), whole_weights(first), "restored", 0)
        same(trained(second, 3), trained(first, 3), (saved, taken_up))
        same(whole_weights(second), whole_weights(first), (saved, taken_up))


def outputs_in(checkpoints):
    return Outputs(checkpoints, MetricsFile(checkpoints.folder / "metrics.jsonl"), Trackers(), Quiet(), main=RANK == 0)


def weights_are_gathered_and_scattered():
    """In the first process alone, and from it alone; whole ones too."""
    trainer, one = trainer_of(DMD2, GAN, "shard"), trainer_of(DMD2, GAN)
    critic, whole = trainer.recipe.learners[0], one.recipe.learners[0]
    found = dict(trainer.strategy.gather(critic))
    assert found.keys() == (whole.state_dict().keys() if RANK == 0 else set())
    same(found, whole.state_dict() if RANK == 0 else {}, "gathered", 0)
    assert not any(isinstance(value, DTensor) for value in found.values())
    with torch.no_grad():
        for value in found.values():
            value.add_(1)
    same(dict(trainer.strategy.gather(critic)), whole.state_dict() if RANK == 0 else {}, "a copy", 0)
    trainer.strategy.scatter(critic, found)
    again = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in critic.state_dict().items()
    }
    same(again, {name: value + 1 for name, value in whole.state_dict().items()}, "scattered", 0)


def what_is_not_finite_is_judged_by_all():
    trainer = trainer_of(DMD2, GAN, "shard")
    trained(trainer, 1)
    if RANK == 1:
        local_of(trainer.student.denoiser.model.inner[0].weight).data[0, 0] = torch.nan
    parts, _ = collect(trainer.networks.changed, trainer._updaters, trainer.cost)
    with pytest.raises(DistillkitError, match=r"student: denoiser\.model\.inner\.0\.weight"):
        require_finite(parts, 1, Processes())


def passes_that_others_do_not_make():
    """One process evaluates alone, another more often, two networks at the same time, and the counts are right."""
    shard, found = strategy("shard"), [teacher().denoiser, teacher().copy_denoiser()]
    for denoiser in found:
        shard.spread(denoiser)
    x, t = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2), torch.ones(3, dtype=torch.float64)
    whole = teacher().denoiser
    wanted = whole(x, t, Condition())
    with torch.inference_mode(), found[0].uneven(), count_evaluations(found[0]) as evaluations:
        for _ in range(3 * RANK):
            assert torch.allclose(found[0](x, t, Condition()), wanted)
        if RANK == 0:
            assert torch.allclose(found[1](x, t, Condition()), wanted)
            found[1].features(x, t, Condition())
    assert evaluations() == 9 * RANK
    # Both evaluate one network at the same time, up to other layers.
    for both in ((LAYERS[:1], None), (LAYERS[:1], LAYERS[1:])):
        with torch.inference_mode(), found[0].uneven():
            if (layers := both[RANK]) is None:
                assert torch.allclose(found[1](x, t, Condition()), wanted)
            else:
                ours, theirs = (one.features(x, t, Condition(), layers)[0] for one in (found[1], whole))
                assert ours.shape == theirs.shape and torch.allclose(ours, theirs), layers
            assert found[1].partial is None
    # Memory that was asked for in inference mode would be lost to training.
    found[1](x, t, Condition()).sum().backward()
    assert content_hash(found[0].state_dict()) == content_hash(teacher().denoiser.state_dict())
    assert type(found[0]).__name__ == "Small" and isinstance(found[0], FSDPModule)


def copies_take_no_memory_until_they_are_changed():
    one = torch.nn.Linear(64, 64)
    own_memory(one)
    with lazily():
        import copy

        two = copy.deepcopy(one)
    with torch.no_grad():
        before = one.weight.clone()
        assert torch.equal(two.weight, before)
        two.weight.add_(1)
    assert torch.equal(one.weight, before) and torch.equal(two.weight, before + 1)


def compiled_blocks_are_gathered_as_others():
    """Graphs of blocks know nothing of how their weights come, with features taken on the way."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return aot_eager(graph, inputs)

    plain, ends = torch.compile, {}
    with pytest.MonkeyPatch.context() as patch:
        # Traced and guarded as ever, and run as they are: code for the CPU takes minutes to make.
        patch.setattr(torch, "compile", lambda function, **given: plain(function, backend=backend, **given))
        for asked in ("off", "blocks"):
            trainer = trainer_of(DMD2, GAN, "shard", compile=asked)
            ends[asked] = trained(trainer, 2), whole_weights(trainer)
            nothing_is_left_whole(trainer.student.denoiser)
    assert made and all(block._compiled_call_impl for block in trainer.student.denoiser.model.blocks)
    for compiled, expected in zip(ends["blocks"], ends["off"], strict=True):
        same(compiled, expected, "compiled")
    said, network = [], trainer.teacher.denoiser
    compile_networks([network], said.append, blocks=False)
    assert network.model._compiled_call_impl is None and "Uneven is not compiled" in said[0]


def all_choose_by_the_smallest_device():
    for held, chosen in ((50, "replicate"), (80, "shard")):
        with pytest.MonkeyPatch.context() as patch:
            memory = SimpleNamespace(total_memory=100 if RANK else 1000)
            patch.setattr(torch.cuda, "get_device_properties", lambda device, memory=memory: memory)
            said = []
            assert _fitting(Asked("auto", WORLD, WORLD, torch.device("cuda")), held, said.append) == chosen, said


def what_cannot_be_is_refused():
    with pytest.raises(UsageError, match=r"--parallel shard.*bf16.*replicate"):
        strategy("shard", precision="fp16")
    context = SimpleNamespace(world=WORLD, device=CPU)
    whole, blocks = (
        asked_of(TrainingConfig(parallel="shard", compile=compiled), context) for compiled in ("network", "blocks")
    )
    with pytest.raises(UsageError, match=r"--parallel shard.*--compile network \(but --compile blocks is.*replicate"):
        choose(whole, lambda: 0)
    assert choose(blocks, lambda: 0).spreads
    with pytest.raises(UsageError, match=r"--parallel shard: R1 at the samples"):
        trainer_of(DMD2, {**GAN, "r1_weight": 0.1, "r1": "inputs"}, "shard")
    with pytest.raises(UsageError, match=r"2 of 2 processes.*use --parallel shard"):
        strategy("hybrid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "2.6.0+cpu")
        with pytest.raises(UsageError, match=r"needs torch 2\.14 or later, and this is 2\.6\.0\+cpu"):
            strategy("shard")
        strategy("replicate")


passes_that_end_early()
only_the_last_pass_sends_gradients()
a_network_in_bfloat16()
a_training_goes_on_from_what_was_saved(Path(sys.argv[1]))
weights_are_gathered_and_scattered()
what_is_not_finite_is_judged_by_all()
passes_that_others_do_not_make()
copies_take_no_memory_until_they_are_changed()
compiled_blocks_are_gathered_as_others()
all_choose_by_the_smallest_device()
what_cannot_be_is_refused()
one_reads_and_all_have_the_same(Path(sys.argv[1]) / "dit")
what_cannot_be_made_without_weights_is_read_by_all()
what_is_not_the_same_is_refused(Path(sys.argv[1]) / "dit")
types_of_weights_are_those_of_the_file(Path(sys.argv[1]) / "bfloat16")
every_training_of_a_bench_has_its_own_teacher()
sys.stdout.write(f"done:{RANK}\n")
