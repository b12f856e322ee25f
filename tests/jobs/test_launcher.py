"""What `accelerate launch` asks for is taken over, or refused with both values; never ignored."""

import pytest
import yaml

from distillkit.benchmark.jobs import configuration
from distillkit.benchmark.suite import Suite
from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError
from distillkit.jobs.context import job_context, make_accelerator
from distillkit.jobs.launcher import launcher_settings
from distillkit.jobs.planned import method_offer

DEFAULTS = {
    "ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}  # fmt: skip
"""What `accelerate launch` sets where nothing is asked for."""


def launched(**asked):
    return launcher_settings({**DEFAULTS, **{f"ACCELERATE_{name}": value for name, value in asked.items()}})


def test_a_launcher_that_asks_for_nothing_changes_nothing():
    config = TrainingConfig(precision="bf16", compile="blocks")
    assert launched().training(config, {}) == (config, [])
    assert launched().for_device("auto") == "auto" and list(launched().unused(())) == []


@pytest.mark.parametrize(
    ("asked", "name", "value"),
    [
        ({"MIXED_PRECISION": "bf16"}, "precision", "bf16"),
        ({"MIXED_PRECISION": "fp16"}, "precision", "fp16"),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, "compile", "network"),
        ({"DYNAMO_USE_REGIONAL_COMPILATION": "true", "DYNAMO_BACKEND": "INDUCTOR"}, "compile", "blocks"),
        ({"GRADIENT_CLIPPING": "0.5"}, "clip_grad_norm", 0.5),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "batch_per_device", 8),
    ],
)
def test_settings_are_taken_over_and_said(asked, name, value):
    config, lines = launched(**asked).training(TrainingConfig(batch=64), {}, 2)
    assert getattr(config, name) == value
    assert len(lines) == 1 and f"ACCELERATE_{next(iter(asked))}" in lines[0]


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({"MIXED_PRECISION": "bf16"}, {"precision": "fp16"}),
        ({"MIXED_PRECISION": "bf16"}, {"precision": "fp32"}),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, {"compile": "blocks"}),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, {"compile": "off"}),
        ({"GRADIENT_CLIPPING": "0.5"}, {"clip_grad_norm": 1.0}),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, {"batch_per_device": 32}),
    ],
)
def test_contradictions_are_refused_with_both_values(asked, written):
    ((variable, value),), ((name, own),) = asked.items(), written.items()
    with pytest.raises(UsageError) as refused:
        launched(**asked).training(TrainingConfig(batch=64, **written), written, 1)
    for part in (f"ACCELERATE_{variable}={value}", f"--{name.replace('_', '-')}", str(own).lower()):
        assert part in str(refused.value)


def test_passes_that_are_as_many_are_no_contradiction():
    written = {"batch_per_device": 17}
    config, lines = launched(GRADIENT_ACCUMULATION_STEPS="4").training(TrainingConfig(batch=64, **written), written, 1)
    assert config.batch_per_device == 17 and not lines
    with pytest.raises(UsageError, match="GRADIENT_ACCUMULATION_STEPS=5"):
        launched(GRADIENT_ACCUMULATION_STEPS="5").training(TrainingConfig(batch=4), {}, 1)


def test_all_that_cannot_be_done_is_refused_in_one_message():
    asked = {
        "USE_DEEPSPEED": "true", "USE_MEGATRON_LM": "1", "USE_PARALLELISM_CONFIG": "true",
        "MIXED_PRECISION": "fp8", "DYNAMO_BACKEND": "AOT_EAGER", "GRADIENT_ACCUMULATION_STEPS": "-3",
    }  # fmt: skip
    with pytest.raises(UsageError) as refused:
        launched(**asked)
    for name in asked:
        assert f"ACCELERATE_{name}" in str(refused.value)
    with pytest.raises(UsageError, match="MODE=max-autotune"):
        launched(DYNAMO_BACKEND="INDUCTOR", DYNAMO_MODE="max-autotune")
    with pytest.raises(UsageError, match="torchrun"):
        launcher_settings({**DEFAULTS, "MASTER_ADDR": "127.0.0.1"})
    launcher_settings({**DEFAULTS, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"})


SHARDED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}  # fmt: skip
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


def test_networks_are_spread_as_accelerates_fsdp_would():
    config, lines = launcher_settings({**DEFAULTS, **SHARDED}).training(TrainingConfig(), {})
    assert config == TrainingConfig(parallel="shard")
    assert len(lines) == 1 and "--parallel shard" in lines[0] and "ACCELERATE_USE_FSDP=true" in lines[0]
    asked = {**DEFAULTS, **SHARDED, "FSDP_ACTIVATION_CHECKPOINTING": "true"}
    config, lines = launcher_settings(asked).training(TrainingConfig(), {})
    assert config.gradient_checkpointing and len(lines) == 2
    with pytest.raises(UsageError, match=r"--parallel replicate.*ACCELERATE_USE_FSDP=true"):
        launcher_settings(asked).training(TrainingConfig(parallel="replicate"), {"parallel": "replicate"})
    assert (
        launcher_settings({**DEFAULTS, **SHARDED, "ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}).parallel is None
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_VERSION", "1"), ("FSDP_VERSION", None), ("FSDP_RESHARD_AFTER_FORWARD", "false"),
        ("FSDP_OFFLOAD_PARAMS", "true"), ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "FluxTransformerBlock"), ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "true"),
    ],
)  # fmt: skip
def test_what_accelerates_fsdp_does_otherwise_is_refused(name, value):
    asked = {key: found for key, found in {**DEFAULTS, **SHARDED, name: value}.items() if found is not None}
    with pytest.raises(UsageError, match=f"{name}={value or 1}: "):
        launcher_settings(asked)


def test_devices(monkeypatch):
    assert launched(USE_CPU="True").for_device("auto") == "cpu"
    with pytest.raises(UsageError, match=r"--device cuda.*ACCELERATE_USE_CPU=True"):
        launched(USE_CPU="True").for_device("cuda")
    with pytest.raises(UsageError, match=r"--device cpu.*ACCELERATE_TORCH_DEVICE=cuda:1"):
        launched(TORCH_DEVICE="cuda:1").for_device("cpu")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="ACCELERATE_USE_DEEPSPEED"):
        make_accelerator("fp32", "cpu")


def test_one_process_may_have_jobs_of_several_precisions():
    for precision, mixed in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        assert make_accelerator(precision, "cpu").mixed_precision == mixed


def test_a_run_is_planned_in_the_launchers_precision(inside, small_run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    done = inside(*small_run, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "precision: bf16" in done.stdout and "ACCELERATE_MIXED_PRECISION=bf16" in done.stderr + done.stdout
    refused = inside(*small_run, "--precision", "fp32", "--dry-run")
    assert refused.returncode == 2
    assert "--precision fp32" in refused.stderr and "ACCELERATE_MIXED_PRECISION=bf16" in refused.stderr


def test_other_commands_take_the_precision_or_say_that_it_means_nothing(inside, tiny_teacher_folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refused = inside("evaluate", tiny_teacher_folder, "--precision", "fp16")
    assert refused.returncode == 2 and "ACCELERATE_MIXED_PRECISION=bf16" in refused.stderr
    sampled = inside("sample", tiny_teacher_folder, "--num", "1")
    assert sampled.returncode == 0 and "ACCELERATE_MIXED_PRECISION=bf16" in sampled.stdout + sampled.stderr
    refused = inside("teachers", "train", "--precision", "fp32", "--dry-run")
    assert refused.returncode == 2 and "ACCELERATE_MIXED_PRECISION=bf16" in refused.stderr


def test_a_suites_trainings_have_its_precision(monkeypatch):
    def suite(**values):
        fields = {"name": "s", "teacher": "digits", "budget": 1000, "methods": {"kd": {}}}
        return Suite.model_validate({**fields, **values})

    kd = method_offer("kd")
    assert configuration(suite(), "kd", kd).training.precision == "fp32"
    with pytest.raises(UsageError, match="bf16"):
        configuration(suite(methods={"kd": {"training": {"precision": "bf16"}}}), "kd", kd)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert configuration(suite(), "kd", kd).training.precision == "bf16"
    with pytest.raises(UsageError, match="ACCELERATE_MIXED_PRECISION=bf16"), job_context(settled=("precision",)):
        pass


@pytest.mark.parametrize("command", [
    ("run", "dmd"), ("teachers", "train"), ("evaluate", "digits"), ("sample", "digits"), ("bench",),
    ("reference", "make", "--data", "x", "--output", "y.safetensors", "--protocol", "digits8"),
])  # fmt: skip
@pytest.mark.parametrize("device", ["gpu", "cuda:1"])
def test_every_command_refuses_a_device_and_names_those_that_are_possible(inside, command, device):
    done = inside(*command, "--device", device)
    assert done.returncode == 2
    assert f"--device {device}" in done.stderr and "auto, cpu" in done.stderr and "cuda" in done.stderr


def test_a_launchers_configuration_is_kept_with_the_run(inside, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    done = inside(*small_run, "--output-dir", "run", "--duration", "32", "--protocol", "none", "--quiet")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["batch_per_device"] == 4
