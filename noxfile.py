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


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on two workers."""
    session.install("-e", ".", *DEVELOPMENT)
    session.run("pytest", *(session.posargs or ["-n", "2", "--dist", "loadfile"]), env=SURROUNDINGS)


@nox.session
def coverage(session: nox.Session) -> None:
    """All tests with coverage, which slows them."""
    session.install("-e", ".", *DEVELOPMENT)
    report = ["--cov", "--cov-report", "term:skip-covered"]
    session.run("pytest", "-n", "2", "--dist", "loadfile", *report, env=SURROUNDINGS)


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
