"""Half precision: overflows are skipped and counted, and an exception leaves nothing switched on."""

import json
from contextlib import contextmanager

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from distillkit import DistillkitError, OptimizerConfig, UsageError, load_teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.optimization import SMALLEST_SCALE, Updater
from distillkit.engine.preparation import prepare_networks
from distillkit.models.build import build_denoiser
from distillkit.models.store.resolve import resolve
from distillkit.progress import Quiet
from tests.conftest import global_state
from tests.engine.conftest import Toy, weights


class Half:
    """An accelerator of fp16 on the CPU, which accelerate itself refuses."""

    num_processes, process_index, is_main_process, mixed_precision = 1, 0, True, "fp16"
    device = torch.device("cpu")

    def wait_for_everyone(self):
        pass


@contextmanager
def bfloat16(bench):
    AcceleratorState._reset_state()
    try:
        bench.accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        yield
    finally:
        AcceleratorState._reset_state()


def test_an_exception_in_a_half_precision_step_leaves_no_state_behind(bench):
    def fail(index):
        assert torch.is_autocast_enabled("cpu")
        raise RuntimeError("out of luck")

    before = global_state()
    with bfloat16(bench):
        trainer = bench.trainer(bench.toy(Toy(fail)), precision="bf16")
        with pytest.raises(DistillkitError, match="out of luck"), trainer.cost.watch(trainer.roles()):
            trainer.train_step()
    assert global_state() == before
    assert not trainer.student.denoiser._forward_pre_hooks
    assert all(p.requires_grad for p in trainer.student.parameters())


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_a_training_in_another_precision_than_it_says_is_refused(bench, asked):
    """Before: the accelerator's was taken, and float32 was measured for bf16."""
    with pytest.raises(UsageError, match=f'in {asked} .*computes in fp32; make that .*mixed_precision="{asked}"'):
        bench.trainer(precision=asked)
    with bfloat16(bench), pytest.raises(UsageError, match=r'computes in bf16; .*mixed_precision="no"'):
        bench.trainer()


@pytest.mark.parametrize(("precision", "said"), [("bf16", True), ("fp32", False)])
def test_a_network_without_the_switch_for_attention_is_named(precision, said):
    """Before: --float32-attention did nothing to networks of diffusers, and nothing was said."""
    notes, teacher = [], load_teacher("shapes", Quiet())
    config = TrainingConfig(precision=precision, float32_attention=True)
    prepare_networks(config, [teacher.denoiser], [], [], notes.append)
    what = "note: --float32-attention: ConditionUNet has no switch for it, and attends in bf16"
    assert notes == ([what] if said else [])
    own = resolve("edm-imagenet64").spec.network["arguments"]["network"]
    tiny = {**own, "img_resolution": 8, "model_channels": 8, "num_blocks": 1, "attn_resolutions": [8]}
    spec = {**resolve("edm-imagenet64").spec.network["arguments"], "network": tiny}
    network = build_denoiser({"kind": "distillkit:DhariwalUNet", "arguments": spec})
    prepare_networks(config, [network], [], [], notes.append)
    assert len(notes) == said and any(getattr(m, "float32_attention", False) for m in network.modules())


def test_bf16_trains(bench):
    with bfloat16(bench):
        trainer = bench.trainer(precision="bf16")
        start = weights(trainer)
        trainer.run(bench.outputs())
    assert all(torch.isfinite(v).all() for v in weights(trainer).values())
    assert any(not torch.equal(v, start[k]) for k, v in weights(trainer).items())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
def test_an_overflow_is_skipped_and_counted_and_the_scale_halved(optimizer):
    layer = nn.Linear(1, 1, bias=False)
    updater = Updater(list(layer.parameters()), OptimizerConfig(optimizer=optimizer, lr=0.1), Half())
    before = layer.weight.detach().clone()
    for value, moved in ((float("inf"), False), (1.0, True)):
        scale = updater.scaler.get_scale()
        updater.backward((layer.weight * value).sum())
        norm = updater.apply(1.0)
        assert (norm is not None) == moved == (not torch.equal(layer.weight, before))
        assert updater.scaler.get_scale() == (scale if moved else scale / 2)
        assert layer.weight.grad is None
    assert norm.item() == pytest.approx(1.0)
    assert (updater.read_skipped(), updater.read_skipped()) == (1, 0)


def test_gradients_that_are_not_finite_at_any_scale_end_the_run():
    layer = nn.Linear(1, 1, bias=False)
    updater = Updater(list(layer.parameters()), OptimizerConfig(), Half())
    with pytest.raises(DistillkitError, match="--precision bf16"):
        for _ in range(40):
            updater.backward((layer.weight * torch.nan).sum())
            assert updater.apply(1.0) is None
    assert updater.scaler.get_scale() < SMALLEST_SCALE


def test_a_run_survives_overflows_and_logs_them(bench):
    bench.accelerator = Half()
    # The loss itself is finite, its scaled gradient is not.
    recipe = bench.toy(Toy(lambda index: 1e35 if index in (1, 4) else 1.0))
    trainer = bench.trainer(recipe, precision="fp16")
    trainer.run(bench.outputs())
    entries = [json.loads(x) for x in (bench.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["skipped_steps"] for entry in entries] == [0, 1, 0, 0, 1, 0]
    assert ["grad_norm/student" in entry for entry in entries] == [True, False, True, True, False, True]
    assert "updates skipped for overflow 1" in bench.outputs().remark(2, entries[1])
