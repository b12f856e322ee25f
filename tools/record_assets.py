"""`python -m distillkit.runs.record_assets`: after new files were put into distillkit/assets, record their hashes and
measure the embedded teacher's score, which then ships with them; and write the records' schema anew."""

from __future__ import annotations

from pathlib import Path

import torch

from distillkit import assets
from distillkit.evaluation import record
from distillkit.files import sha256, write_json
from distillkit.progress import reporter_for
from distillkit.jobs.scores import ruler_for, score_key, teacher_score
from distillkit.models.store.resolve import load_teacher


def main() -> None:
    shipped = sorted(p for p in assets.FOLDER.iterdir() if p.suffix in (".safetensors", ".json"))
    hashes = {p.name: sha256(p) for p in shipped if p.name not in (assets.HASHES, assets.SCORES)}
    write_json(assets.FOLDER / assets.HASHES, hashes)
    assets.asset_hashes.cache_clear()
    teacher = load_teacher("digits")
    ruler = ruler_for(teacher.spec, 5000)
    assert ruler is not None
    result = teacher_score(teacher, ruler, torch.device("cpu"), reporter_for(), fresh=True)
    entry = {"terms": dict(result.terms), "nfe": result.nfe, "count": result.count}
    write_json(assets.FOLDER / assets.SCORES, {score_key(teacher, ruler): entry})
    write_json(Path(record.__file__).with_name("record.schema.json"), record.schema())
    reporter_for().say(f"{result.label} {result.value:.5f}")


if __name__ == "__main__":
    main()
