"""A run is reused while everything that its result depends on is the same, and made anew when any of it changes."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import save_file

from distillkit import ClassLabels, distil
from distillkit.benchmark import jobs
from distillkit.benchmark.jobs import configuration, distillation, identity, jobs_of
from distillkit.benchmark.suite import Entry, Suite
from distillkit.jobs.context import job_context
from distillkit.jobs.planned import method_offer
from distillkit.models.store.resolve import load_teacher

SUITE = Suite(
    name="mine", teacher="digits", budget=20_000, seeds=2, methods={"kd": {"sources": {"pairs": {"count": 8}}}}
)


@pytest.fixture
def context():
    with job_context(device="cpu", quiet=True) as made:
        yield made


def key(teacher, context, method=None, processes=1, **entry):
    suite = SUITE.model_copy(update={"methods": {"kd": SUITE.methods["kd"].model_copy(update=entry)}})
    offer = method or method_offer("kd")
    return identity(distillation(offer, configuration(suite, "kd", offer), teacher, context), offer, processes)


def test_each_dependency_changes_the_key(context, tiny_teacher_folder, monkeypatch, tmp_path):
    def teacher():
        return load_teacher(str(tiny_teacher_folder))

    plain = key(teacher(), context)
    assert key(teacher(), context) == plain, "the same twice"
    found = {"plain": plain}
    other = teacher()
    other.spec = other.spec.model_copy(update={"solver_steps": 5})
    found["solver"] = key(other, context)
    other = teacher()
    other.spec = other.spec.model_copy(update={"weights_sha256": "0" * 64})
    found["weights"] = key(other, context)
    other = teacher()
    other.denoiser.schedule = other.denoiser.schedule.model_copy(update={"sigma_max": 70.0})
    found["schedule"] = key(other, context)
    other = teacher()
    other.conditioner = ClassLabels(classes=10, null_label=False)
    found["conditioner"] = key(other, context)
    found["processes"] = key(teacher(), context, processes=2)
    found["package"] = key(teacher(), context, dataclasses.replace(method_offer("kd"), version="9"))
    start = tmp_path / "start.safetensors"
    weights = teacher().copy_denoiser().state_dict()
    save_file({name: value + 0.5 if value.is_floating_point() else value for name, value in weights.items()}, start)
    found["start"] = key(teacher(), context, student={"init": str(start)})
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "source_hash", lambda method: "edited")
        found["source"] = key(teacher(), context)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "own_source_hash", lambda *parts: "edited")
        found["distillkit"] = key(teacher(), context)
    assert len(set(found.values())) == len(found), found


def test_a_score_that_goes_on_from_another_training_is_part_of_the_key(context, tiny_teacher_folder, tmp_path):
    teacher = load_teacher(str(tiny_teacher_folder))
    run = distil("sid", teacher, output_dir=tmp_path / "run", duration=16, batch=8, protocol="none", quiet=True)
    suite = SUITE.model_copy(update={"methods": {"sid": Entry(student={"init": str(run.folder)})}})
    offer, found = method_offer("sid"), []
    for _ in range(2):
        planned = distillation(offer, configuration(suite, "sid", offer), teacher, context)
        planned.prepare()
        found.append(identity(planned, offer, 1))
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    assert found[0] != found[1], "without its checkpoints the score begins at the teacher"


def test_the_code_that_a_training_runs_through_is_part_of_the_key():
    for part in (*jobs.TRAINING_CODE, *jobs.FIGURES_CODE):
        assert jobs.own_source_hash(part) != jobs.own_source_hash()
    assert {"parallel", "students", "power_ema.py"} <= {*jobs.TRAINING_CODE}


def test_every_setting_is_part_of_a_jobs_key(context, tiny_teacher_folder):
    teacher = load_teacher(str(tiny_teacher_folder))

    def keys(**changes):
        return [job.key for job in jobs_of(SUITE.model_copy(update=changes), teacher, context)]

    plain = keys()
    assert keys() == plain and len(set(plain)) == 2, "a key for each seed"
    entry = SUITE.methods["kd"]
    for changes in (
        {"budget": 30_000},
        {"samples": 100},
        {"curve_points": 4},
        {"training": {"lr": 1e-5}},
        {"methods": {"kd": entry.model_copy(update={"settings": {"distance": "l1"}})}},
        {"methods": {"kd": entry.model_copy(update={"student": {"start_ratio": 2.0}})}},
        {"methods": {"kd": entry.model_copy(update={"sources": {"pairs": {"count": 9}}})}},
    ):
        assert not set(keys(**changes)) & set(plain), changes


def test_planning_leaves_the_global_generator_alone(context, tiny_teacher_folder):
    teacher = load_teacher(str(tiny_teacher_folder))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = [job.key for job in jobs_of(SUITE, teacher, context)]
    torch.set_rng_state(before)
    torch.randn(5)
    assert [job.key for job in jobs_of(SUITE, teacher, context)] == first
