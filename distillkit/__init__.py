"""distillkit: turn a diffusion model into a few-step generator, with any method, and compare the methods.

Names are imported on first use, so that `distillkit --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillkit.benchmark.run import bench as bench
    from distillkit.benchmark.workers.side_by_side import Workers as Workers
    from distillkit.contracts.codec import Codec as Codec
    from distillkit.contracts.codec import Pixels as Pixels
    from distillkit.contracts.codec import Points as Points
    from distillkit.contracts.condition import Condition as Condition
    from distillkit.contracts.conditioner import ClassLabels as ClassLabels
    from distillkit.contracts.conditioner import Conditioner as Conditioner
    from distillkit.contracts.conditioner import Unconditional as Unconditional
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
    from distillkit.contracts.schedule import Schedule as Schedule
    from distillkit.contracts.source import Batches as Batches
    from distillkit.contracts.source import Images as Images
    from distillkit.contracts.source import Pairs as Pairs
    from distillkit.contracts.source import PairSamples as PairSamples
    from distillkit.contracts.source import Samples as Samples
    from distillkit.contracts.source import Source as Source
    from distillkit.contracts.source import SourceConfig as SourceConfig
    from distillkit.contracts.source import SourceJob as SourceJob
    from distillkit.contracts.source import SourcePlan as SourcePlan
    from distillkit.contracts.stage import Stage as Stage
    from distillkit.contracts.step import Step as Step
    from distillkit.contracts.student import StudentGenerator as StudentGenerator
    from distillkit.contracts.teacher import Teacher as Teacher
    from distillkit.contracts.teacher import TeacherSpec as TeacherSpec
    from distillkit.contracts.text import PromptList as PromptList
    from distillkit.contracts.text import TextEncoder as TextEncoder
    from distillkit.errors import DistillkitError as DistillkitError
    from distillkit.errors import UsageError as UsageError
    from distillkit.evaluation.extractor import FeatureExtractor as FeatureExtractor
    from distillkit.evaluation.measure import Measure as Measure
    from distillkit.evaluation.protocol import ExtractorSpec as ExtractorSpec
    from distillkit.evaluation.record import Record as Record
    from distillkit.jobs.api import compare as compare
    from distillkit.jobs.api import distil as distil
    from distillkit.jobs.api import evaluate as evaluate
    from distillkit.jobs.api import load_method as load_method
    from distillkit.jobs.ema import make_average as make_average
    from distillkit.jobs.pair_checks import verify_pairs as verify_pairs
    from distillkit.jobs.pair_sets import list_pairs as list_pairs
    from distillkit.jobs.pairs import make_pairs as make_pairs
    from distillkit.jobs.run import Run as Run
    from distillkit.models.build import build_denoiser as build_denoiser
    from distillkit.models.build import changed_network as changed_network
    from distillkit.models.build import with_guidance_input as with_guidance_input
    from distillkit.models.diffusers.family import Described as Described
    from distillkit.models.diffusers.family import Pipeline as Pipeline
    from distillkit.models.diffusers.parts import PipelineParts as PipelineParts
    from distillkit.models.prompts import Prompts as Prompts
    from distillkit.models.store.resolve import load_teacher as load_teacher
    from distillkit.reading import typed_values as typed_values
    from distillkit.registry import offer as offer
    from distillkit.students.artifact import Student as Student
    from distillkit.students.imported import convert_student as convert_student
    from distillkit.students.load import load_student as load_student

_HOME = {
    "Batches": "contracts.source",
    "ClassLabels": "contracts.conditioner",
    "Codec": "contracts.codec",
    "Condition": "contracts.condition",
    "Conditioner": "contracts.conditioner",
    "Denoiser": "contracts.denoiser",
    "Diagnostic": "contracts.health",
    "DistillkitError": "errors",
    "ExtractorSpec": "evaluation.protocol",
    "FeatureExtractor": "evaluation.extractor",
    "Health": "contracts.health",
    "Images": "contracts.source",
    "Learner": "contracts.learner",
    "Measure": "evaluation.measure",
    "Method": "contracts.method",
    "MethodConfig": "contracts.method",
    "Objective": "contracts.objective",
    "OneStep": "contracts.sampler",
    "OptimizerConfig": "contracts.learner",
    "PairSamples": "contracts.source",
    "Pairs": "contracts.source",
    "Pixels": "contracts.codec",
    "Points": "contracts.codec",
    "Described": "models.diffusers.family",
    "Pipeline": "models.diffusers.family",
    "PipelineParts": "models.diffusers.parts",
    "PromptList": "contracts.text",
    "Prompts": "models.prompts",
    "TextEncoder": "contracts.text",
    "Preset": "contracts.method",
    "Recipe": "contracts.recipe",
    "Record": "evaluation.record",
    "Run": "jobs.run",
    "SampleRNG": "contracts.random",
    "Sampler": "contracts.sampler",
    "Samples": "contracts.source",
    "Schedule": "contracts.schedule",
    "ScoreEstimator": "contracts.learner",
    "Source": "contracts.source",
    "SourceConfig": "contracts.source",
    "SourceJob": "contracts.source",
    "SourcePlan": "contracts.source",
    "Stage": "contracts.stage",
    "Step": "contracts.step",
    "Student": "students.artifact",
    "StudentGenerator": "contracts.student",
    "Teacher": "contracts.teacher",
    "TeacherSpec": "contracts.teacher",
    "Tracker": "contracts.hooks",
    "Unconditional": "contracts.conditioner",
    "UsageError": "errors",
    "Workers": "benchmark.workers.side_by_side",
    "bench": "benchmark.run",
    "build_denoiser": "models.build",
    "changed_network": "models.build",
    "with_guidance_input": "models.build",
    "compare": "jobs.api",
    "convert_student": "students.imported",
    "distil": "jobs.api",
    "evaluate": "jobs.api",
    "hookimpl": "contracts.hooks",
    "make_average": "jobs.ema",
    "make_pairs": "jobs.pairs",
    "offer": "registry",
    "list_pairs": "jobs.pair_sets",
    "load_method": "jobs.api",
    "load_student": "students.load",
    "load_teacher": "models.store.resolve",
    "typed_values": "reading",
    "verify_pairs": "jobs.pair_checks",
}

__version__ = "0.2.0.dev0"
__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distillkit' has no attribute {name!r}")
    value = getattr(import_module(f"distillkit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
