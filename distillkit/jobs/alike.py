"""Whether all processes of a job have the same programs and read the same things, found out before anything is done."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from importlib.metadata import entry_points, version

from distillkit.contracts.hooks import GROUP
from distillkit.engine.processes import Processes
from distillkit.errors import UsageError


def versions() -> dict[str, str]:
    """Of what has to be the same on all machines: Python (its minor version), torch, and whatever offers plugins."""
    offering = {entry.dist.name: entry.dist.version for entry in entry_points(group=GROUP) if entry.dist}
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version(name) for name in ("distillkit", "torch")},
        **offering,
    }


def require_same_versions(processes: Processes) -> None:
    """Refuse machines with other versions; called by all processes.

    Raises:
        UsageError: naming a process, its machine, and both versions.
    """
    if processes.world == 1:  # finding them reads the metadata of every package
        return
    _require_same(
        processes, versions(), "have other versions",
        "All machines of a job need the same versions of Python, torch, distillkit and plugins.",
    )  # fmt: skip


def require_same_inputs(processes: Processes, inputs: Mapping[str, str]) -> None:
    """Refuse processes that were asked for other things or read other data; called by all.

    Args:
        inputs: what a process reads, by what it is, and what it was asked for.

    Raises:
        UsageError: naming a process, its machine, and both inputs.
    """
    _require_same(
        processes, inputs, "were given other inputs",
        "Give every process the same command, and every machine the same files.",
    )  # fmt: skip


def _require_same(processes: Processes, mine: Mapping[str, str], what: str, remedy: str) -> None:
    if processes.world == 1:
        return
    said = processes.gather((socket.gethostname(), dict(mine)))
    host, first = said[0]
    lines = []
    for rank, (other, theirs) in enumerate(said):
        if other_names := [name for name in sorted({*first, *theirs}) if first.get(name) != theirs.get(name)]:
            found = ", ".join(
                f"{name} {theirs.get(name, 'none')}, not {first.get(name, 'none')}" for name in other_names[:5]
            )
            more = f", and {len(other_names) - 5} more" if len(other_names) > 5 else ""
            lines.append(f"process {rank} (on {other}): {found}{more}")
    if lines:
        shown = "\n  ".join(lines[:8]) + (f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise UsageError(
            f"{len(lines)} of {processes.world} processes {what} than process 0 (on {host}):\n  {shown}\n{remedy}"
        )
