"""What a run logs: means over logging intervals, judged, written to metrics.jsonl and to trackers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit.contracts.health import Diagnostic, Health
from distillkit.registry import registry

log = logging.getLogger(__name__)


class Means:
    """Running sums of scalar tensors, kept on the device; one transfer for all when they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        value = value.detach().float() * weight
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the interval and over processes; starts a new interval."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name] / self._weights[name] for name in names])
        if accelerator.num_processes > 1:
            stacked = accelerator.reduce(stacked, "mean")
        self.__init__()  # type: ignore[misc]
        return dict(zip(names, stacked.tolist(), strict=True))


def judge(metrics: Mapping[str, float], diagnostics: Sequence[Diagnostic]) -> dict[str, Health]:
    """The health of every diagnostic that has a value."""
    return {d.name: d.judge(metrics[d.name]) for d in diagnostics if d.name in metrics}


class MetricsFile:
    """metrics.jsonl: one JSON object a line, cut back to the checkpoint when a run is resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Drop entries after `step` and a torn last line."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def append(self, entry: Mapping[str, Any]) -> None:
        finite = {k: (v if not isinstance(v, float) or math.isfinite(v) else str(v)) for k, v in entry.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")


class Trackers:
    """An experiment tracker by accelerate's name or a plugin's. Its failures are warnings: local files are the record.

    Plugins' trackers log on the first process alone.
    """

    def __init__(self, accelerator: Accelerator, name: str, project: str, config: Mapping[str, Any]) -> None:
        self.accelerator = accelerator
        self.active, self.own = False, None
        offered = registry().trackers.get(name)
        if name == "none" or (offered and not accelerator.is_main_process):
            return
        try:
            plain = {k: v for k, v in config.items() if isinstance(v, str | int | float | bool)}
            if offered:
                self.own = offered.value(project, plain)
            else:
                accelerator.init_trackers(project, config=plain)
            self.active = True
        except Exception as error:  # any tracker may fail in any way; the run goes on
            log.warning("tracker %s is not available (%s); the run goes on with metrics.jsonl alone", name, error)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if not self.active:
            return
        try:
            if self.own is not None:
                self.own.log(dict(values), step)
            else:
                self.accelerator.log(dict(values), step=step)
        except Exception as error:
            self.active = False
            log.warning("the tracker failed (%s); the run goes on with metrics.jsonl alone", error)

    def close(self) -> None:
        if not self.active:
            return
        try:
            if self.own is not None:
                self.own.close()
            else:
                self.accelerator.end_training()
        except Exception as error:
            log.warning("the tracker failed at the end (%s)", error)
