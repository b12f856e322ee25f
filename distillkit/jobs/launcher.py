"""What `accelerate launch` asks for: it hands its options and its configuration file on in environment variables.

What means something here becomes a setting of the job; what contradicts a setting, or cannot be done, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import patch_environment

from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError

TRAINING = ("precision", "compile", "parallel", "gradient_checkpointing", "passes", "clip_grad_norm")
"""What a training takes over."""
PRECISIONS = {"no": None, "bf16": "bf16", "fp16": "fp16"}
"""accelerate's names; "no" is also what it says where nothing was asked for."""

UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not used; leave out --use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not used; leave out --use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "processes share the batch and nothing else; leave out "
    "--use_parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own parallelism is not used",
    "ACCELERATE_IN_TPU_POD": "TPUs are not supported",
    "ACCELERATE_DOWNCAST_BF16": "TPUs are not supported; leave out --downcast_bf16",
}
FSDP = "ACCELERATE_USE_FSDP"
FSDP_ONLY: Mapping[str, tuple[str, frozenset[str], str]] = {
    "FSDP_VERSION": ("1", frozenset({"2"}), "networks are held in parts by FSDP 2; use --fsdp_version 2"),
    "FSDP_RESHARD_AFTER_FORWARD": (
        "true", frozenset({"true", "full_shard"}), "blocks are freed after every pass (true)",
    ),
    "FSDP_OFFLOAD_PARAMS": (
        "false", frozenset({"false"}), "of a teacher alone parts may be kept in the CPU's memory (--offload-teacher)",
    ),
    "FSDP_AUTO_WRAP_POLICY": (
        "NO_WRAP", frozenset({"no_wrap", "transformer_based_wrap"}), "blocks are those that a network names itself",
    ),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", frozenset({""}), "blocks are those that a network names itself"),
    "FSDP_IGNORED_MODULES": ("", frozenset({""}), "every network is held in parts"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false", frozenset({"false"}), "activations are not offloaded"),
}  # fmt: skip
"""Settings of accelerate's FSDP that mean something in its version 2: the default, what `--parallel shard` does, and
what is said of everything else."""
DYNAMO = {
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
}
"""Settings of torch.compile, and the only values that --compile has."""
REGIONAL = "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"
"""Compilation of repeated blocks, as accelerate calls it."""

WORLD = frozenset({"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"})
"""What launchers of several processes set."""
MOST = 1e9


@dataclass(frozen=True)
class LauncherSettings:
    """What was asked for; None where nothing was.

    Args:
        precision: of network passes. compile: what is compiled. passes: of which a step is made.
        parallel: how networks are spread. gradient_checkpointing: whether activations are computed anew.
        clip_grad_norm: most of a gradient's norm. device: "cpu", "cuda" or "mps".
        asked: "VARIABLE=value" of each field, for messages.
    """

    precision: str | None = None
    compile: str | None = None
    parallel: str | None = None
    gradient_checkpointing: bool | None = None
    passes: int | None = None
    clip_grad_norm: float | None = None
    device: str | None = None
    asked: Mapping[str, str] = field(default_factory=dict)

    def training(
        self, config: TrainingConfig, given: Mapping[str, Any], processes: int | None = None
    ) -> tuple[TrainingConfig, list[str]]:
        """The configuration with what the launcher asks for, and a line for each value that it changed.

        Args:
            given: values of the training's section that the user wrote, in a file or as options.
            processes: that share the batch; by the environment if none.

        Raises:
            UsageError: naming both values where the user wrote another one than the launcher was told.
        """
        changes: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("precision", "compile", "parallel", "gradient_checkpointing", "clip_grad_norm")
            if getattr(self, name) is not None
        }
        asked = dict(self.asked)
        if self.passes is not None:
            processes = processes or int(os.environ.get("WORLD_SIZE", "1"))
            local = config.batch // processes
            if self.passes > local:
                raise UsageError(
                    f"{asked['passes']}: --batch {config.batch} has {local} samples for each of {processes} "
                    f"processes, which cannot be shared by {self.passes} passes"
                )
            # Passes of another size that are as many are what was asked for.
            written = given.get("batch_per_device")
            if written is None or -(-local // min(int(written), local)) != self.passes:
                changes["batch_per_device"], asked["batch_per_device"] = -(-local // self.passes), asked["passes"]
        lines = []
        for name, value in changes.items():
            option, now = f"--{name.replace('_', '-')}", getattr(config, name)
            if now == value:
                continue
            if given.get(name) is not None:
                raise UsageError(contradiction(f"{option} {_text(now)}", asked[name]))
            lines.append(f"{option} {_text(value)}, as the launcher asks ({asked[name]}); it was {_text(now)}")
        return config.model_copy(update=changes), lines

    def taken_precision(self, typed: str | None) -> tuple[str, list[str]]:
        """The precision of a job that trains nothing, and a line where it is the launcher's.

        Raises:
            UsageError: naming both, where they contradict each other.
        """
        if self.precision is None or typed == self.precision:
            return typed or "fp32", []
        if typed is not None:
            raise UsageError(contradiction(f"--precision {typed}", self.asked["precision"]))
        return self.precision, [f"--precision {self.precision}, as the launcher asks ({self.asked['precision']})"]

    def for_device(self, device: str) -> str:
        """The device, "auto" being the launcher's.

        Raises:
            UsageError: naming both, where they contradict each other.
        """
        if self.device is None or device == self.device:
            return device
        if device != "auto":
            raise UsageError(contradiction(f"--device {device}", self.asked["device"]))
        return self.device

    def unused(self, settled: Collection[str]) -> Iterator[str]:
        """A line for each setting that means nothing to a job, which has taken `settled` over."""
        for name, asked in self.asked.items():
            if name not in {"device", *settled}:
                yield f"note: {asked} is for trainings and changes nothing here"


def launcher_settings(environment: Mapping[str, str] | None = None) -> LauncherSettings:
    """What the environment asks for.

    Raises:
        UsageError: listing everything that cannot be done, in one message.
    """
    reader = _Reader(os.environ if environment is None else environment)
    reader.parallelism()
    reader.sharding()
    reader.precision()
    reader.compilation()
    reader.number("passes", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int, least=1, nothing=1)
    reader.number("clip_grad_norm", "ACCELERATE_GRADIENT_CLIPPING", float, least=0, nothing=None)
    reader.device()
    if reader.problems:
        raise UsageError(
            "the launcher asks for what distillkit does not do:\n  "
            + "\n  ".join(reader.problems)
            + "\nLeave it out of `accelerate launch`, its configuration file or the environment."
        )
    return LauncherSettings(**reader.values, asked=reader.asked)


class _Reader:
    """Reads variables into values, what asked for them, and problems."""

    def __init__(self, there: Mapping[str, str]) -> None:
        self.there = there
        self.values: dict[str, Any] = {}
        self.asked: dict[str, str] = {}
        self.problems: list[str] = []

    def _take(self, setting: str, name: str, value: Any) -> None:
        self.values[setting], self.asked[setting] = value, f"{name}={self.there[name]}"

    def _refuse(self, name: str, why: str) -> None:
        self.problems.append(f"{name}={self.there[name]}: {why}")

    def parallelism(self) -> None:
        for name, why in UNSUPPORTED.items():
            if _on(self.there.get(name, "")):
                self._refuse(name, why)
        # `accelerate launch --cpu --num_processes 2` starts one process; only the others' address tells of them.
        launched = "ACCELERATE_DYNAMO_BACKEND" in self.there and "MASTER_ADDR" in self.there
        if launched and not WORLD & set(self.there):
            self._refuse(
                "MASTER_ADDR", "several processes were asked for and one was started, as accelerate does on CPUs "
                "without MPI; use `torchrun --nproc-per-node N -m distillkit ...`",
            )  # fmt: skip

    def sharding(self) -> None:
        if not _on(self.there.get(FSDP, "")):
            return
        before = len(self.problems)
        for name, (default, same, why) in FSDP_ONLY.items():
            value = self.there.get(name, default)
            if value.strip().lower() not in same:
                self.problems.append(f"{name}={value}: {why}")
        if len(self.problems) == before:
            self._take("parallel", FSDP, "shard")
            if _on(self.there.get("FSDP_ACTIVATION_CHECKPOINTING", "")):
                self._take("gradient_checkpointing", "FSDP_ACTIVATION_CHECKPOINTING", True)

    def precision(self) -> None:
        name = "ACCELERATE_MIXED_PRECISION"
        found = self.there.get(name, "no").lower()
        if found not in PRECISIONS:
            self._refuse(name, "networks are computed in fp32, bf16 or fp16")
        elif PRECISIONS[found]:
            self._take("precision", name, PRECISIONS[found])

    def compilation(self) -> None:
        name = "ACCELERATE_DYNAMO_BACKEND"
        backend = self.there.get(name, "no").lower()
        if backend not in ("no", "inductor"):
            self._refuse(name, "networks are compiled by inductor, or not at all")
        if backend != "inductor":
            return
        if _on(self.there.get(REGIONAL, "")):
            self._take("compile", REGIONAL, "blocks")
        else:
            self._take("compile", name, "network")
        for name, only in DYNAMO.items():
            if self.there.get(name, only).lower() != only.lower():
                self._refuse(name, f"networks are compiled by torch.compile's defaults ({only})")

    def number(self, setting: str, name: str, kind: type, *, least: float, nothing: float | None) -> None:
        """A count or a norm; `nothing` is accelerate's default, which asks for nothing."""
        text = self.there.get(name, "auto")
        if text.lower() in ("auto", "none", ""):
            return
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < MOST:
            self._refuse(name, f"not a number of at least {least:g}")
        elif value != nothing:
            self._take(setting, name, value)

    def device(self) -> None:
        if _on(self.there.get("ACCELERATE_USE_CPU", "")):
            self._take("device", "ACCELERATE_USE_CPU", "cpu")
        elif found := self.there.get("ACCELERATE_TORCH_DEVICE", ""):
            self._take("device", "ACCELERATE_TORCH_DEVICE", found.partition(":")[0])


def own_environment(*, cpu: bool) -> AbstractContextManager[None]:
    """While accelerate is made it finds what the job has settled, not what the launcher said."""
    passed = {"ACCELERATE_USE_CPU": "true"} if cpu else {}
    if FSDP in os.environ:
        passed[FSDP] = "false"
    if "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in os.environ:
        passed["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "1"
    with_these: AbstractContextManager[None] = patch_environment(**passed)
    return with_these


def contradiction(option: str, asked: str) -> str:
    """An option that was written, and what the launcher was told."""
    return f"{option}, but the launcher asks for {asked}: leave one of them out"


def _on(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "y", "t", "on")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
