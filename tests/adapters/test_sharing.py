"""One set of frozen weights for teacher, student, fake score and averages, and adapters that do not meet each other."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from distillkit import UsageError
from distillkit.benchmark.jobs import configuration
from distillkit.benchmark.suite import Suite
from distillkit.contracts.adapter import AdapterConfig, Base
from distillkit.contracts.denoiser import Denoiser, adapted_in, own_parameters
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.trainer import Trainer
from distillkit.jobs.adapters import with_adapters
from distillkit.jobs.planned import method_offer
from distillkit.jobs.spreading import asked_of
from distillkit.models.adapters import Lender, adapted, base_sha256, borrowed, chosen, copying, layers_of
from distillkit.models.build import merged, with_guidance_input
from distillkit.parallel.choice import choose
from distillkit.registry import registry
from distillkit.testing.setup import BATCH, recipe_of, synthetic_sources
from distillkit.testing.teachers import TEACHERS, conditional, smallest, text_to_latent
from distillkit.testing.training import outputs_in, weights
from tests.adapters.students import ADAPTER, adapted_student

LARGE = {"lr": 0.05, "batch": BATCH, "duration": 4 * BATCH, "channels_last": "off"}


def recipe_with(method, teacher, student, learners, settings=None):
    kind = registry().method(method)
    made = with_adapters(lambda: recipe_of(kind, teacher, settings or {}), teacher, student, learners)
    return made


def trainer_with(method, teacher, student=ADAPTER, learners=ADAPTER, settings=None, change=lambda recipe: None, **how):
    recipe = recipe_with(method, teacher, student, learners, settings)
    change(recipe)
    return Trainer(
        recipe, teacher, TrainingConfig.model_validate({**LARGE, **how}), accelerator=Accelerator(cpu=True), seed=0,
        sources=synthetic_sources(teacher, recipe.needs),
    )  # fmt: skip


def without_sharing(recipe):
    """Every network of a recipe with frozen weights of its own."""
    for part in (recipe.student, *recipe.learners):
        for denoiser in [m for m in part.modules() if isinstance(m, Denoiser) and m.base is not None]:
            for module in denoiser.modules():
                for name, parameter in module._parameters.items():
                    if parameter in denoiser.base:
                        module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            denoiser.base = None


def own(trainer):
    return [p.detach().clone() for part in (trainer.student, *trainer.recipe.learners) for p in own_trained(part)]


def own_trained(part):
    return [p for p in part.parameters() if p.requires_grad]


def content(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("method", ["dmd", "dmd2"])
@pytest.mark.parametrize("teacher", [conditional, text_to_latent], ids=["edm", "diffusers"])
def test_training_on_shared_weights_is_training_on_copies_also_under_gradient_checkpointing(method, teacher):
    settings = {"guidance": 2.0, **({"updates": 1} if method == "dmd2" else {})}
    ends = {}
    for name, how in {
        "shared": {},
        "checkpointed": {"gradient_checkpointing": True},
        "copies": {"change": without_sharing},
    }.items():
        made = teacher()
        before = content(made.denoiser)
        trainer = trainer_with(method, made, settings=settings, **how)
        first = own(trainer)
        # The student is due once at least, and the second time scores have moved apart.
        for _ in range(2 * trainer.recipe.student_every):
            trainer.train_step()
        ends[name] = own(trainer)
        # Noise needs no gradient, and neither do the weights before the first adapter: all of them learn even so.
        assert all((p != q).any() for p, q in zip(first, ends[name], strict=True))
        assert all(torch.equal(value, made.denoiser.state_dict()[key]) for key, value in before.items())
    for other in ("checkpointed", "copies"):
        assert all(torch.equal(p, q) for p, q in zip(ends["shared"], ends[other], strict=True)), other


def test_modes_and_flags_are_each_networks_own():
    teacher = text_to_latent()
    trainer = trainer_with("dmd", teacher)
    trainer.train_step()
    student, average, [fake] = trainer.student, trainer.ema, trainer.recipe.learners
    base = set(map(id, teacher.denoiser.parameters()))
    assert not any(p.requires_grad for p in teacher.denoiser.parameters())
    assert not any(p.requires_grad for p in average.parameters())
    for part in (student, average, fake):
        mine = {id(p) for p in part.parameters()}
        assert base < mine
        assert mine - base == set(map(id, own_parameters(part)))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in (*own_parameters(student), *own_parameters(fake)))
    student.train()
    assert not any(module.training for other in (teacher.denoiser, average, fake) for module in other.modules())


def test_the_average_and_checkpoints_hold_adapters_alone(tmp_path):
    teacher = smallest()
    trainer = trainer_with("dmd", teacher)
    trainer.train_step()
    [average] = trainer.averages
    assert average._to and {id(t) for t in average._to} != {id(t) for t in average._from}
    averaged = sum(value.numel() for value in average._to)
    assert averaged == sum(p.numel() for p in own_parameters(trainer.student))
    outputs = outputs_in(tmp_path, trainer.accelerator)
    trainer.prepare()
    trainer.save(outputs)
    saved = outputs.checkpoints.load()
    for name in ("student", "average", "fake_score"):
        assert saved.tensors[name] and all("lora_" in key for key in saved.tensors[name])
    assert len(saved.tensors["optimizer-student"]) == 3 * len(own_parameters(trainer.student))
    assert trainer._updaters["student"].parameters == own_parameters(trainer.student)
    # Everything that is held is counted once.
    sizes = sum(p.numel() for part in trainer.networks.changed.values() for p in own_parameters(part))
    assert trainer.networks.weight_bytes()[0] == 4 * sizes
    assert sum(trainer.networks.frozen.values()) == 4 * sum(p.numel() for p in teacher.denoiser.parameters())

    going_on = trainer_with("dmd", smallest())
    going_on.restore(saved)
    for each in (trainer, going_on):
        each.train_step()
    assert all(torch.equal(value, weights(going_on)[key]) for key, value in weights(trainer).items())


@pytest.mark.parametrize("student", [None, ADAPTER])
def test_either_side_may_be_trained_in_full(student):
    teacher = smallest()
    fake = ADAPTER if student is None else None
    trainer = trainer_with("dmd", teacher, student, fake)
    [learner] = trainer.recipe.learners
    assert [adapted_in(trainer.student) is not None, adapted_in(learner) is not None] == [
        student is not None,
        not student,
    ]
    before = content(teacher.denoiser)
    for _ in range(2):
        trainer.train_step()
    assert all(torch.equal(value, teacher.denoiser.state_dict()[key]) for key, value in before.items())
    whole = learner if student else trainer.student
    assert sum(p.numel() for p in own_trained(whole)) == sum(p.numel() for p in teacher.denoiser.parameters())


def test_a_copy_starts_as_the_teacher_and_copies_of_it_are_free():
    for kind, make in TEACHERS.items():
        teacher = make()
        with copying(teacher, Lender(base_sha256(teacher), lambda number: ADAPTER)):
            first, second = teacher.copy_denoiser(), teacher.copy_denoiser()
        x, t = torch.randn(2, *teacher.spec.shape), teacher.schedule.grid(5)[1:3].float()
        condition = teacher.conditioner.encode(teacher.conditioner.in_turn([0, 1]))
        torch.testing.assert_close(first(x, t, condition), teacher.denoiser(x, t, condition), msg=kind)
        moved = copy.deepcopy(first)
        with torch.no_grad():
            for parameter in own_parameters(moved):
                parameter.add_(0.1)
        torch.testing.assert_close(first(x, t, condition), second(x, t, condition), msg=kind)
        assert (moved(x, t, condition) - first(x, t, condition)).abs().max() > 1e-4, kind
        whole = merged(moved)
        torch.testing.assert_close(whole(x, t, condition), moved(x, t, condition), rtol=1e-3, atol=1e-4, msg=kind)
        assert adapted_in(whole) is None and own_parameters(moved)[0] is not own_parameters(first)[0]


def test_adapters_begin_by_the_seed_and_each_copy_by_itself():
    def first(seed, number=0):
        teacher = smallest()
        with copying(teacher, Lender(base_sha256(teacher), lambda number: ADAPTER, seed)):
            copies = [teacher.copy_denoiser() for _ in range(2)]
        return next(value for name, value in copies[number].state_dict().items() if "lora_A" in name)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert not torch.equal(first(0), first(0, number=1))
    teacher, kind = smallest(), registry().method("kd")
    student = recipe_of(kind, teacher, {}, seed=5, adapter=ADAPTER).student.denoiser
    assert torch.equal(next(v for n, v in student.state_dict().items() if "lora_A" in n), first(5))


def test_loading_never_writes_what_is_shared():
    teacher = smallest()
    student = adapted_student(teacher)
    shared = {name for name, p in student.named_parameters() if p in student.denoiser.base}
    full = {name: torch.zeros_like(student.get_parameter(name)) for name in shared}
    assert len(full) == len(teacher.denoiser.state_dict())
    with pytest.raises(RuntimeError, match="shared with other networks"):
        student.load_state_dict(student.state_dict() | full)
    assert all(value.abs().sum() > 0 for value in teacher.denoiser.state_dict().values())
    with pytest.raises(RuntimeError, match="Missing key"):
        student.load_state_dict({})


def test_targets_are_names_or_ends_of_names():
    teacher = conditional()
    network = teacher.denoiser
    assert chosen(network, ())[0] == ("conv0", "conv1")
    assert chosen(network, ("map_layer0", "conv0"))[1][-1] == "model.map_layer0"
    _, names = chosen(network, ("affine",))
    assert names and all(name.endswith(".affine") for name in names)
    with pytest.raises(
        UsageError, match=r"--targets to_q: the network DhariwalUNet has no layer .*affine, conv0, conv1"
    ):
        chosen(network, ("conv0", "to_q"))
    with pytest.raises(UsageError, match="has no layer"):
        chosen(network, ("norm0",))
    every = adapted(
        borrowed(network, Base(network, "0" * 64)), AdapterConfig(rank=2, targets=("affine", "skip", "conv1"))
    )
    assert {type(layer).__name__ for layer in layers_of(every).values()} == {"Linear", "LoraConv2d"}


def test_resampling_convolutions_of_edm_can_have_adapters():
    from distillkit.models.build import build_denoiser
    from distillkit.models.edm.families import describe_network
    from distillkit.testing.teachers import stirred

    for family in ("ncsnpp", "ddpmpp"):
        described = describe_network(
            family, 8, 1, 0, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4]
        )
        network = stirred(build_denoiser(described), 0).eval()
        targets = ("conv0", "conv1", "qkv", "proj", "skip", *(("4x4_aux_residual",) if family == "ncsnpp" else ()))
        made = adapted(borrowed(network, Base(network, "0" * 64)), AdapterConfig(rank=2, alpha=4, targets=targets))
        with torch.no_grad():
            for parameter in own_parameters(made):
                parameter.add_(0.2 * torch.randn(parameter.shape))
        x, t = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0])
        from distillkit import Condition

        with torch.no_grad():
            torch.testing.assert_close(merged(made)(x, t, Condition()), made(x, t, Condition()), rtol=1e-3, atol=1e-4)
            assert (made(x, t, Condition()) - network(x, t, Condition())).abs().max() > 1e-3


def test_what_a_method_adds_to_the_network_is_trained_in_full():
    teacher = text_to_latent()
    with copying(teacher, Lender(base_sha256(teacher), lambda number: ADAPTER)):
        denoiser = with_guidance_input(teacher.copy_denoiser())
    more = [name for name in denoiser.state_dict() if "lora_" not in name]
    assert more == ["model.unet.time_embedding.cond_proj.weight"]
    assert all(p.requires_grad for p in own_parameters(denoiser))
    assert len(own_parameters(denoiser)) == len(denoiser.state_dict())


def test_half_a_precision_is_for_the_frozen_weights_alone():
    teacher = text_to_latent()
    teacher.denoiser.to(torch.bfloat16)
    trainer = trainer_with("dmd", teacher, settings={"regression_weight": 0})
    trainer.train_step()
    kinds = {id(p): p.dtype for p in trainer.student.parameters()}
    assert {kinds[id(p)] for p in own_parameters(trainer.student)} == {torch.float32}
    assert {p.dtype for p in teacher.denoiser.parameters()} == {torch.bfloat16}


def test_a_pass_that_trains_few_weights_costs_their_share():
    teacher = smallest()
    meter, trainer = CostMeter(), trainer_with("dmd", teacher)
    student, own_ones = trainer.student.denoiser, own_parameters(trainer.student)
    x, t = torch.randn(2, *teacher.spec.shape), torch.ones(2)
    condition = teacher.conditioner.encode(teacher.conditioner.in_turn([0, 1]))
    with meter.watch({"student": student, "teacher": teacher.denoiser}):
        student(x, t, condition)
        teacher.denoiser(x, t, condition)
    share = sum(p.numel() for p in own_ones) / sum(p.numel() for p in student.parameters())
    assert meter.counts == {"student": pytest.approx(2 * (2 + share)), "teacher": 2}


def test_what_has_nothing_to_share_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="--student-adapter: this student is no copy of the teacher"):
        recipe_with("kd", conditional(), ADAPTER, None, {"student_network": {"model_channels": 4}})
    with pytest.raises(UsageError, match="--fake-adapter: with these settings the method trains no copy"):
        recipe_with("kd", smallest(), None, ADAPTER)
    monkeypatch.setattr("distillkit.models.adapters.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r'adapters need peft, which is not installed: pip install "distillkit\[lora\]"'
    ):
        recipe_with("kd", smallest(), ADAPTER, None)


def test_weights_that_a_network_constrains_stay_as_they_are_where_they_are_shared():
    teacher = smallest()
    kind = type(teacher.denoiser)

    def after_update(self):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.div_(parameter.norm())

    teacher.denoiser.__class__ = type("Constrained", (kind,), {"after_update": after_update})
    before = content(teacher.denoiser)
    trainer_with("dmd", teacher).train_step()
    assert all(torch.equal(value, teacher.denoiser.state_dict()[key]) for key, value in before.items())


def test_a_benchs_entry_may_train_adapters():
    entry = {"method": "dmd", "student": {"adapter": "lora", "rank": 8, "fake_adapter": "lora"}}
    suite = Suite.model_validate({"name": "s", "teacher": "digits", "budget": 1000, "methods": {"dmd lora": entry}})
    student, fake = configuration(suite, "dmd lora", method_offer("dmd")).student.adapters
    assert student == fake == AdapterConfig(rank=8)


def test_networks_in_parts_share_no_weights():
    recipe, context = (
        recipe_with("dmd", smallest(), ADAPTER, None),
        SimpleNamespace(world=2, device=torch.device("cpu")),
    )
    training = TrainingConfig.model_validate({**LARGE, "parallel": "shard"})
    with pytest.raises(UsageError, match="--parallel shard: it is not done with adapters, which share one copy"):
        choose(asked_of(training, context, recipe), lambda: 0)
    auto = training.model_copy(update={"parallel": "auto"})
    assert choose(asked_of(auto, context, recipe), lambda: 0).name == "replicate"


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("consistency", {"target_decay": 0.9}), ("ect", {"target_decay": 0.5}), ("progressive", {}), ("tcm", {}),
        ("reflow", {"rounds": 2}), ("meanflow", {}),
    ],
)  # fmt: skip
def test_networks_that_a_method_makes_of_the_student_are_on_the_same_weights(method, settings):
    teacher = smallest()
    trainer = trainer_with(method, teacher, ADAPTER, None, settings)
    wanted = sum(p.numel() for p in own_parameters(trainer.student))
    assert wanted < sum(p.numel() for p in teacher.denoiser.parameters())
    for network in trainer.networks.owned.values():
        assert sum(p.numel() for p in own_parameters(network)) == wanted
    trainer.train_step()
    assert trainer.networks.owned or method == "meanflow"
