"""What the benchmark's tests share: methods of files, forgotten after each test."""

import pytest
import torch

from distillkit import OneStep, StudentGenerator, load_teacher
from distillkit import registry as registry_module
from distillkit.students.description import Imported
from distillkit.students.imported import published_student as as_student

METHOD = '''
from distillkit import Method, Recipe, StudentGenerator
from distillkit.parts import Regression, distance_for


class Mine(Method):
    """A method of a file."""

    name = "{name}"

    def recipe(self, teacher, config):
        return Recipe(StudentGenerator.from_teacher(teacher), [Regression(distance_for(teacher, "l2"))])
'''


def published_student(folder, teacher="mixture", ratio=2.0):
    """A student that others have trained: the teacher's own network, evaluated once."""
    made = load_teacher(teacher)
    level = made.schedule.at(torch.tensor([ratio], dtype=torch.float64)).item()
    generator = StudentGenerator.from_teacher(made, OneStep(t=level))
    imported = Imported(name="theirs", source="theirs.pkl", sha256="0" * 64)
    return as_student(generator, made, imported).save(folder)


@pytest.fixture
def method_file(tmp_path, monkeypatch):
    """Write a Python file that defines a method of this name."""
    monkeypatch.setattr(registry_module, "_FILES", [])
    registry_module.registry.cache_clear()

    def write(name, file="mine.py"):
        (tmp_path / file).write_text(METHOD.format(name=name))
        return tmp_path / file

    yield write
    monkeypatch.undo()
    registry_module.registry.cache_clear()
