"""A training that goes on from another one's student: what beside it goes on too."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, Run, distil, load_student
from distillkit.engine.trainer import Trainer
from distillkit.jobs.planned import planned
from distillkit.testing.teachers import conditional

ALONE = {"device": "cpu", "quiet": True, "batch": 8, "protocol": "none"}
SMALL = {**ALONE, "pairs_count": 8, "pairs_steps": 2}


@pytest.fixture(scope="module")
def teacher():
    return conditional()


@pytest.fixture(scope="module")
def first(teacher, tmp_path_factory):
    """DMD: its fake score is a `fake_score`, where DMD2 calls its own `critic` and gives it a head."""
    folder = tmp_path_factory.mktemp("first") / "run"
    return distil("dmd", teacher, output_dir=folder, distance="l2", duration=48, checkpoint_every=16, **SMALL)


def prepared(method, teacher, start, folder, **settings):
    """The job whose networks are where its training begins, and what it says."""
    with planned(method, teacher, output_dir=folder, device="cpu", student=str(start), **settings) as plan:
        job, said = plan.job(), []
        job.context.reporter.say = said.append
        job.prepare()
    return job, said


def kept(run, step):
    folder = run.folder / "checkpoints" / f"step-{step:09d}"
    found = load_file(folder / "fake_score.safetensors")
    return folder, {name.removeprefix("denoiser."): value for name, value in found.items()}


def holds(network, weights):
    return all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("method", "settings"), [("dmd2", {"gan_weight": 0.1}), ("sid", {}), ("dmd", {"distance": "l2"})]
)
def test_the_score_of_the_students_samples_goes_on_with_it(method, settings, teacher, first, tmp_path):
    folder, weights = kept(first, 6)
    job, said = prepared(method, teacher, first.folder, tmp_path / "run", **settings)
    [learner] = job.recipe.learners
    assert holds(learner.denoiser, weights) and not holds(teacher.denoiser, weights)
    assert f"{learner.name} starts from the fake_score of step 6 in {folder}" in said
    assert sum("starts from" in line for line in said) == 2


def test_it_is_that_of_the_checkpoint_that_was_asked_for(teacher, first, tmp_path):
    folder, weights = kept(first, 5)
    job, _ = prepared("sid", teacher, f"{first.folder}@5", tmp_path / "run")
    assert holds(job.recipe.learners[0].denoiser, weights)
    job, _ = prepared("sid", teacher, folder, tmp_path / "run")
    assert holds(job.recipe.learners[0].denoiser, weights)


def test_where_there_is_none_it_starts_from_the_teacher_and_says_so(teacher, first, tmp_path):
    without = distil("kd", teacher, output_dir=tmp_path / "kd", duration=16, **SMALL)
    file = tmp_path / "weights.safetensors"
    save_file(first.student.generator.denoiser.state_dict(), file)
    for start in (without.folder, file):
        job, said = prepared("dmd2", teacher, start, tmp_path / "run", gan_weight=0.1)
        assert holds(job.recipe.learners[0].denoiser, teacher.denoiser.state_dict())
        assert "note: critic starts from the teacher; none was kept beside this student" in said
    _, said = prepared("kd", teacher, without.folder, tmp_path / "run")
    assert sum("starts from" in line for line in said) == 1, "no network beside the student, nothing to say"


def test_a_damaged_one_is_refused_by_its_file(teacher, first, tmp_path):
    run = distil("sid", teacher, output_dir=tmp_path / "sid", duration=16, **ALONE)
    file = next(run.folder.glob("checkpoints/step-*/fake_score.safetensors"))
    values = load_file(file)
    save_file({name: value + 1 for name, value in values.items()}, file)
    with pytest.raises(DistillkitError, match=r"fake_score.safetensors does not match its recorded sha256"):
        prepared("sid", teacher, run.folder, tmp_path / "run")


def test_a_whole_training_goes_on_from_both(teacher, first, tmp_path):
    run = distil(
        "dmd2", teacher, output_dir=tmp_path / "run", student=str(first.folder), gan_weight=0.1, duration=16,
        **ALONE,
    )  # fmt: skip
    assert run.config.student.init == str(first.folder)


def test_a_run_that_goes_on_longer_is_its_newest_checkpoint(teacher, tmp_path):
    """As an interruption leaves it: the student, and the score beside it, are those of before and of now."""
    folder, before = tmp_path / "run", tmp_path / "before"
    distil("sid", teacher, output_dir=folder, duration=16, **ALONE)
    shutil.copytree(folder, before)
    distil("sid", teacher, resume=folder, duration=64, device="cpu", quiet=True)
    assert Run(folder).finished and load_student(folder).description.images_seen == 64
    for name in ("student", "record.json"):
        path, former = folder / name, before / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(former, path) if former.is_dir() else shutil.copy(former, path)
    said = []
    assert not Run(folder).finished and load_student(folder, say=said.append).description.images_seen == 64
    assert "is not finished: taking the moving average of step 8" in said[0]
    _, said = prepared("sid", teacher, folder, tmp_path / "next")
    assert any("fake_score starts from the fake_score of step 8" in line for line in said)
    _, said = prepared("sid", teacher, folder / "student", tmp_path / "next")
    assert "note: fake_score starts from the teacher; none was kept beside this student" in said


def test_what_is_seen_of_step_0_is_where_the_training_begins(teacher, first, tmp_path):
    """Before: averages were copies of the teacher until the first step, in pictures too."""
    job, _ = prepared("kd", teacher, first.folder, tmp_path / "run", pairs_count=8, ema_sigmas=[0.1], duration=320)
    trainer = Trainer(
        job.recipe, job.teacher, job.config.training, accelerator=job.context.accelerator, seed=0,
        sources={}, networks=job.networks, strategy=job.strategy,
    )  # fmt: skip
    weights = job.recipe.student.denoiser.state_dict()
    assert not holds(teacher.denoiser, weights)
    assert len(trainer.averages) == 2 and all(holds(each.target.denoiser, weights) for each in trainer.averages)
