"""`python tools/record_assets.py`: after files in distillkit/embedded were changed, record their hashes, measure the
embedded teachers, whose records then ship with them, and write the records' schema anew. Minutes on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from distillkit.data.prompts import PromptsConfig
from distillkit.embedded import assets
from distillkit.evaluation import record
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.evaluation.teacher_record import record_key, teacher_record
from distillkit.files import sha256, write_json
from distillkit.jobs.prompts import with_prompts
from distillkit.models.store.resolve import load_teacher
from distillkit.progress import reporter_for

TEACHERS = ("digits", "mixture", "shapes")


def record_hashes() -> None:
    """Of all shipped files."""
    write_json(assets.FOLDER / assets.HASHES, {name: sha256(path) for name, path in assets.shipped_files().items()})
    assets.asset_hashes.cache_clear()


def main() -> None:
    record_hashes()
    reporter, records = reporter_for(), {}
    for name in TEACHERS:
        alone = load_teacher(name)
        protocol = load_measure(default_protocol(alone))
        # A run rounds text encodings, which makes another record of a teacher of prompts.
        for teacher in (alone, with_prompts(alone, None, PromptsConfig().dtype)):
            if (key := record_key(teacher_generator(teacher), protocol)) not in records:
                made = teacher_record(teacher, protocol, device=torch.device("cpu"), reporter=reporter, fresh=True)
                records[key] = made.model_dump(mode="json")
                reporter.say(f"{name}: {made.label} {made.figure.text}")
    write_json(assets.FOLDER / assets.RECORDS, records)
    write_json(Path(record.__file__).with_name("record.schema.json"), record.schema())


if __name__ == "__main__":
    main()
