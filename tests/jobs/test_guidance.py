"""One guidance for a run: of the teacher in the loss, of the pairs, and of the teacher beside the student."""

import json

import pytest
import torch
from torch import nn

from distillkit import ClassLabels, UsageError, distil
from distillkit.contracts.health import Health
from distillkit.jobs.planned import planned
from distillkit.jobs.previews import CLIPPED, Previews, clipped
from distillkit.runs.folder import RunFolder
from distillkit.testing.teachers import conditional, flow, points, text_to_latent, unconditional

SMALL = {"device": "cpu", "quiet": True, "batch": 8, "duration": 16, "pairs_count": 8, "pairs_steps": 2}


@pytest.mark.parametrize(
    ("method", "asked", "guidance", "said"),
    [
        ("dmd", {"guidance": 3.0}, 3.0, "guidance: 3 (the teacher's and the pairs')"),
        ("dmd", {"guidance": 3.0, "pairs_guidance": 1.5}, 1.5, "of the teacher is 3, and that of the pairs 1.5"),
        ("dmd", {}, 1.0, ""),
        ("kd", {"pairs_guidance": 2.0}, 2.0, "guidance: 2 (the pairs')"),
        ("kd", {}, None, ""),
    ],
)
def test_pairs_have_the_methods_guidance_unless_another_is_asked_for(
    method, asked, guidance, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("distillkit.runs.config.preset_name", lambda name: "another")
    with planned(method, conditional(), output_dir=tmp_path / "run", device="cpu", pairs_count=8, **asked) as plan:
        job = plan.job()
        assert job.config.sources["pairs"]["guidance"] == guidance
        job.prepare()
    shown = capsys.readouterr().out
    assert said in shown and ("guidance" in shown) is bool(said)


def test_the_teacher_that_a_guided_student_is_compared_with_is_guided(tmp_path, monkeypatch):
    seen, teacher = [], conditional()
    sample = type(teacher).sample

    def noted(self, *arguments, guidance=1.0, **named):
        seen.append(guidance)
        return sample(self, *arguments, guidance=guidance, **named)

    monkeypatch.setattr(type(teacher), "sample", noted)
    run = distil("dmd", teacher, output_dir=tmp_path / "run", guidance=3.0, protocol="none", sample_every=8, **SMALL)
    assert seen and set(seen) == {3.0}, "pairs, pictures and table"
    assert run.rows[0].name == "teacher, 3 Heun steps, guidance 3" and run.student.description.guidance == 3.0
    assert "teacher with guidance 3" in (run.folder / "samples" / "README.txt").read_text()
    assert run.config.sources["pairs"]["guidance"] == 3.0, "what was made is what the configuration says"

    # A longer training goes on with the same pairs, and with another guidance it is another run.
    more = {"resume": run.folder, "device": "cpu", "quiet": True, "duration": 32}
    with pytest.raises(UsageError, match="guidance"):
        distil("dmd", teacher, guidance=2.0, **more)
    assert distil("dmd", teacher, **more).config.sources["pairs"]["guidance"] == 3.0


def test_a_run_of_before_goes_on_with_the_pairs_that_it_had(tmp_path):
    """Its configuration says guidance 1 for the pairs of a guided teacher."""
    made = distil(
        "dmd", conditional(), output_dir=tmp_path / "run", guidance=3.0, pairs_guidance=1.0, protocol="none", **SMALL
    )
    assert RunFolder(made.folder, "").saved_config().values["sources"]["pairs"]["guidance"] == 1.0
    run = distil("dmd", conditional(), resume=made.folder, device="cpu", quiet=True, duration=32)
    assert run.config.sources["pairs"]["guidance"] == 1.0


def test_guidance_without_an_unconditional_prediction_is_refused_before_the_run(tmp_path):
    with pytest.raises(UsageError, match=r"--guidance 2.*guidance 1"):
        distil("sid", unconditional(), output_dir=tmp_path / "run", guidance=2.0, **SMALL)
    assert not (tmp_path / "run").exists()


def test_the_row_of_the_teacher_is_drawn_with_its_guidance(tmp_path):
    teacher = conditional()
    previews = [Previews(tmp_path, teacher, (), 0, guidance) for guidance in (1.0, 4.0)]
    from distillkit import StudentGenerator

    student = StudentGenerator.from_teacher(teacher)
    for preview in previews:
        preview(student, 0)
    plain, guided = (preview._teacher_row for preview in previews)
    noise, condition = previews[0]._noise("previews", range(10)), previews[0]._condition(range(10))
    assert torch.equal(guided, teacher.codec.decode(teacher.sample(noise, condition, guidance=4.0)))
    assert not torch.equal(plain, guided)


class Saturated(nn.Module):
    """Gives the teacher's own samples, so many times as strong."""

    def __init__(self, teacher, strength):
        super().__init__()
        self.teacher, self.strength = teacher, strength

    def forward(self, noise, condition, renoise):
        return self.strength * self.teacher.sample(noise, condition)


@pytest.mark.parametrize("build", [conditional, text_to_latent, flow], ids=lambda build: build.__name__)
def test_how_much_of_the_pictures_is_cut_off_is_judged_against_the_teachers(build, tmp_path):
    """What a teacher cuts off itself is no fault of a student; of points nothing is cut off."""
    teacher, seen = build(), {}
    for strength in (0.0, 1.0, 50.0):
        values = Previews(tmp_path, teacher, (), 0, 1.0)(Saturated(teacher, strength), 7).values
        seen[strength] = values["clipped_to_teacher"]
    assert [CLIPPED.judge(value) for value in seen.values()][:2] == [Health.OK, Health.OK]
    assert CLIPPED.judge(seen[50.0]) is not Health.OK and CLIPPED.judge(0.6) is Health.COLLAPSED
    assert seen[0.0] <= seen[1.0] == 0.0 and seen[50.0] > 0.15
    assert not Previews(tmp_path, points(), (), 0, 1.0)(Saturated(points(), 50.0), 7).values
    assert clipped(torch.tensor([-2.0, -1.04, 0.0, 1.06])) == 0.5


def test_a_run_says_how_much_is_cut_off(tmp_path):
    made = distil("kd", conditional(), output_dir=tmp_path / "run", protocol="none", sample_every=8, **SMALL)
    lines = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["clipped_to_teacher"] for line in lines if "preview" in line}
    assert list(found) == [0, 1, 2] and all(-1 <= value <= 1 for value in found.values())
    assert made.health["clipped_to_teacher"] == str(CLIPPED.judge(found[2]))


@pytest.mark.parametrize(("method", "setting"), [("sid", "fake_guidance"), ("reflow", "flow_guidance")])
@pytest.mark.parametrize("teacher", [points, lambda: without_null(conditional())])
def test_guidance_of_a_trained_network_is_refused_where_its_teacher_knows_no_condition(
    method, setting, teacher, tmp_path
):
    """Before: it had no effect, or failed in the first step."""
    option = setting.replace("_", "-")
    with pytest.raises(UsageError, match=rf"--{option} 2: the teacher conformance-.* has no unconditional prediction"):
        distil(method, teacher(), output_dir=tmp_path / "run", protocol="none", **{setting: 2.0}, **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_guidance_that_is_not_trained_is_not_refused(tmp_path):
    teacher = without_null(conditional())
    run = distil("reflow", teacher, output_dir=tmp_path / "run", protocol="none", flow_guidance=2.0, rounds=0, **SMALL)
    assert run.student.nfe == 1


def without_null(teacher):
    teacher.conditioner = ClassLabels(classes=teacher.conditioner.classes, null_label=False)
    return teacher
