"""A run's configuration: defaults < preset < file < options, validated, saved, re-runnable."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.contracts.method import Method, Preset
from distillkit.data.stream import DataConfig
from distillkit.engine.config import Count, TrainingConfig
from distillkit.errors import UsageError
from distillkit.models.store.resolve import known_as


class PairsConfig(BaseModel):
    """Noise-image pairs of the teacher's ODE, where the method needs them."""

    model_config = ConfigDict(extra="forbid")

    count: Count = Field(10_000, ge=1, description="number of noise-image pairs")
    steps: int | None = Field(None, ge=1, description="Heun steps of the pairs; the teacher's own number if none")
    guidance: float = Field(1.0, ge=0, description="guidance weight of the teacher's samples")


class EvaluationConfig(BaseModel):
    """How the student is scored during and after the training."""

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(5000, ge=2, description="samples of the closing evaluation")
    batch: int = Field(500, ge=1, description="samples in one pass of an evaluation")


class RunConfig(BaseModel):
    """Everything that determines a run's result."""

    model_config = ConfigDict(extra="forbid")

    method: str = Field(description="name of the method")
    teacher: str = Field("digits", description="catalogue name or folder of the teacher")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw")
    settings: dict[str, Any] = Field(default_factory=dict, description="the method's own settings")
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    pairs: PairsConfig = Field(default_factory=PairsConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


# What may differ between a run and its resumption without changing its result.
SAFE_TO_CHANGE = frozenset(
    {
        "training.log_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
        "training.sample_every",
        "training.batch_per_device",
        "evaluation.batch",
        "data.workers",
    }
)


@dataclass(frozen=True)
class ConfigFile:
    """A parsed YAML file that remembers in which line each key stands."""

    path: Path
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]


def read_config(path: Path) -> ConfigFile:
    """Parse a YAML configuration.

    Raises:
        UsageError: when it cannot be read, is not UTF-8, is not a mapping, or names a key twice; with the line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if root is None or not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path} holds no keys: a configuration is a mapping such as `training:`")
    return ConfigFile(path, values, _lines(root, path))


def _lines(node: yaml.MappingNode, path: Path, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    for key, value in node.value:
        place = (*above, str(key.value))
        if place in lines:
            raise UsageError(f"{path}:{key.start_mark.line + 1}: the key {key.value!r} is given twice")
        lines[place] = key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            lines |= _lines(value, path, place)
    return lines


def resolve(
    method: type[Method], *, file: ConfigFile | None = None, options: Mapping[str, Any] | None = None
) -> tuple[RunConfig, Preset | None]:
    """Merge and validate; also says which preset was used.

    Args:
        options: nested like `RunConfig`; what the user typed.

    Raises:
        UsageError: naming the place of every bad value and the nearest valid key.
    """
    typed, written = dict(options or {}), dict(file.values if file else {})
    teacher = typed.get("teacher") or written.get("teacher") or RunConfig.model_fields["teacher"].default
    preset = method.preset_for(known_as(str(teacher)))
    suggested: dict[str, Any] = {}
    if preset:
        suggested = {"settings": dict(preset.settings), "training": dict(preset.training), "pairs": dict(preset.pairs)}
    merged = merge(suggested, written, typed, {"method": method.name})
    if file and written.get("method", method.name) != method.name:
        raise UsageError(f"{file.path} is for the method {written['method']!r}, not {method.name!r}")
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UsageError(explain(error, RunConfig, file, typed)) from error
    try:
        settings = method.Config.model_validate(merged.get("settings", {}))
    except ValidationError as error:
        raise UsageError(explain(error, method.Config, file, typed, ("settings",))) from error
    return config.model_copy(update={"settings": settings.model_dump(mode="json")}), preset


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other, the last on top."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merge(out[key], value) if both else value
    return out


def explain(
    error: ValidationError,
    model: type[BaseModel],
    file: ConfigFile | None = None,
    typed: Mapping[str, Any] = MappingProxyType({}),
    above: tuple[str, ...] = (),
) -> str:
    """Validation errors as lines that say where, what, and what would be right."""
    lines = []
    for problem in error.errors():
        place = (*above, *(str(part) for part in problem["loc"]))
        setting = place[: next((k for k, part in enumerate(place) if part.isdigit()), len(place))]
        if typed_in(typed, setting):
            where = option_name(setting)
        elif file and (line := file.lines.get(place)):
            where = f"{file.path}:{line}: {'.'.join(place)}"
        else:
            where = ".".join(place)
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            near = difflib.get_close_matches(place[-1], known, n=1)
            what = "unknown key." + (f" Did you mean {near[0]!r}?" if near else "") + f" Known: {', '.join(known)}."
        else:
            what = f"{problem['msg']} (got {problem['input']!r})"
        lines.append(f"{where}: {what}")
    return "\n".join(lines)


def option_name(place: Sequence[str]) -> str:
    """The option behind a setting: training.lr is --lr, pairs.count is --pairs-count, data.path is --data."""
    if tuple(place) == ("data", "path"):
        return "--data"
    prefix = f"{place[0]}-" if place[0] in ("pairs", "data", "evaluation") and len(place) > 1 else ""
    return f"--{prefix}{place[-1].replace('_', '-')}"


def typed_in(values: Mapping[str, Any], place: Sequence[str]) -> bool:
    for key in place:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _fields_at(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The keys that are known at a place, through models and mappings of models."""
    found: Any = model
    for key in place:
        if get_origin(found) is dict:
            found = get_args(found)[1]
        elif isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[str(key)].annotation
        else:
            return []
    return sorted(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], above: str = "") -> list[str]:
    """'training.lr: 0.001 in the run, 0.002 asked' for every key that differs and matters."""
    found = []
    for key in sorted({*saved, *asked}):
        place, old, new = f"{above}{key}", saved.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{place}.")
        elif old != new and place not in SAFE_TO_CHANGE:
            found.append(f"{place}: {old!r} in the run, {new!r} asked")
    return found


def to_yaml(config: BaseModel) -> str:
    """The text of config.yaml."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def set_values(assignments: Sequence[str]) -> dict[str, Any]:
    """["training.lr=1e-4"] -> {"training": {"lr": 0.0001}}; values are read as YAML.

    Raises:
        UsageError: for an assignment without a key or "=".
    """
    out: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UsageError(f"--set {assignment}: write it as KEY=VALUE, such as training.lr=1e-4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {assignment}: the value cannot be read") from error
        nested: dict[str, Any] = {key.split(".")[-1]: value}
        for part in reversed(key.split(".")[:-1]):
            nested = {part: nested}
        out = merge(out, nested)
    return out
