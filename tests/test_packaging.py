"""Every plugin is in every list of pyproject.toml: what is left out is not shipped, typed or kept to its layer."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = {place.name for place in (ROOT / "plugins").iterdir() if (place / "__init__.py").is_file()}
TOOLS = PROJECT["tool"]
_, CORE, PUBLIC = TOOLS["importlinter"]["contracts"]
LISTS = {
    "entry points": set(PROJECT["project"]["entry-points"]["distillkit"].values()),
    "wheel": {Path(place).name for place in TOOLS["hatch"]["build"]["targets"]["wheel"]["packages"]},
    "mypy": set(TOOLS["mypy"]["packages"]),
    "coverage": set(TOOLS["coverage"]["run"]["source"]),
    "import-linter": set(TOOLS["importlinter"]["root_packages"]),
    "the core knows no method": set(CORE["forbidden_modules"]),
    "plugins use the public API": set(PUBLIC["source_modules"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_every_plugin_and_no_other(name):
    assert {entry for entry in LISTS[name] if entry.startswith("distillkit_")} == PLUGINS
    assert all((ROOT / "plugins" / plugin / "py.typed").is_file() for plugin in PLUGINS)


def test_plugins_may_import_what_is_public_alone():
    rooms = {place.stem for place in (ROOT / "distillkit").iterdir() if place.suffix in ("", ".py")}
    rooms -= {"__init__", "__main__", "__pycache__"}
    closed = {name.partition(".")[2] for name in PUBLIC["forbidden_modules"]}
    assert rooms - closed == {"diffusion", "parts", "errors"}
