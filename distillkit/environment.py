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
        "command": redacted(shlex.join(["distillkit", *sys.argv[1:]])),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


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
