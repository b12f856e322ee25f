"""The model card: what the student is, how to use it, what was measured and what was not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import Conditioner
from distillkit.files import write_bytes
from distillkit.models.prompts import Prompts
from distillkit.registry import registry
from distillkit.students.description import StudentDescription
from distillkit.text import markdown

CARD, PICTURE = "README.md", "samples.png"
LONGEST_EXAMPLE = 200
"""Characters of a prompt in a snippet."""
BEGIN, END = "<!-- usage -->", "<!-- end of usage -->"


def write_card(path: Path, description: StudentDescription, record: Mapping[str, Any] | None = None) -> None:
    """Write the card of a student that lies beside its picture; arguments as in `card`."""
    write_bytes(path, card(description, record, picture=True).encode())


def card(description: StudentDescription, record: Mapping[str, Any] | None = None, *, picture: bool = False) -> str:
    """README.md with Hugging Face front matter.

    Args:
        record: the run's record.json; None where nothing was measured, as for a checkpoint.
        picture: whether samples.png lies beside the card.
    """
    codec = registry().build("codecs", description.codec)
    conditioner = registry().build("conditioners", description.conditioner)
    teacher, name = description.teacher, markdown(description.teacher.name)
    shape = codec.decoded_shape(description.shape)
    kind = str(codec.dtype).removeprefix("torch.")
    conditions = f", conditioned on {markdown(conditioner.summary())}" if conditioner.count else ""
    measured = "\n".join(_measured(record)) if record else "No figure of this student is recorded."
    return f"""---
library_name: distillkit
tags: [diffusion, distillation, {json.dumps(description.method)}]
{f"pipeline_tag: text-to-image{chr(10)}" if isinstance(conditioner, Prompts) else ""}license: other
---
# {_title(description)}

A generator of {_content(codec, shape)}, {description.nfe:g} network evaluation(s) a sample{conditions}.
{f"{chr(10)}![samples]({PICTURE}){chr(10)}" if picture else ""}
{BEGIN}
```python
from distillkit import load_student

student = load_student("path/to/this/folder")
samples = {_call(conditioner, (64, *shape))} {kind}
```
{END}

{measured}

- Teacher: {name} (sha256 `{teacher.weights_sha256[:16] or "not recorded"}`), \
{markdown(teacher.source) or "source not recorded"}.
- Teacher's licence, which may bind this student too: {markdown(teacher.licence) or "not recorded"}.
{_made_by(description)}
- {_guidance(description)} Sampler: {description.sampler["kind"]}.
{_prompts(conditioner, record)}{"".join(f"- {line}{chr(10)}" for line in _notes(description, record))}"""


def _title(description: StudentDescription) -> str:
    if description.imported:
        return f"{markdown(description.imported.name)}, published"
    return f"{markdown(description.teacher.name)}, distilled by {markdown(description.method)}"


def _made_by(description: StudentDescription) -> str:
    """The method with its package, or the publication of a student that was trained elsewhere."""
    version = f"distillkit {markdown(description.distillkit)}"
    if (found := description.imported) is None:
        return (
            f"- Method: {markdown(description.method)} from {markdown(description.method_package)}, {version}; "
            f"{description.images_seen:,} images seen; settings in student.json."
        )
    return (
        f"- Published, imported from {markdown(found.source)} (sha256 `{found.sha256}`) by {version}, not trained by "
        f"it.\n- Licence of the weights: {markdown(found.licence) or 'not recorded'}."
    )


def _guidance(description: StudentDescription) -> str:
    guide = f", away from {markdown(description.guide.name)}" if description.guide else ""
    if (weight := description.sampler.get("guidance")) is None and description.imported:
        return "Guidance weight learnt in: not recorded."
    if weight is None:
        return f"Guidance weight learnt in: {description.guidance:g}{guide}."
    return f"Guidance weight: an input of the network{guide}, {weight:g} unless another is asked for."


def example_prompt(conditioner: Prompts) -> str:
    """A short prompt of those that a student was made for, to show how it is used."""
    short = (text for text in conditioner.examples if 0 < len(text) <= LONGEST_EXAMPLE and text.isprintable())
    return next(short, "a photograph of a red circle")


def _call(conditioner: Conditioner, shape: tuple[int, ...]) -> str:
    """A call of the student, and the shape of what it makes."""
    if not isinstance(conditioner, Prompts):
        return f"student(64, seed=0)  # {shape}"
    # A repr cannot end the block of code: it holds no line break.
    return f"student(4, seed=0, prompts=[{example_prompt(conditioner)!r}])  # {(4, *shape[1:])}"


def _prompts(conditioner: Conditioner, record: Mapping[str, Any] | None) -> str:
    """The list that the student was trained with, in a line; "" where there was none."""
    if not isinstance(conditioner, Prompts) or not conditioner.listed:
        return ""
    path = str(((record or {}).get("config") or {}).get("prompts", {}).get("path") or "")
    name = path if path.startswith("hf:") else Path(path).name
    return f"- Prompts: {markdown(name) or 'a list'} (sha256 `{conditioner.listed[:16]}`).\n"


def with_usage(text: str, usage: str, *, library: str) -> str:
    """A card that says how the student is used in another library, where it was exported to."""
    text = re.sub(r"^library_name: .*$", lambda _: f"library_name: {library}", text, count=1, flags=re.MULTILINE)
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        return f"{text.rstrip()}\n\n{usage}\n"
    return f"{text[: begin + len(BEGIN)]}\n{usage}\n{text[end:]}"


def _measured(record: Mapping[str, Any]) -> Iterator[str]:
    """A table of the generators with their figures, what the figures are, and where speeds were measured."""
    rows = record["rows"]
    measured = next((row["record"] for row in rows if row.get("record")), None)
    label = measured["label"] if measured else "figure"
    yield f"| generator | {label} | NFE | images/s |"
    yield "|---|---|---|---|"
    yield from (_row(row) for row in rows)
    yield ""
    if measured:
        protocol = measured["protocol"]
        yield (
            f"Protocol `{measured['protocol_id']}` ({protocol['name']}, {protocol['samples']['count']:,} samples): "
            f"figures compare only within it. ± is one standard error. {_kind(label)}"
        )
    else:
        yield "No figure of quality was measured: the run had no protocol."
    environment = record["environment"]
    hardware = environment.get("accelerator") or f"{environment['processor']}, {environment['threads']} threads"
    yield f"Speeds: {hardware}, torch {environment['versions']['torch']}."


def _row(row: Mapping[str, Any]) -> str:
    speed = "" if row.get("images_per_second") is None else f"{row['images_per_second']:,.0f}"
    nfe = "" if row.get("nfe") is None else f"{row['nfe']:g}"
    record = row.get("record")
    figure = _figure(record["figures"][record["label"]]) if record else "not measured"
    return f"| {markdown(row['name'])} | {figure} | {nfe} | {speed} |"


def _figure(figure: Mapping[str, Any]) -> str:
    """'0.00512 ± 0.00031': both to the error's second figure, or five decimals where no error is known."""
    value, error = figure["value"], figure.get("standard_error")
    if not error:
        return f"{value:.5g}"
    decimals = max(0, 1 - int(f"{error:e}".partition("e")[2]))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _kind(label: str) -> str:
    if label.startswith("FD["):
        return "FD is a Fréchet distance in the features named in brackets, and not Inception FID."
    if label.startswith("KL["):
        return "KL is a divergence from a known distribution."
    return ""


def _notes(description: StudentDescription, record: Mapping[str, Any] | None) -> Iterator[str]:
    yield from map(markdown, description.remarks)
    if (guide := description.guide) is not None:
        yield (
            f"Guide of the teacher: {markdown(guide.name)} (sha256 `{guide.weights_sha256[:16] or 'not recorded'}`), "
            f"{markdown(guide.source) or 'source not recorded'}. Its licence: "
            f"{markdown(guide.licence) or 'not recorded'}."
        )
    if (adapter := description.adapter) is not None:
        yield f"Adapters, a {adapter.layers.title}, beside the weights of the teacher, which are needed to load it."
    if not record:
        return
    if (selection := record.get("selection") or {}).get("evaluated"):
        best, looked_at = selection.get("best_step"), selection["evaluated"]
        place = "" if best is None else f", the best at step {best:,}; the student here is the last step's"
        yield f"Checkpoints measured during the training: {looked_at}{place}."
    health = ", ".join(f"{name} {state}" for name, state in (record.get("health") or {}).items())
    yield f"Health at the end: {health or 'no diagnostics declared'}."


def _content(codec: Codec, shape: tuple[int, ...]) -> str:
    if codec.content == "points":
        return f"points of {' x '.join(map(str, shape))} numbers"
    *lead, height, width = shape
    if codec.content == "video":
        return f"{height} x {width} videos of {lead[1]} frames with {lead[0]} channel(s)"
    return f"{height} x {width} images with {lead[0]} channel(s)"
