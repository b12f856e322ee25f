"""The first process alone reads a teacher's weights, and all train with the same. Checks of a program of tests."""

import copy
import gc
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from distillkit.benchmark.jobs import jobs_of
from distillkit.benchmark.suite import Suite
from distillkit.engine.interrupt import StopRequest
from distillkit.engine.networks import Networks
from distillkit.errors import DistillkitError, UsageError
from distillkit.jobs.context import Context
from distillkit.jobs.reading import read_for
from distillkit.jobs.recipe import inputs_of, recipe_of
from distillkit.jobs.spreading import building, spread, teacher_on
from distillkit.models.diffusers import folder as diffusers_folder
from distillkit.models.store import folder as teacher_folder
from distillkit.models.store.folder import write_teacher
from distillkit.models.store.reference import Offered
from distillkit.models.store.resolve import resolve
from distillkit.models.weightless import is_weightless
from distillkit.parallel import shard
from distillkit.parallel.first import named_tensors
from distillkit.parallel.strategy import is_spread, local_of
from distillkit.progress import Quiet
from distillkit.registry import Installed, registry
from distillkit.runs.config import RunConfig
from tests.models import pipelines
from tests.parallel.small import ACCELERATOR, RANK
from tests.parallel.small import teacher as small_teacher

LINES = []
QUIET = SimpleNamespace(say=LINES.append, task=Quiet().task)
CONTEXT = Context(ACCELERATOR, QUIET, StopRequest())


def config_of(method, teacher, settings, parallel="shard"):
    return RunConfig(method=method, teacher=str(teacher), settings=settings, training={"parallel": parallel})


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def refused_to_read(*args, **named):
    raise AssertionError("this process has nothing to read")


def held(module):
    """Bytes of a network in this process."""
    parts = {id(t): t for t in map(local_of, named_tensors(module).values()) if t.device.type != "meta"}
    return sum(t.numel() * t.element_size() for t in parts.values())


def networks_of(config, reference, most):
    """The networks of a run as a process has them; of none it ever holds more than `most` of its bytes."""
    method = registry().find("methods", config.method, "")
    with pytest.MonkeyPatch.context() as patch:
        if RANK:
            patch.setattr(teacher_folder, "read_tensors", refused_to_read)
            patch.setattr(diffusers_folder, "read_weights", refused_to_read)
        loaded = read_for(reference, config, CONTEXT)
        assert is_weightless(loaded.denoiser) == bool(RANK)
        loaded = teacher_on(loaded, config.training, CONTEXT)
        with building(loaded, config.training, CONTEXT):
            recipe = recipe_of(config, method, loaded)
        inputs, sizes, real = inputs_of(loaded, {}), [], shard.hand_out

        def watching(*args):
            real(*args)
            for part in (recipe.student.denoiser, loaded.denoiser, *(p.denoiser for p in recipe.learners)):
                sizes.append(held(part) / sum(t.numel() * t.element_size() for t in named_tensors(part).values()))

        patch.setattr(shard, "hand_out", watching)
        _, networks = spread(recipe, loaded, config.training, CONTEXT)
    assert len(sizes) > 50 and (RANK == 0 or max(sizes) < most), max(sizes)
    return networks, inputs


def one_reads_and_all_have_the_same(folder):
    """For a teacher of distillkit's and a pipeline whose positions are in no file, with GANs' heads, fresh students and
    networks with more weights than the teacher's."""
    if RANK == 0:
        pipelines.dit(folder)
    dist.barrier()
    cases = [
        # The table of positions is whole.
        (folder, "dmd2", {"gan_weight": 0.1, "critic_gan_weight": 0.1}, 0.75),
        (folder, "meanflow", {}, 0.75),
        ("digits", "kd", {"student_network": {"model_channels": 8}}, 0.6),
    ]
    for name, method, settings, most in cases:
        reference, config = resolve(str(name)), config_of(method, name, settings)
        networks, inputs = networks_of(config, reference, most)
        teacher = reference.load(Quiet())
        recipe = recipe_of(config, registry().find("methods", method, ""), teacher)
        expected, compared = Networks(recipe, teacher, copy.deepcopy(recipe.student)), 0
        assert inputs == inputs_of(teacher, {})
        for module, other in zip(networks.all, expected.all, strict=True):
            own, its = named_tensors(module), named_tensors(other)
            assert own.keys() == its.keys()
            for key, value in its.items():
                found = whole(own[key])
                assert found.dtype == value.dtype and torch.equal(found, value), (name, method, key)
                assert own[key].requires_grad == value.requires_grad, key
                compared += 1
        assert compared > 100, compared
        if name == folder:
            assert [key for key in named_tensors(teacher.denoiser) if key not in teacher.denoiser.state_dict()]
        del networks, expected
        gc.collect()


def what_cannot_be_made_without_weights_is_read_by_all():
    """A teacher whose network is known exactly, beside the one that students start from; and one of a plugin."""
    for reference in (resolve("mixture"), Offered("small", Installed(small_teacher, "small", "a plugin", "plugin"))):
        LINES.clear()
        loaded = read_for(reference, config_of("dmd", reference.name, {}), CONTEXT)
        assert not is_weightless(loaded.start) and not is_weightless(loaded.denoiser)
        assert ["every process reads" in line and reference.name in line for line in LINES] == [True]
    LINES.clear()
    loaded = read_for(resolve("digits"), config_of("dmd", "digits", {}, "replicate"), CONTEXT)
    assert not is_weightless(loaded.denoiser) and not LINES


def types_of_weights_are_those_of_the_file(folder):
    if RANK == 0:
        teacher = resolve("digits").load(Quiet())
        state = teacher.denoiser.state_dict()
        write_teacher(folder, {name: value.bfloat16() for name, value in state.items()}, teacher.spec)
    dist.barrier()
    loaded = read_for(resolve(str(folder)), config_of("dmd", folder, {}), CONTEXT)
    assert is_weightless(loaded.denoiser) == bool(RANK)
    assert {tensor.dtype for tensor in named_tensors(loaded.denoiser).values()} == {torch.bfloat16}


def every_training_of_a_bench_has_its_own_teacher():
    """And the one of the bench stays whole."""
    teacher = resolve("digits").load(Quiet())
    entries = {"again": {"method": "dmd"}, "dmd": {}}
    suite = Suite(
        name="two", teacher="digits", budget=5000, methods=entries, training={"parallel": "shard", "batch": 4},
        sources={"pairs": {"count": 4}},
    )  # fmt: skip
    first, second = jobs_of(suite, teacher, CONTEXT)
    assert not first.problem and not second.problem, (first.problem, second.problem)
    assert first.passes == second.passes and first.passes and first.key == second.key
    assert not is_spread(teacher.denoiser)


def what_is_not_the_same_is_refused(folder):
    """Another network on another machine, and a method that looks at weights."""
    config = config_of("dmd", folder, {})
    with pytest.MonkeyPatch.context() as patch:
        if RANK:
            real = diffusers_folder.build_denoiser
            patch.setattr(
                diffusers_folder, "build_denoiser",
                lambda description: real({**description, "arguments": {**description["arguments"], "network": {
                    **description["arguments"]["network"], "num_layers": 1}}}),
            )  # fmt: skip
        with pytest.raises(UsageError, match=r"process 1 has another network of .* than process 0: .*not there"):
            read_for(resolve(str(folder)), config, CONTEXT)
    loaded = read_for(resolve("digits"), config_of("dmd", "digits", {}), CONTEXT)
    weight = next(loaded.denoiser.parameters())
    if RANK:
        with (
            pytest.raises(UsageError, match=r"--parallel shard: this method computes.*--parallel replicate"),
            building(loaded, config.training, CONTEXT),
        ):
            float(weight.sum())
    with pytest.raises(DistillkitError, match="of its own"), building(loaded, config.training, CONTEXT):
        raise DistillkitError("an error of its own")
