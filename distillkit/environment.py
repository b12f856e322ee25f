"""Circumstances of a run or a measurement: what one needs to understand a result later."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distillkit.text import redacted

PACKAGES = ("distillkit", "torch", "accelerate", "numpy", "safetensors")


def environment() -> dict[str, Any]:
    """Command line, versions and hardware."""
    import torch

    return {
        "command": redacted(shlex.join(_command())),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _command() -> list[str]:
    """The command line, by the command's name where it is distillkit's own, else as the interpreter was started."""
    program = Path(sys.argv[0])
    if program.stem == "distillkit" or program.parent == Path(__file__).parent:
        return ["distillkit", *sys.argv[1:]]
    interpreter, *arguments = sys.orig_argv
    return [Path(interpreter).name, *arguments]


@cache
def _versions() -> dict[str, str]:
    """Of the packages; every figure of a run is kept with them, and looking them up reads their metadata."""
    return {name: version(name) for name in PACKAGES}


@cache
def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
