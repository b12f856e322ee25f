"""What a run logs: means over logging intervals, judged, written to metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit.contracts.health import Diagnostic, Health
from distillkit.files import append_bytes, write_bytes
from distillkit.reading import Unreadable, parse_json


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

    def state(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The present interval so far: (P, 2) float64, sum and weight by process, for each name; called by all."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        # In double precision on the CPU: MPS has none.
        sums = torch.stack([self._sums[name] for name in names]).cpu().double()
        weights = torch.tensor([self._weights[name] for name in names], dtype=torch.float64)
        rows = torch.stack([sums, weights], 1)[None]
        if accelerator.num_processes > 1:
            rows = accelerator.gather(rows.to(accelerator.device))
        return dict(zip(names, rows.cpu().unbind(1), strict=True))

    def load_state(self, saved: Mapping[str, Tensor], accelerator: Accelerator, where: str = "means") -> None:
        """The inverse of `state`; where another number of processes goes on, each takes the mean over them.

        Args:
            where: the file, for messages.

        Raises:
            Unreadable: naming the file and what is no sum with its weight.
        """
        for name, rows in saved.items():
            if rows.ndim != 2 or rows.shape[-1] != 2 or not len(rows) or not rows.is_floating_point():
                raise Unreadable(f"cannot read {where}: {name} has shape {tuple(rows.shape)}, not (processes, 2)")
            own = rows[accelerator.process_index] if len(rows) == accelerator.num_processes else rows.mean(0)
            self._sums[name] = own[0].float().to(accelerator.device)
            self._weights[name] = own[1].item()


def judge(metrics: Mapping[str, float], diagnostics: Sequence[Diagnostic]) -> dict[str, Health]:
    """The health of every diagnostic that has a value."""
    return {d.name: d.judge(metrics[d.name]) for d in diagnostics if d.name in metrics}


class MetricsFile:
    """metrics.jsonl: one JSON object a line, cut back to the checkpoint when a run is resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int, *, evaluated: bool = True, previewed: bool = True) -> None:
        """Drop entries after `step`, and what is no entry: a torn last line, bytes of something else.

        The file is the old one or the new one, never half of it.

        Args:
            evaluated: whether the evaluation at `step` itself counts, or will be repeated.
            previewed: the same of the preview.
        """
        repeated = {name for name, counts in (("evaluation", evaluated), ("preview", previewed)) if not counts}
        if not self.path.exists():
            return

        def kept(line: bytes) -> bool:
            try:
                entry = parse_json(line, str(self.path))
                return bool(entry["step"] < step or (entry["step"] == step and repeated.isdisjoint(entry)))
            except (Unreadable, KeyError, TypeError):
                return False

        lines = self.path.read_bytes().split(b"\n")
        write_bytes(self.path, b"".join(line + b"\n" for line in lines if kept(line)))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry, whole or not at all.

        Raises:
            DistillkitError: when the disk refuses it for good.
        """
        append_bytes(self.path, (json.dumps(_plain(entry), allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """The value in JSON: numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
