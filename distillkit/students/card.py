"""The model card: what the student is, how to use it, what was measured and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillkit.contracts.teacher import TeacherSpec
from distillkit.files import write_bytes
from distillkit.students.artifact import StudentDescription


def write_card(path: Path, description: StudentDescription, record: Mapping[str, Any]) -> None:
    """Write README.md with Hugging Face front matter from the student's description and the run's record."""
    spec = description.teacher
    protocol = record["protocol_id"]
    rows = "\n".join(_row(row) for row in record["rows"])
    environment = record["environment"]
    hardware = environment.get("accelerator") or f"{environment['processor']}, {environment['threads']} threads"
    measured = (
        f"Protocol `{protocol}` ({record['protocol']['samples']['count']} samples). FD is a Fréchet distance in the "
        "features named in brackets and not Inception FID, KL a divergence to a known distribution; figures compare "
        "only within this protocol."
        if protocol
        else "No figure of quality was measured: no protocol for this teacher is at hand."
    )
    text = f"""---
library_name: distillkit
tags: [diffusion, distillation, {description.method}]
license: other
---
# {spec.name}, distilled by {description.method}

A generator of {_samples(spec)}, {description.nfe:g} network evaluation(s) a sample{_classes(spec.num_classes)}.

![samples](samples.png)

```python
from distillkit import load_student

generator = load_student("path/to/this/folder")
samples = generator(64, seed=0)  # {(64, *spec.shape)} {"uint8" if spec.is_image else "float32"}
```

| generator | figure | NFE | images/s |
|---|---|---|---|
{rows}

{measured}
Speeds: {hardware}, torch {environment["versions"]["torch"]}.

- Teacher: {spec.name} (sha256 `{spec.weights_sha256[:16]}`), {spec.source or "source not recorded"}.
- Teacher's licence, which may bind this student too: {spec.licence or "not recorded"}.
- Method: {description.method} from {description.method_package}, distillkit {description.distillkit}; \
{description.images_seen:,} images seen; settings in student.json.
- Guidance weight learnt in: {description.guidance:g}. Sampler: {description.sampler["kind"]}.
- Health at the end: {", ".join(f"{k} {v}" for k, v in record["health"].items()) or "no diagnostics declared"}.
"""
    write_bytes(path, text.encode())


def _row(row: Mapping[str, Any]) -> str:
    figures = [f"{key} {value:.5f}" for key, value in row.items() if "[" in key]
    return (
        f"| {row['name']} | {figures[0] if figures else 'not measured'} | {row['nfe']:g} | "
        f"{row['images_per_second']:,.0f} |"
    )


def _samples(spec: TeacherSpec) -> str:
    channels, height, width = spec.shape
    return f"{height} x {width} images with {channels} channel(s)" if spec.is_image else f"points of {channels} numbers"


def _classes(count: int) -> str:
    return f", conditioned on {count} classes" if count else ""
