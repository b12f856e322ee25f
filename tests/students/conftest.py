"""Students of a plugin's parts, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from distillkit import ClassLabels, StudentGenerator, Teacher, TeacherSpec, build_denoiser
from distillkit import registry as registries
from distillkit.students.artifact import Student, save_student
from distillkit.students.description import describe_student
from distillkit.students.load import load_student
from tests.students.parts import PACKAGE, plugin

SCHEDULES = {"edm": {"kind": "edm"}, "vp": {"kind": "vp", "steps": 40}, "flow": {"kind": "flow"}}
PREDICTIONS = {"edm": "sample", "vp": "v_prediction", "flow": "velocity"}


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The plugin is installed; the function that comes uninstalls it."""
    files: list[Any] = [plugin()]
    monkeypatch.setattr(registries, "_FILES", files)
    registries.registry.cache_clear()

    def uninstall() -> None:
        files.clear()
        registries.registry.cache_clear()

    yield uninstall
    registries.registry.cache_clear()


@pytest.fixture
def teacher_of() -> Callable[..., Teacher]:
    """Makes a teacher of tiny parts: a family of schedules, a shape, and optionally a conditioner and a codec."""

    def make(family: str = "edm", shape: tuple[int, ...] = (1, 4, 4), classes: int = 3, **parts: Any) -> Teacher:
        torch.manual_seed(0)
        denoiser = build_denoiser(
            {
                "kind": f"{PACKAGE}:TinyNet",
                "arguments": {
                    "network": {"channels": shape[0], "classes": classes, "width": 4},
                    "schedule": SCHEDULES[family],
                    "prediction": PREDICTIONS[family],
                },
            }
        )
        parts.setdefault("conditioner", ClassLabels(classes=classes) if classes else None)
        return Teacher(denoiser, TeacherSpec(name="tiny", shape=shape, solver_steps=4), **parts)

    return make


@pytest.fixture
def described() -> Callable[..., Any]:
    """The description of a teacher's student."""

    def make(generator: StudentGenerator, teacher: Teacher, **facts: Any) -> Any:
        return describe_student(generator, teacher, **{"method": "kd", "method_package": "kd 1", **facts})

    return make


@pytest.fixture
def student_of(tmp_path: Any, described: Callable[..., Any]) -> Callable[..., Student]:
    """Saves a teacher's student with a sampler under tmp_path/student, and loads it."""

    def make(teacher: Teacher, sampler: Any = None, **facts: Any) -> Student:
        generator = StudentGenerator.from_teacher(teacher, sampler).eval()
        save_student(tmp_path / "student", generator, described(generator, teacher, **facts))
        return load_student(tmp_path / "student")

    return make
