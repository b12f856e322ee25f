"""What the plan expects of several devices, against what a training holds and sends."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from distillkit import DistillkitError, UsageError
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.spreading import activation_bytes, networks_of
from distillkit.engine.trainer import Trainer
from distillkit.jobs.planned import method_offer
from distillkit.jobs.recipe import recipe_of
from distillkit.jobs.trial import StepPasses, passes_of, synthetic_sources
from distillkit.models.store.reference import Offered
from distillkit.models.store.resolve import resolve
from distillkit.parallel import buckets
from distillkit.parallel.expected import Network, Passes, Spread, Tensors, expected
from distillkit.parallel.units import outermost
from distillkit.runs.config import resolve as configured

CPU = torch.device("cpu")


def recipe_on(teacher, method, **settings):
    offer = method_offer(method)
    config = configured(offer.value, teacher_name="tiny", options={"settings": settings})[0]
    recipe = recipe_of(config, offer, teacher)
    for objective in recipe.objectives:
        objective.prepare()
    return recipe


@pytest.fixture
def trained(tiny_teacher):
    """A training of DMD2 with its discriminator, after a step in which everything was updated."""
    recipe = recipe_on(tiny_teacher, "dmd2", updates=1)
    config = TrainingConfig(batch=4, channels_last="off")
    sources = synthetic_sources(recipe, tiny_teacher, CPU)
    trainer = Trainer(
        recipe, tiny_teacher, config, accelerator=Accelerator(cpu=True), seed=0, sources=sources, cost=CostMeter()
    )
    trainer.prepare()
    trainer.train_step()
    return trainer


def bytes_of(tensors):
    return sum({t.untyped_storage().data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def test_one_process_holds_what_is_expected(trained):
    found = expected(networks_of(trained.networks, trained.config, {}), Spread.of("replicate", 1, 1))
    parameters = [p for network in trained.networks.all for p in network.parameters()]
    assert found.held.weights == pytest.approx(bytes_of(parameters), rel=0.01)
    moments = [
        value
        for updater in trained._updaters.values()
        for state in updater.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert found.held.moments == pytest.approx(bytes_of(moments), rel=0.01)
    trained_bytes = bytes_of([p for p in parameters if p.requires_grad])
    assert found.held.gradients == pytest.approx(trained_bytes, rel=0.01) and found.sent == 0
    assert found.memory == sum((found.held.weights, found.held.gradients, found.held.moments))


def test_copies_send_what_is_expected(trained, monkeypatch):
    """Buckets of two processes, whose collective operations are counted instead of done."""
    sizes = networks_of(trained.networks, trained.config, {})
    sent = []

    class Done:
        def wait(self):
            pass

    monkeypatch.setattr(
        buckets.dist, "all_reduce", lambda flat, **_: sent.append(flat.numel() * flat.element_size()) or Done()
    )
    for module in (trained.student, *trained.recipe.learners):
        mean = buckets.Buckets(module.parameters(), 2)
        with mean.passing(last=True):
            sum(p.square().sum() for p in module.parameters() if p.requires_grad).backward()
        mean.average()
        mean.close()
    found = expected(sizes, Spread.of("replicate", 2, 2))
    # Of two processes each sends as much as there is: 2 (N - 1) / N of it.
    assert found.all_reduce == pytest.approx(sum(sent), rel=0.03) and found.sent == found.all_reduce


def test_processes_that_share_networks_hold_and_send_what_is_expected(together):
    done = together(Path(__file__).parent / "counted.py")
    assert [one.stdout.split() for one in done] == [["done:0"], ["done:1"]], [one.stderr[-3000:] for one in done]


def test_heads_are_whole_under_every_strategy(trained):
    critic = next(one for one in networks_of(trained.networks, trained.config, {}) if one.name == "critic")
    inside = sum(p.numel() for one in outermost(trained.recipe.learners[0]) for p in one.parameters())
    assert critic.parts.weights == 4 * inside and critic.whole.weights > 0
    whole = sum(p.numel() for p in trained.recipe.learners[0].parameters())
    assert critic.parts.weights + critic.whole.weights == 4 * whole


def test_passes_are_counted_by_network(tiny_teacher):
    def passes(**settings):
        return passes_of(recipe_on(tiny_teacher, "dmd", distance="l2", **settings), tiny_teacher)

    def close(found, **counts):
        assert {role: (one.forward, one.backward) for role, one in found.by_role.items()} == {
            role: pytest.approx(count) for role, count in counts.items()
        }

    close(passes(), student=(1, 1), fake_score=(2, 1), teacher=(1, 0))
    # The student's loss, which asks the teacher and the score once, is due in every fourth step.
    close(passes(fake_updates=4), student=(1, 0.25), fake_score=(1.25, 1), teacher=(0.25, 0))


@pytest.mark.parametrize(
    ("method", "settings", "graph"),
    [
        ("dmd", {"regression_weight": 0.25}, 2.0), ("dmd", {"regression_weight": 0.0}, 1.0), ("kd", {}, 1.0),
        ("dmd2", {"gan_weight": 0.0}, 1.0), ("sid", {}, 2.8),
    ],
)  # fmt: skip
def test_what_graphs_hold_is_counted_in_passes_of_the_student(method, settings, graph):
    """Before: a pass' activations were those of its images, and DMD's, of noise and of pairs, were planned at half of
    what an H100 then held (26 GB of 56 at ImageNet-64's shape and 48 images). SiD's gradient goes through two more
    networks."""
    teacher = resolve("digits").fresh(0)
    settings = {**settings, **({"distance": "l2"} if method in ("dmd", "kd") else {})}
    # Whatever precision the job is in.
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")
    try:
        found = passes_of(recipe_on(teacher, method, **settings), teacher)
    finally:
        AcceleratorState._reset_state()
    assert found.graph == pytest.approx(graph, rel=0.07)


def test_activations_without_weights_are_those_of_a_pass():
    teacher = resolve("digits").fresh(0)
    condition = teacher.conditioner.encode(teacher.conditioner.in_turn(range(2)))
    network, shape = teacher.denoiser.requires_grad_(True), (2, *teacher.spec.shape)
    real = activation_bytes(network, lambda: network(torch.zeros(shape), torch.ones(2), condition))
    with torch.device("meta"):
        x, t, network, condition = torch.zeros(shape), torch.ones(2), network.to("meta"), condition.to("meta")
    described = activation_bytes(network, lambda: network(x, t, condition))
    assert real == described > 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fused_attention_keeps_no_weights(device):
    network = torch.nn.Linear(8, 24, device=device)
    x = torch.zeros(1, 4, 64, 8, device=device)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(*network(x).chunk(3, -1))

    rows = 4 * 64
    # Queries, keys and values are one tensor; the input, the output, and a number a row.
    assert activation_bytes(network, attend) == 4 * rows * (24 + 8 + 8 + 1)


NETWORK = Network(
    "n", Tensors(800, 400, 1600), Tensors(80, 40, 160), gathered=400, reduced=800, block=100, passes=Passes(3, 1),
    updates=0.5,
)  # fmt: skip


def test_the_strategies_differ_as_they_should():
    names = ("replicate", "shard", "hybrid")
    found = {name: expected([NETWORK], Spread.of(name, 16, 4), activations=7) for name in names}
    assert [one.held.weights for one in found.values()] == [880, 130, 280]
    assert [one.held.moments for one in found.values()] == [1760, 260, 560]
    assert [one.gathered for one in found.values()] == [0, 200, 200]
    assert [one.all_gather for one in found.values()] == [0, 400 * 4 * 15 / 16, 400 * 4 * 3 / 4]
    assert [one.reduce_scatter for one in found.values()] == [0, 800 * 0.5 * 15 / 16, 800 * 0.5 * 3 / 4]
    heads = 2 * 15 / 16 * 40 * 0.5
    assert [one.all_reduce for one in found.values()] == [
        2 * 15 / 16 * 800 * 0.5 + heads, heads, 2 * 3 / 4 * 200 * 0.5 + heads,
    ]  # fmt: skip
    # Gradients that are added up stay whole, and every micro-batch gathers anew.
    several = expected([NETWORK], Spread.of("shard", 16, 4), micro_batches=2)
    assert several.held.gradients == 440 and several.all_gather == 2 * found["shard"].all_gather
    assert several.reduce_scatter == found["shard"].reduce_scatter
    # The ends of hybrid are the other two.
    ends = [expected([NETWORK], Spread("hybrid", 16, sharing)) for sharing in (1, 16)]
    for end, name in zip(ends, ("replicate", "shard"), strict=True):
        whole = expected([NETWORK], Spread.of(name, 16, 4))
        assert (end.memory, end.sent) == (whole.memory, whole.sent)
    with pytest.raises(UsageError):
        Spread.of("hybrid", 10, 4)


def test_a_plan_for_many_devices_loads_nothing_and_writes_nothing(inside, tmp_path, monkeypatch):
    load = Offered.load

    def loaded(self, *arguments, **options):
        if self.name == "edm-imagenet64":
            raise DistillkitError("weights were loaded")
        return load(self, *arguments, **options)

    monkeypatch.setattr(Offered, "load", loaded)
    arguments = ("run", "dmd2", "--teacher", "edm-imagenet64", "--dry-run", "--devices")
    planned = inside(*arguments, "16", "--batch", "512")
    said = " ".join(planned.stdout.replace("│", " ").split())
    assert planned.returncode == 0, planned.stderr
    assert "student 1.18 GB" in said and "counted on digits" in said and "hybrid 2 x 8:" in said
    assert "all-gather" in said and "reduce-scatter" in said and "activations" in said
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("distillkit.jobs.devices.passes_of", lambda *_: StepPasses({}, 2.0))
    asked = ("--teacher-dtype", "bf16", "--parallel", "hybrid", "--shard-size", "4")
    lowered = inside(*arguments, "16", "--batch", "512", *asked)
    said = " ".join(lowered.stdout.replace("│", " ").split())
    # 32 images a device, in bf16 as the preset has it.
    assert "273 MB a sample through the student; graphs hold 2 such passes of 32 at most, 17.5 GB" in said
    assert "teacher 592 MB" in said and "4 x 4:" in said and "hybrid (asked" in said, lowered.stderr
    adapted = inside(*arguments, "16", "--batch", "512", "--student-adapter", "lora", "--rank", "32")
    said = " ".join(adapted.stdout.replace("│", " ").split())
    assert "student 63.8 MB (63.8 MB trained)" in said and "teacher 1.18 GB" in said, adapted.stderr
    assert "shard not done with adapters" in said
    refused = inside(*arguments, "7", "--batch", "512")
    assert refused.returncode == 2 and "--devices 7" in refused.stderr
    groups = inside(*arguments, "16", "--batch", "512", "--parallel", "hybrid", "--shard-size", "3")
    assert groups.returncode == 2 and "16 processes are no multiple of 3" in groups.stderr
    alone = inside("run", "dmd2", "--devices", "8")
    assert alone.returncode == 2 and "--dry-run" in alone.stderr
