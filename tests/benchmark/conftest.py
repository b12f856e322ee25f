"""What the benchmark's tests share: methods of files, forgotten after each test."""

import pytest

from distillkit import registry as registry_module

METHOD = '''
from distillkit import Method, Recipe, StudentGenerator
from distillkit.parts import Regression, distance_for


class Mine(Method):
    """A method of a file."""

    name = "{name}"

    def recipe(self, teacher, config):
        return Recipe(StudentGenerator.from_teacher(teacher), [Regression(distance_for(teacher, "l2"))])
'''


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
