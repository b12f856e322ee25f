"""A frozen teacher in less than float32: after its copies were made, told by all identities, or refused."""

import copy
import importlib.util

import pytest
import torch
from diffusers.models import modeling_utils

from distillkit import DistillkitError, UsageError, load_teacher
from distillkit.contracts.source import Pairs
from distillkit.data.identity import teacher_identity
from distillkit.evaluation.generator import teacher_generator
from distillkit.jobs.plan import plan_rows
from distillkit.jobs.planned import planned
from distillkit.jobs.teacher_weights import lower, require_teacher_dtype
from distillkit.models import precision
from distillkit.progress import Quiet
from distillkit.registry import registry
from distillkit.testing.teachers import conditional
from distillkit.testing.training import trainer_of, weights
from distillkit.weights import weight_bytes
from tests.models import pipelines

SMALL = {"distance": "l2", "pairs_count": 8, "batch": 8, "duration": 16}


def types(module):
    return {parameter.dtype for parameter in module.parameters()}


@pytest.fixture
def job(tmp_path):
    """Makes the job of a run, and what it says."""

    def make(teacher, dtype, method="dmd", **settings):
        said, asked = [], {**SMALL, **settings, "teacher_dtype": dtype}
        with planned(method, teacher, output_dir=tmp_path / dtype, device="cpu", **asked) as plan:
            plan.context.reporter.say = said.append
            return plan.job(), said

    return make


def test_copies_start_from_float32_and_the_rest_is_told_what_it_is(job):
    teacher = conditional()
    before = {name: value.clone() for name, value in teacher.denoiser.state_dict().items()}
    (plain, nothing), (half, said) = job(teacher, "fp32"), job(teacher, "bf16")
    assert types(half.teacher.denoiser) == {torch.bfloat16}
    for network in (half.recipe.student.denoiser, half.recipe.learners[0].denoiser, teacher.denoiser):
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert half.recipe.objectives[0].teacher is half.teacher
    # Pairs, the teacher's own figures and the run's inputs differ by it.
    stores = [one.sources[Pairs].store for one in (plain, half)]
    assert stores[0].folder != stores[1].folder and "torch.bfloat16" in str(stores[1].shards.identity)
    for one in (plain, half):
        # As teachers of files are known: by the hash of the file.
        one.teacher.spec = one.teacher.spec.model_copy(update={"weights_sha256": "0" * 64})
    generators = [teacher_generator(one.teacher) for one in (plain, half)]
    assert "bfloat16" in str(generators[1].subject.remarks) and generators[0].subject.remarks == ()
    assert generators[0].identity() != generators[1].identity() and "bfloat16" in str(generators[1].identity())
    assert plain.inputs["teacher"] != half.inputs["teacher"]
    assert not any("weights in" in line for line in nothing) and plain.remarks == ()
    assert len([line for line in said if "bfloat16 100%" in line and "float32" in line]) == 1
    assert half.remarks == ("the teacher's weights were in bf16",)
    assert half.describe(half.recipe.final_sampler, 0).remarks == half.remarks
    assert weight_bytes(half.teacher.denoiser) * 2 == weight_bytes(plain.teacher.denoiser)


@pytest.mark.parametrize("method", ["dmd", "sid", "ladd"])
def test_methods_train_with_a_teacher_in_half_precision(method):
    trainer = trainer_of(registry().method(method), conditional(), {}, batch=4)
    exact = copy.deepcopy(trainer.teacher.denoiser)
    lower(trainer.teacher, "bf16", lambda text: None)
    before = weights(trainer)
    for _ in range(2):
        trainer.train_step()
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert any(not torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert types(trainer.student) == {torch.float32} == types(exact) and types(trainer.teacher.denoiser) != types(exact)


def test_a_pipelines_text_encoder_follows_and_its_files_hashes_stay(job, tmp_path):
    teacher = load_teacher(str(pipelines.stable_diffusion(tmp_path / "tiny")))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    made, _ = job(teacher, "bf16", prompts=str(prompts))
    assert made.teacher.conditioner.encoder.dtype == "bfloat16" and teacher.conditioner.encoder.dtype == "float32"
    assert made.teacher.conditioner.encoder.parts == teacher.conditioner.encoder.parts
    assert types(made.teacher.denoiser) == {torch.bfloat16} and types(made.recipe.student) == {torch.float32}


def test_the_plan_counts_the_teacher_as_it_is_held(tmp_path):
    found = {}
    for dtype in ("fp32", "bf16"):
        with planned("kd", conditional(), output_dir=tmp_path / dtype, device="cpu", **SMALL, teacher_dtype=dtype) as p:
            _, rows = plan_rows(p)
            found[dtype] = next(text for name, text in rows if name == "memory")
    assert found["fp32"] != found["bf16"] and "weights were in bf16" in str(rows)


def test_networks_that_do_not_take_it_are_refused(job):
    with pytest.raises(UsageError, match="mixture takes no weights in bf16"):
        job(load_teacher("mixture"), "bf16", distance="l2")
    with pytest.raises(DistillkitError, match="teacher-dtype"):
        job(conditional(), "int8")


def test_fp8_is_refused_without_its_device_or_its_library(job, monkeypatch):
    with pytest.raises(UsageError, match=r"--teacher-dtype fp8 needs a GPU.*8\.9"):
        job(conditional(), "fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UsageError, match="needs a GPU"):
        require_teacher_dtype("fp8", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        require_teacher_dtype("fp8", torch.device("cuda"))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("family", [pipelines.pixart, pipelines.stable_diffusion], ids=lambda build: build.__name__)
def test_fp8_holds_linear_layers_in_8_bits_and_gradients_pass(family, tmp_path):
    """The numbers; on a GPU the same layers run with its own kernels."""
    teacher = load_teacher(str(family(tmp_path / "tiny")), Quiet())
    exact = copy.deepcopy(teacher.denoiser)
    x = torch.randn(2, *teacher.spec.shape)
    condition, t = teacher.conditioner.encode(teacher.conditioner.parse(["a cat", "a dog"])), torch.full((2,), 500.0)
    lowered = precision.in_fp8(teacher)
    identity = teacher_identity(lowered)
    assert "torch.float8_e4m3fn" in identity["precision"] and "float8_e4m3fn" in precision.described(lowered)
    assert weight_bytes(lowered.denoiser) < 0.5 * weight_bytes(exact)
    ends = []
    for network in (lowered.denoiser, exact):
        given = x.clone().requires_grad_()
        out = network(given, t, condition)
        out.square().mean().backward()
        ends.append((out.detach(), given.grad))
    for found, expected in zip(*ends, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.1 * expected.norm() and not torch.equal(found, expected)


def test_models_of_diffusers_are_lowered_without_a_false_alarm(monkeypatch):
    """Before: a warning for each of its models, eight for `shapes`, of layers that should stay in float32: []."""
    warned, teacher = [], load_teacher("shapes", Quiet())
    monkeypatch.setattr(modeling_utils.logger, "warning", warned.append)
    lower(teacher, "bf16", lambda text: None)
    assert types(teacher.denoiser) == {torch.bfloat16} and not warned
