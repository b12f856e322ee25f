"""Mutations: a module's functions as if its source had been written otherwise, while a test lasts."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def mutated(module_name: str, old: str, new: str) -> Iterator[None]:
    """Every function and method of a module does what it would with `new` in the place of `old`.

    Code is exchanged inside the functions that exist, so that whatever imported or inherited them follows.
    """
    module = importlib.import_module(module_name)
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {module_name}"
    other = types.ModuleType(module_name)
    other.__file__ = module.__file__
    exec(compile(source.replace(old, new), module.__file__ or module_name, "exec"), other.__dict__)
    changed = [(a, b) for a, b in _pairs(module, other, module_name) if _differ(a.__code__, b.__code__)]
    assert changed, "the mutation changes no function"
    before = [function.__code__ for function, _ in changed]
    for function, replacement in changed:
        function.__code__ = replacement.__code__
    try:
        yield
    finally:
        for (function, _), code in zip(changed, before, strict=True):
            function.__code__ = code


def _pairs(a: Any, b: Any, module: str) -> Iterator[tuple[Any, Any]]:
    """Functions of the same name in two modules or classes."""
    for name, value in vars(a).items():
        other = vars(b).get(name)
        if isinstance(value, type) and isinstance(other, type) and value.__module__ == module:
            yield from _pairs(value, other, module)
        first, second = (inspect.unwrap(getattr(v, "__func__", v)) if callable(v) or hasattr(v, "__func__") else None
                         for v in (value, other))  # fmt: skip
        if inspect.isfunction(first) and inspect.isfunction(second) and first.__module__ == module:
            yield first, second


def _differ(a: types.CodeType, b: types.CodeType) -> bool:
    constants = zip(a.co_consts, b.co_consts, strict=False)
    return (
        a.co_code != b.co_code
        or a.co_names != b.co_names
        or len(a.co_consts) != len(b.co_consts)
        or any(_differ(x, y) if isinstance(x, types.CodeType) else x != y for x, y in constants)
    )
