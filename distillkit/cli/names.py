"""The names that completion offers, without importing what they name.

Finding them takes as long as loading every plugin, so they are kept in the cache until something is installed, removed
or edited.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

GROUP = "distillkit"
LISTED = ("teachers", "protocols", "extractors", "trackers", "exporters")
SWITCH = "_DISTILLKIT_COMPLETE"


def completing() -> bool:
    """Whether a shell asks for completions, and waits."""
    return SWITCH in os.environ


def names(kind: str) -> list[str]:
    """Names of a kind, such as "teachers"; none where they cannot be found."""
    return sorted(known().get(kind, {}))


def options_of(command: str) -> list[tuple[str, bool, list[str]]]:
    """(declaration, whether it takes no value, choices) of a method's options, or of "teachers train"."""
    found = known().get("options", {}).get(command, [])
    return [(str(declared), bool(flag), list(choices)) for declared, flag, choices in found]


def known() -> dict[str, Any]:
    """All names, from the cache where nothing has changed."""
    from distillkit.files import cache_folder, write_json

    path, key = cache_folder() / "completion.json", _key()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept.get("key") == key:
            return kept
    except (OSError, ValueError):
        pass
    found = {"key": key, **_found()}
    with contextlib.suppress(Exception):  # a shell waits: the names are shown, and looked for again the next time
        write_json(path, found)
    return found


def _key() -> str:
    """Changes with every installation and with every file of a plugin's or of distillkit."""
    parts = [str(path.stat().st_mtime_ns) for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        package = entry.dist.version if entry.dist else ""
        parts += [entry.name, entry.value, package, *_changed(entry.value.partition(":")[0].partition(".")[0])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _changed(module: str) -> Iterator[str]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return
    if spec is None or not spec.origin:
        return
    files = Path(spec.origin).parent.rglob("*.py") if spec.submodule_search_locations else [Path(spec.origin)]
    yield from (str(file.stat().st_mtime_ns) for file in sorted(files))


def _found() -> dict[str, Any]:
    from distillkit.cli.option_models import parameters
    from distillkit.cli.train_teacher import teacher_sections
    from distillkit.registry import registry
    from distillkit.runs.options import sections_of

    here = registry()
    options = {name: sections_of(offer.value) for name, offer in here.named("methods").items()}
    return {
        "methods": sorted(here.named("methods")),
        **{kind: sorted(here.named(kind)) for kind in LISTED},
        "options": {
            name: [_plain(made.annotation) for made in parameters(sections)]
            for name, sections in {**options, "teachers train": teacher_sections()}.items()
        },
    }


def _plain(annotation: Any) -> tuple[str, bool, list[str]]:
    kind, option = annotation.__origin__, annotation.__metadata__[0]
    inner = next(part for part in kind.__args__ if part is not type(None))
    declared = (option.param_decls or (option.default,))[0]
    return declared, inner is bool, [member.value for member in getattr(inner, "__members__", {}).values()]
