"""DMD2 on every family of networks in parts, against one process with whole ones. A program of tests: a folder, then
families' names."""

import sys
from pathlib import Path

import torch.distributed as dist

from distillkit import Images, PromptList, load_teacher
from distillkit.progress import Quiet
from distillkit.registry import registry
from distillkit_dmd2.method import DMD2
from tests.models import pipelines
from tests.parallel.small import RANK, compared_on

FAMILIES = {
    "sd": pipelines.stable_diffusion, "sdxl": pipelines.sdxl, "dit": pipelines.dit, "pixart": pipelines.pixart,
    "sd3": pipelines.sd3, "flux": pipelines.flux,
}  # fmt: skip


def teacher_of(folder, name):
    if RANK == 0 and not (folder / name).exists():
        FAMILIES[name](folder / name)
    dist.barrier()
    teacher = load_teacher(str(folder / name), Quiet())
    if hasattr(teacher.conditioner, "encoder"):
        texts = [f"{word} cat" for word in ("a", "the", "no", "every")]
        teacher.conditioner = teacher.conditioner.with_prompts(PromptList(texts, "cats", "0" * 64))
    teacher.images = lambda device: registry().sources()[Images].synthetic(teacher, device)
    return teacher


for name in sys.argv[2:] or FAMILIES:
    guided = {} if name == "flux" else {"guidance": 4.0}
    made = compared_on(
        lambda name=name: teacher_of(Path(sys.argv[1]), name), DMD2, {**guided, "updates": 1, "evaluations": 2}
    )
    spread = made.networks.counted["teacher"]
    assert len(list(spread.units())) > 1, name
    sys.stdout.write(f"{name} ")
    sys.stdout.flush()
sys.stdout.write(f"done:{RANK}\n")
