"""`distillkit new-method`: write a plugin project from templates."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from distillkit.contracts.hooks import API_VERSION
from distillkit.errors import UsageError
from distillkit.files import write_bytes
from distillkit.registry import registry

FILES = {
    "pyproject.toml.j2": "pyproject.toml",
    "README.md.j2": "README.md",
    "gitignore.j2": ".gitignore",
    "package/__init__.py.j2": "{package}/__init__.py",
    "package/method.py.j2": "{package}/method.py",
    "package/objective.py.j2": "{package}/objective.py",
    "tests/test_conformance.py.j2": "tests/test_conformance.py",
    "tests/test_objective.py.j2": "tests/test_objective.py",
    "workflows/tests.yml.j2": ".github/workflows/tests.yml",
}
"""Template -> place in the project."""


@dataclass(frozen=True)
class Names:
    """The spellings of a method's name: my-method, my_method, MyMethod."""

    method: str

    @property
    def package(self) -> str:
        return self.method.replace("-", "_")

    @property
    def title(self) -> str:
        return "".join(part.capitalize() for part in self.method.split("-"))


def names_of(name: str) -> Names:
    """The spellings of a name.

    Raises:
        UsageError: when no package can be called so, or a method is called so already.
    """
    method = name.lower().replace("_", "-").replace(" ", "-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", method) or keyword.iskeyword(method):
        raise UsageError(f"{name!r}: a method's name is made of letters, numbers and dashes, such as my-method")
    if installed := registry().named("methods").get(method):
        raise UsageError(f"the method {method!r} is already installed, by {installed.origin}")
    return Names(method)


def write_project(name: str, parent: Path) -> list[Path]:
    """Write the project into the folder `parent`/NAME and return its files.

    Raises:
        UsageError: for a bad name, or when the folder is there already.
    """
    names = names_of(name)
    folder = parent / names.method
    if folder.exists():
        raise UsageError(f"{folder} is there already; choose another name, or --output-dir")
    templates = Environment(
        loader=PackageLoader("distillkit.scaffold"), undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    written = []
    for template, place in FILES.items():
        text = templates.get_template(template).render(names=names, api=API_VERSION, version=version("distillkit"))
        path = folder / place.format(package=names.package)
        write_bytes(path, text.encode())
        written.append(path)
    return written
