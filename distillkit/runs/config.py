"""A run's configuration: defaults < preset < file < options, validated, saved, re-runnable."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from distillkit.contracts.adapter import AdapterConfig, Target
from distillkit.contracts.method import Method, Preset
from distillkit.counts import Count, Numbers, parse_numbers
from distillkit.data.prompts import PromptsConfig
from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.store.resolve import preset_name
from distillkit.registry import registry
from distillkit.runs.validation import ConfigFile, merge, validated

LEVELS = frozenset({"start_ratio", "levels", "times"})
"""Fields of `StudentConfig` that say the same in several ways."""


class StudentConfig(BaseModel):
    """Where the student starts."""

    model_config = ConfigDict(extra="forbid")

    init: str | None = Field(
        None, description="start from another student: a run (RUN, RUN@best), student folder or checkpoint",
        json_schema_extra={"flag": "student"},
    )  # fmt: skip
    start_ratio: float | None = Field(
        None, gt=0, description="noise level (sigma / alpha) at which the student starts; the method's own if none",
        json_schema_extra={"flag": "start-ratio"},
    )  # fmt: skip
    levels: Numbers | None = Field(
        None, description="noise levels (sigma / alpha) of the student's evaluations, descending: 80,10,1"
    )
    times: Numbers | None = Field(
        None, description="the same as times t of the teacher's schedule, descending: 999,749,499,249"
    )
    adapter: Literal["lora"] | None = Field(
        None, description="train adapters beside the teacher's weights instead of a copy of them (needs peft)"
    )
    fake_adapter: Literal["lora"] | None = Field(
        None, description="the same for what is trained beside the student and is a copy of the teacher: a fake score",
        json_schema_extra={"flag": "fake-adapter"},
    )  # fmt: skip
    rank: int | None = Field(
        None, ge=1, le=4096, description="rank of adapters; 64 if none", json_schema_extra={"flag": "rank"}
    )
    alpha: float | None = Field(
        None, gt=0, le=1e6, description="their scale times the rank; the rank if none, which is a scale of 1",
        json_schema_extra={"flag": "alpha"},
    )  # fmt: skip
    targets: Annotated[tuple[Target, ...], BeforeValidator(parse_numbers)] = Field(
        (), max_length=10_000, description="layers that have one, by names or what these end with: to_q,to_v; those of "
        "the network's family if none", json_schema_extra={"flag": "targets"},
    )  # fmt: skip

    @property
    def adapters(self) -> tuple[AdapterConfig | None, AdapterConfig | None]:
        """Of the student, and of what is trained beside it."""
        asked = {"rank": self.rank, "alpha": self.alpha, "targets": self.targets}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        student, fake = (
            None if kind is None else AdapterConfig(kind=kind, **given) for kind in (self.adapter, self.fake_adapter)
        )
        return student, fake

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        given = [name for name in ("rank", "alpha", "targets") if getattr(self, name)]
        if given and not (self.adapter or self.fake_adapter):
            raise ValueError(
                f"{' and '.join(given)}: of adapters, and there are none: add --student-adapter lora, --fake-adapter "
                "lora, or both"
            )
        return self

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        given = [name for name in sorted(LEVELS) if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say the same of the student: give one")
        return self


class TeacherWeightsConfig(BaseModel):
    """How the frozen teacher is held in memory during a run."""

    model_config = ConfigDict(extra="forbid")

    dtype: Literal["fp32", "bf16", "fp16", "fp8"] = Field(
        "fp32", description="type of the frozen teacher's weights and of its text encoders'; the student and what is "
        "trained beside it start from float32",
    )  # fmt: skip


class EvaluationConfig(BaseModel):
    """How the student is measured during and after the training."""

    model_config = ConfigDict(extra="forbid")

    protocol: str | None = Field(
        None, description="protocol of all figures, a file of `reference make`, or none; the teacher's own by default",
        json_schema_extra={"flag": "protocol"},
    )  # fmt: skip
    samples: Count | None = Field(None, ge=2, description="samples of the closing figures; the protocol's if none")
    evaluate_samples: Count | None = Field(
        None, ge=2, description="samples of the figures during the training; a fifth of the protocol's if none",
        json_schema_extra={"flag": "evaluate-samples"},
    )  # fmt: skip
    batch: int | None = Field(None, ge=1, description="samples in one pass of an evaluation; by their size if none")


def _default_teacher() -> str:
    """The embedded teacher that is offered as the one to begin with."""
    from distillkit.models.store.resolve import default_teacher

    return default_teacher()


class RunConfig(BaseModel):
    """Everything that determines a run's result."""

    model_config = ConfigDict(extra="forbid")

    method: str = Field(description="name of the method")
    teacher: str = Field(default_factory=_default_teacher, description="name, folder or file of the teacher")
    pipeline: PipelineConfig = Field(default=PLAIN, description="how the teacher is used beside its files")
    teacher_weights: TeacherWeightsConfig = Field(default_factory=TeacherWeightsConfig)
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw")
    settings: dict[str, Any] = Field(default_factory=dict, description="the method's own settings")
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    prompts: PromptsConfig = Field(default_factory=PromptsConfig)
    sources: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings of the data, by source")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


# What may differ between a run and its resumption without changing its result.
SAFE_TO_CHANGE = frozenset(
    {
        "training.log_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
        "training.sample_every",
        "training.snapshot_every",
        "training.batch_per_device",
        "training.parallel",
        "training.shard_size",
        "training.offload_teacher",
        "evaluation.batch",
        "prompts.encodings",
        "sources.data.latents",
        "sources.data.workers",
        "sources.data.skip_damaged",
        "sources.data.max_pixels",
        "data.latents",
        "data.workers",
        "data.skip_damaged",
        "data.max_pixels",
    }
)


def resolve(
    method: type[Method],
    *,
    teacher_name: str | None = None,
    file: ConfigFile | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[RunConfig, Preset | None]:
    """Merge and validate; also says which preset was used.

    Args:
        teacher_name: name under which presets know the teacher, where it is at hand already.
        options: nested like `RunConfig`; what the user asked for.

    Raises:
        UsageError: naming the place of every bad value and the nearest valid key.
    """
    typed, written = dict(options or {}), dict(file.values if file else {})
    if file and written.get("method", method.name) != method.name:
        raise UsageError(f"{file.path} is for the method {written['method']!r}, not {method.name!r}")
    teacher = typed.get("teacher") or written.get("teacher") or RunConfig.model_fields["teacher"].get_default(
        call_default_factory=True
    )  # fmt: skip
    preset = method.preset_for(teacher_name or preset_name(str(teacher)))
    suggested: dict[str, Any] = {}
    if preset:
        asked = merge(written.get("student") or {}, typed.get("student") or {})
        levels = {} if LEVELS & asked.keys() else preset.student
        student = {key: value for key, value in preset.student.items() if key not in LEVELS or key in levels}
        suggested = {
            "settings": dict(preset.settings), "training": dict(preset.training), "student": student,
            "sources": {"pairs": dict(preset.pairs)} if preset.pairs else {},
        }  # fmt: skip
    merged = merge(suggested, written, typed, {"method": method.name})
    config = validated(RunConfig, merged, file, typed)
    settings = validated(method.Config, merged.get("settings", {}), file, typed, ("settings",))
    for name, values in config.sources.items():
        validated(registry().find("sources", name).value.Config, values, file, typed, ("sources", name))
    return config.model_copy(update={"settings": settings.model_dump(mode="json")}), preset


def differences(
    saved: Mapping[str, Any], asked: Mapping[str, Any], above: str = "", ignoring: Set[str] = frozenset()
) -> list[str]:
    """'training.lr: 0.001 in the run, 0.002 asked' for every key that differs and matters.

    A key that is not saved is that of a later version; what it asks for was off or empty before.
    """
    found = []
    for key in sorted({*saved, *asked}):
        place, old, new = f"{above}{key}", saved.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{place}.", ignoring)
        elif key not in saved and not (any(new.values()) if isinstance(new, Mapping) else new):
            continue
        elif old != new and place not in SAFE_TO_CHANGE | ignoring:
            found.append(f"{place}: {old!r} in the run, {new!r} asked")
    return found


def to_yaml(config: BaseModel) -> str:
    """The text of config.yaml."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
