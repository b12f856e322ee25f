"""Checks, one session each. `nox` runs the tests; `nox -s lint types` what a change is read for first."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
DEVELOPMENT = nox.project.dependency_groups(PROJECT, "dev")


# One thread a worker: two workers with two threads each would fight over two cores. Tests of the command line start
# Python a hundred times, so compiled modules are kept, whatever the surroundings say.
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}

WORKERS = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
"""A file's tests share what they have made; tests/order.py says which files come first."""


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on two workers."""
    session.install("-e", ".", *DEVELOPMENT)
    session.run("pytest", *(session.posargs or WORKERS), env=SURROUNDINGS)


SHORT = (
    "tests/cli/test_help.py",
    "tests/cli/test_run.py::test_a_finished_run_is_compared_by_its_folder",
    "tests/cli/test_run.py::test_saved_configuration_runs_again_to_the_same_result",
    "tests/cli/test_run.py::test_an_interrupted_run_is_sampled_measured_exported_and_started_from",
    "tests/cli/test_run.py::test_levels_of_a_student_are_chosen_for_every_method_that_has_some",
    "tests/engine/test_checkpoints.py::test_interrupted_and_resumed_equals_uninterrupted",
    "tests/engine/test_precision.py",
    "tests/evaluation",
    "tests/parts/test_distances.py",
    "tests/students/test_export.py",
    "tests/test_pictures.py",
)
"""A run of each method, resume, precision, evaluation, LPIPS, charts and export."""


@nox.session(python="3.11")
def minimum(session: nox.Session) -> None:
    """A short choice of tests on the oldest Python and the oldest releases that pyproject.toml allows."""
    needed = nox.project.dependency_groups(PROJECT, "minimum")
    session.install("--resolution", "lowest-direct", "-e", ".", *needed)
    session.run("pytest", *(session.posargs or SHORT), env=SURROUNDINGS)


@nox.session
def coverage(session: nox.Session) -> None:
    """All tests with coverage, which slows them."""
    session.install("-e", ".", *DEVELOPMENT)
    report = ["--cov", "--cov-report", "term:skip-covered"]
    session.run("pytest", *WORKERS, *report, env=SURROUNDINGS)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint rules and import layers."""
    session.install("-e", ".", *DEVELOPMENT)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Strict static types."""
    session.install("-e", ".", *DEVELOPMENT)
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into site/; a broken link is an error."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, "docs"))
    session.run("mkdocs", "build", "--strict", "--quiet", *session.posargs)


@nox.session
def speed(session: nox.Session) -> None:
    """The speed benchmarks: ratios in one run, on this machine."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.speed", *session.posargs)
