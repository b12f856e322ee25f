"""The sections of a run's configuration, and the flat names by which people set their fields.

`training.lr` is `--lr` on the command line and `lr=` in Python; `sources.pairs.count` is `--pairs-count` and
`pairs_count=`. Both come from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from distillkit.contracts.method import Method, Preset
from distillkit.data.prompts import PromptsConfig
from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError
from distillkit.models.diffusers.options import PipelineConfig
from distillkit.registry import registry, unknown
from distillkit.runs.config import EvaluationConfig, RunConfig, StudentConfig, TeacherWeightsConfig

ADAPTER = frozenset({"rank", "alpha", "targets"})
"""Fields of `StudentConfig` that are called by short names, `adapter_alpha` beside a method's own `alpha`."""

Place = tuple[str, ...]
"""Where a setting stands in a configuration: ("training", "lr")."""


@dataclass(frozen=True)
class Section:
    """A model whose fields people can set.

    Args:
        place: of its values in the configuration.
        title: for the help.
        prefix: put before every name, such as "pairs-".
        preset: values that a preset suggests instead of the defaults.
        preset_name: its name, for the help.
        taken: names that the method's own settings have: an option of its own that is called so gets a prefix.
    """

    place: Place
    model: type[BaseModel]
    title: str
    prefix: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    preset_name: str = ""
    taken: frozenset[str] = frozenset()

    def flag(self, name: str) -> str:
        """The option of a field, without dashes before it: "pairs-count"."""
        extra = self.model.model_fields[name].json_schema_extra
        if isinstance(extra, dict) and "flag" in extra:
            return f"{'adapter-' if name in self.taken else ''}{extra['flag']}"
        return f"{self.prefix}{name.replace('_', '-')}"


def sections_of(method: type[Method], preset: Preset | None = None) -> list[Section]:
    """All that can be set of a run of this method, the method's own first."""
    preset = preset or Preset("", ())
    label = f"{preset.name} preset"
    # A method's field that is named like one of the run's keeps its meaning apart by the method's name.
    others = (TrainingConfig, RunConfig, PipelineConfig)
    clash = set(method.Config.model_fields).intersection(*[[name for model in others for name in model.model_fields]])
    own = f"{method.name}-" if clash else ""
    suggested: dict[str, Mapping[str, Any]] = {"pairs": preset.pairs}
    taken = frozenset(method.Config.model_fields) & ADAPTER
    return [
        Section(("settings",), method.Config, f"Settings of {method.name}", own, preset.settings, label),
        Section(("pipeline",), PipelineConfig, "Teacher"),
        Section(("teacher_weights",), TeacherWeightsConfig, "Teacher", "teacher-"),
        Section(("training",), TrainingConfig, "Training", "", preset.training, label),
        Section(("student",), StudentConfig, "Student", "student-", preset.student, label, taken),
        Section(("prompts",), PromptsConfig, "Prompts", "prompts-"),
        *(
            Section(
                ("sources", name), offer.value.Config, f"Source: {name}", f"{name}-", suggested.get(name, {}), label
            )
            for name, offer in registry().named("sources").items()
        ),
        Section(("evaluation",), EvaluationConfig, "Evaluation", "evaluation-"),
    ]


def keywords(sections: Iterable[Section]) -> dict[str, Place]:
    """Keyword of Python -> place in the configuration."""
    return {
        section.flag(name).replace("-", "_"): (*section.place, name)
        for section in sections
        for name in section.model.model_fields
    }


def nested(values: Mapping[str, Any], sections: Iterable[Section]) -> dict[str, Any]:
    """{"lr": 1e-3, "pairs_count": 64} as a configuration's values.

    Raises:
        UsageError: for an unknown keyword, with the nearest known one.
    """
    known = keywords(sections)
    out: dict[str, Any] = {}
    for keyword, value in values.items():
        if keyword not in known:
            raise UsageError(unknown("setting", keyword, known, "distillkit methods show METHOD"))
        place(out, known[keyword], value)
    return out


def place(into: dict[str, Any], where: Sequence[str], value: Any) -> None:
    """Set a value in nested mappings."""
    for key in where[:-1]:
        into = into.setdefault(key, {})
    into[where[-1]] = value


def option_name(where: Sequence[str]) -> str:
    """The option behind a place of the configuration, for messages: `--lr`, `--pairs-count`."""
    sources = {name: (offer.value.Config, f"{name}-") for name, offer in registry().named("sources").items()}
    models: dict[Place, tuple[type[BaseModel], str]] = {
        ("pipeline",): (PipelineConfig, ""),
        ("teacher_weights",): (TeacherWeightsConfig, "teacher-"),
        ("training",): (TrainingConfig, ""),
        ("student",): (StudentConfig, "student-"),
        ("prompts",): (PromptsConfig, "prompts-"),
        ("evaluation",): (EvaluationConfig, "evaluation-"),
        # A teacher's training has its images beside it.
        **{(name,): found for name, found in sources.items()},
        **{("sources", name): found for name, found in sources.items()},
    }
    above, name = tuple(where[:-1]), where[-1]
    model, prefix = models.get(above, (BaseModel, ""))
    if name not in model.model_fields:
        return f"--{name.replace('_', '-')}"
    return f"--{Section(above, model, '', prefix).flag(name)}"
