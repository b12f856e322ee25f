"""distillkit: turn a diffusion model into a one-step generator, with any method, and compare the methods.

Names are imported on first use, so that `distillkit --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillkit.contracts.condition import Condition as Condition
    from distillkit.contracts.denoiser import Denoiser as Denoiser
    from distillkit.contracts.health import Diagnostic as Diagnostic
    from distillkit.contracts.health import Health as Health
    from distillkit.contracts.hooks import Tracker as Tracker
    from distillkit.contracts.hooks import hookimpl as hookimpl
    from distillkit.contracts.learner import Learner as Learner
    from distillkit.contracts.learner import OptimizerConfig as OptimizerConfig
    from distillkit.contracts.learner import ScoreEstimator as ScoreEstimator
    from distillkit.contracts.method import Method as Method
    from distillkit.contracts.method import MethodConfig as MethodConfig
    from distillkit.contracts.method import Preset as Preset
    from distillkit.contracts.objective import Objective as Objective
    from distillkit.contracts.random import SampleRNG as SampleRNG
    from distillkit.contracts.recipe import Recipe as Recipe
    from distillkit.contracts.sampler import OneStep as OneStep
    from distillkit.contracts.sampler import Sampler as Sampler
    from distillkit.contracts.stage import Stage as Stage
    from distillkit.contracts.step import Images as Images
    from distillkit.contracts.step import Pairs as Pairs
    from distillkit.contracts.step import Step as Step
    from distillkit.contracts.student import StudentGenerator as StudentGenerator
    from distillkit.contracts.teacher import Teacher as Teacher
    from distillkit.contracts.teacher import TeacherSpec as TeacherSpec
    from distillkit.errors import DistillkitError as DistillkitError
    from distillkit.errors import UsageError as UsageError
    from distillkit.evaluation.extractor import FeatureExtractor as FeatureExtractor
    from distillkit.evaluation.protocol import ExtractorSpec as ExtractorSpec
    from distillkit.students.artifact import Student as Student
    from distillkit.students.artifact import load_student as load_student
    from distillkit.teachers.load import load_teacher as load_teacher

_HOME = {
    "Condition": "contracts.condition",
    "Denoiser": "contracts.denoiser",
    "Diagnostic": "contracts.health",
    "DistillkitError": "errors",
    "ExtractorSpec": "evaluation.protocol",
    "FeatureExtractor": "evaluation.extractor",
    "Health": "contracts.health",
    "Images": "contracts.step",
    "Learner": "contracts.learner",
    "Method": "contracts.method",
    "MethodConfig": "contracts.method",
    "Objective": "contracts.objective",
    "OneStep": "contracts.sampler",
    "OptimizerConfig": "contracts.learner",
    "Pairs": "contracts.step",
    "Preset": "contracts.method",
    "Recipe": "contracts.recipe",
    "SampleRNG": "contracts.random",
    "Sampler": "contracts.sampler",
    "ScoreEstimator": "contracts.learner",
    "Stage": "contracts.stage",
    "Step": "contracts.step",
    "Student": "students.artifact",
    "StudentGenerator": "contracts.student",
    "Teacher": "contracts.teacher",
    "TeacherSpec": "contracts.teacher",
    "Tracker": "contracts.hooks",
    "UsageError": "errors",
    "hookimpl": "contracts.hooks",
    "load_student": "students.artifact",
    "load_teacher": "teachers.load",
}

__version__ = "0.1.0"
__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distillkit' has no attribute {name!r}")
    value = getattr(import_module(f"distillkit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
