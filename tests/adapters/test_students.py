"""Students of adapters: described, saved, found again beside their teacher, and started from."""

from __future__ import annotations

import shutil

import pytest
import torch

from distillkit import DistillkitError, UsageError, distil, evaluate, load_student, load_teacher
from distillkit.jobs.run import Run
from distillkit.jobs.teacher_weights import refuse_fp8
from distillkit.registry import registry
from distillkit.runs.config import resolve
from distillkit.runs.options import nested, sections_of
from distillkit.testing.teachers import smallest
from tests.adapters.students import ADAPTER, adapted_student, saved_student

SHORT = {
    "batch": 16, "duration": 64, "pairs_count": 16, "pairs_steps": 2, "quiet": True, "device": "cpu",
    "protocol": "none", "channels_last": "off", "checkpoint_every": 32,
}  # fmt: skip
LORA = {"student_adapter": "lora", "fake_adapter": "lora", "rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher_folder):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    return distil("dmd", str(tiny_teacher_folder), output_dir=folder, **SHORT, **LORA)


def test_a_run_makes_a_student_of_adapters(run, tiny_teacher_folder):
    student = run.student
    adapter = student.description.adapter
    assert adapter.layers.rank == 4
    assert adapter.layers.alpha == 8
    assert adapter.layers.targets == ("conv0", "conv1")
    assert adapter.teacher == str(tiny_teacher_folder)
    assert adapter.base_sha256 == load_teacher(str(tiny_teacher_folder)).spec.weights_sha256
    assert not (run.folder / "student" / "model.safetensors").exists()
    assert (run.folder / "student" / "adapter.safetensors").is_file()
    assert "Adapters, a lora of rank 4, alpha 8" in (run.folder / "student" / "README.md").read_text()
    assert torch.equal(load_student(f"{run.folder}@latest")(4, seed=0), student(4, seed=0))
    raw = load_student(f"{run.folder}@student").generator.state_dict()
    assert any(not torch.equal(value, raw[name]) for name, value in student.generator.state_dict().items())
    assert evaluate(run, "digits8", samples=8, device="cpu", quiet=True).subject.weights_sha256


def test_the_teacher_is_found_again_or_named(run, tmp_path, tiny_teacher_folder):
    wanted = run.student(4, seed=0)
    shutil.copytree(run.folder / "student", tmp_path / "student")
    shutil.copytree(tiny_teacher_folder, tmp_path / "moved")
    description = tmp_path / "student" / "student.json"
    description.write_text(description.read_text().replace(str(tiny_teacher_folder), "/nowhere/tiny"))
    with pytest.raises(
        UsageError, match=r"adapters beside the weights of its teacher /nowhere/tiny, which cannot be had"
    ):
        load_student(tmp_path / "student")
    for teacher in (tmp_path / "moved", str(tmp_path / "moved"), load_teacher(str(tmp_path / "moved"))):
        assert torch.equal(load_student(tmp_path / "student", teacher=teacher)(4, seed=0), wanted)
    with pytest.raises(DistillkitError, match=r"have .*: it is another teacher"):
        load_student(tmp_path / "student", teacher="digits")


def test_a_student_that_is_saved_again_is_the_same(run, tmp_path):
    folder = run.student.save(tmp_path / "again")
    assert torch.equal(load_student(folder)(4, seed=0), run.student(4, seed=0))
    whole = run.student.merged().save(tmp_path / "whole")
    assert (whole / "model.safetensors").is_file()
    torch.testing.assert_close(load_student(whole)(4, seed=0).float(), run.student(4, seed=0).float(), rtol=0, atol=1)


def test_other_runs_start_from_it(run, tmp_path, tiny_teacher_folder, capsys):
    teacher, start = str(tiny_teacher_folder), str(run.folder)
    wanted = run.student.generator.denoiser
    first = {"duration": 16, "lr": 1e-12, "student": start}
    full = distil("kd", teacher, output_dir=tmp_path / "full", **{**SHORT, **first})
    assert full.student.description.adapter is None
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0])
    condition = full.student.conditioner.encode(torch.tensor([1, 2]))
    made = full.student.generator.denoiser(x, t, condition)
    torch.testing.assert_close(made, wanted(x, t, condition), rtol=1e-3, atol=1e-3)
    same = distil(
        "kd", teacher, output_dir=tmp_path / "same", student_adapter="lora", rank=4, alpha=8, **{**SHORT, **first}
    )
    torch.testing.assert_close(
        same.student.generator.denoiser(x, t, condition), wanted(x, t, condition), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(
        UsageError, match=r"lora of rank 4, alpha 8 of conv0, conv1, and those of this run a lora of rank 2"
    ):
        distil("kd", teacher, output_dir=tmp_path / "other", student_adapter="lora", rank=2, **{**SHORT, **first})
    with pytest.raises(UsageError, match=r"beside the teacher.s weights, and .* has others"):
        distil(
            "kd", teacher, output_dir=tmp_path / "beside", student_adapter="lora",
            **{**SHORT, "student": str(full.folder)},
        )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_a_run_can_go_on_for_longer_with_the_same_adapters(tmp_path, tiny_teacher_folder):
    part = distil(
        "dmd", str(tiny_teacher_folder), output_dir=tmp_path / "part", **{**SHORT, "duration": 64, **LORA}, lr=1e-3
    )
    longer = {name: value for name, value in SHORT.items() if name in ("quiet", "device")}
    going_on = distil("dmd", resume=part.folder, duration=96, **longer)
    assert isinstance(going_on, Run)
    assert going_on.student.description.images_seen == 96
    with pytest.raises(UsageError, match=r"student.rank: 4 in the run, 2 asked"):
        distil("dmd", resume=part.folder, duration=128, rank=2, **longer)


def test_a_teacher_at_hand_is_named_on_loading(tmp_path):
    teacher = smallest()
    run = distil("kd", teacher, output_dir=tmp_path / "run", student_adapter="lora", **SHORT)
    with pytest.raises(UsageError, match=r"conformance-smallest, which cannot be had .*load_student\(FOLDER, teacher="):
        load_student(run.folder)
    assert load_student(run.folder, teacher=teacher)(2, seed=0).shape == (2, 1, 8, 8)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, tiny_teacher_folder):
    student = saved_student(tmp_path / "student", tiny_teacher_folder)
    path = tmp_path / "student" / "student.json"
    path.write_text(path.read_text().replace('"rank": 4', '"rank": 3'))
    with pytest.raises(DistillkitError, match=r"do not fit their network \(20 differences\)"):
        load_student(tmp_path / "student")
    assert student.description.adapter.layers.rank == 4


def test_the_embedded_points_have_adapters_beside_the_network_that_was_fitted(tmp_path):
    teacher = load_teacher("mixture")
    made = adapted_student(teacher)
    assert sum(p.numel() for p in made.parameters()) > sum(p.numel() for p in teacher.start.parameters())
    student = saved_student(tmp_path / "student", "mixture")
    torch.testing.assert_close(student.generator.denoiser.state_dict(), made.denoiser.state_dict())


def test_the_teachers_weights_may_be_in_less_than_float32(tmp_path, tiny_teacher_folder):
    teacher = str(tiny_teacher_folder)
    run = distil("dmd", teacher, output_dir=tmp_path / "run", teacher_dtype="bf16", **SHORT, **LORA)
    student = run.student
    assert student.description.adapter.dtype == "bfloat16"
    kinds = {name: p.dtype for name, p in student.generator.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    whole = load_teacher(teacher)
    assert torch.equal(load_student(run.folder, teacher=whole)(4, seed=0), student(4, seed=0))
    assert {p.dtype for p in whole.denoiser.parameters()} == {torch.float32}
    with pytest.raises(UsageError, match="--teacher-dtype fp8: adapters are trained beside"):
        refuse_fp8("fp8")


def test_options_of_adapters(monkeypatch):
    dmd, sid = registry().method("dmd"), registry().method("sid")

    def config(method, **options):
        return resolve(method, options=nested(options, sections_of(method)))[0]

    student = config(dmd, student_adapter="lora", rank="8", alpha="16", targets="conv0,affine").student
    assert student.adapters[0].model_dump() == {
        "kind": "lora", "rank": 8, "alpha": 16.0, "targets": ("conv0", "affine"),
    }  # fmt: skip
    assert student.adapters[1] is None
    assert config(dmd, fake_adapter="lora").student.adapters == (None, type(ADAPTER)())
    with pytest.raises(UsageError, match="rank: of adapters, and there are none: add --student-adapter lora"):
        config(dmd, rank=8)
    with pytest.raises(UsageError, match="--rank: Input should be less than or equal to 4096"):
        config(dmd, student_adapter="lora", rank=5000)
    # A method's own setting keeps its name.
    mine = config(sid, student_adapter="lora", alpha=1.1, adapter_alpha=2)
    assert mine.settings["alpha"] == 1.1
    assert mine.student.alpha == 2
