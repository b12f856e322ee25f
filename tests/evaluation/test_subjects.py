"""What a name or an object stands for, with which protocol it is measured, and where its record goes."""

import shutil

import numpy as np
import pytest
from PIL import Image

import distillkit
from distillkit import Student, StudentGenerator, UsageError, load_teacher
from distillkit.embedded.digits.data import load_digits
from distillkit.embedded.digits.protocol import digits_features, digits_reference
from distillkit.evaluation.presets import default_protocol, protocol_for
from distillkit.evaluation.record import read_record
from distillkit.evaluation.reference import Reference, save_reference
from distillkit.jobs.context import job_context
from distillkit.jobs.evaluate import evaluate_subject
from distillkit.jobs.options import EvaluationOptions, solver_steps
from distillkit.students.description import describe_student
from distillkit.testing.teachers import conditional


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(subject, **options):
        with job_context(quiet=True) as context:
            return evaluate_subject(subject, EvaluationOptions(**options), context)

    return run


@pytest.fixture
def teacher_folder(tiny_teacher_folder, tmp_path):
    return shutil.copytree(tiny_teacher_folder, tmp_path / "tiny")


@pytest.fixture
def student_folder(tiny_teacher, tmp_path):
    generator = StudentGenerator.from_teacher(tiny_teacher)
    described = describe_student(
        generator, tiny_teacher, method="kd", method_package="here", remarks=("trained with LPIPS",), nfe=1.0
    )
    student = Student(generator, tiny_teacher.conditioner, tiny_teacher.codec, described)
    return student.save(tmp_path / "run" / "student").parent


def test_a_student_is_measured_into_its_run(evaluate, student_folder):
    [made] = evaluate(str(student_folder), samples=40)
    record = read_record(made.path)
    assert made.path.parent == student_folder / "records"
    assert record.subject.kind == "student" and record.subject.name == "run" and record.nfe == 1
    assert record.subject.remarks == ("trained with LPIPS",) and record.subject.sampler["kind"] == "distillkit:OneStep"
    assert record.protocol.name == "digits8" and record.label.endswith("-40")


def test_no_record_overwrites_that_of_another_protocol(evaluate, student_folder):
    paths = {
        evaluate(str(student_folder), **options)[0].path
        for options in ({"samples": 40}, {"samples": 30}, {"samples": 40, "first_seed": 7}, {"samples": 40})
    }
    assert len(paths) == 3 and len(list((student_folder / "records").iterdir())) == 3
    assert sum("-40-" in path.name for path in paths) == 2 and sum("seed7" in path.name for path in paths) == 1


def test_own_references_are_named_by_what_they_are(evaluate, student_folder, tmp_path):
    ours = digits_reference()
    for name, shift in (("first", 0.0), ("second", 1.0)):
        save_reference(tmp_path / f"{name}.safetensors", Reference(name, 50, ours.mean + shift, ours.covariance))
    made = [
        evaluate(str(student_folder), samples=40, reference=tmp_path / f"{name}.safetensors")[0]
        for name in ("first", "second")
    ]
    assert [one.record.protocol.name for one in made] == [f"{name}-digits8cnn-fc64" for name in ("first", "second")]
    assert made[0].path != made[1].path and made[0].record.protocol_id != made[1].record.protocol_id
    hostile = Reference("../../elsewhere/x", 50, ours.mean, ours.covariance)
    [one] = evaluate(str(student_folder), samples=40, reference=hostile, extractor=digits_features())
    assert one.path.parent == student_folder / "records"


def test_a_teacher_is_measured_into_its_folder_once_for_each_nfe(evaluate, teacher_folder):
    made = evaluate(teacher_folder, samples=30, nfe=(1, 5))
    assert [one.record.nfe for one in made] == [1, 5]
    assert {one.path.parent for one in made} == {teacher_folder / "records"} and made[0].path != made[1].path
    [guided] = evaluate(teacher_folder, samples=30, guidance=2.0)
    assert guided.record.nfe == 14 and "guidance2" in guided.path.name
    at_hand = load_teacher(str(teacher_folder))
    [object_made] = evaluate(at_hand, samples=30, nfe=(5,), output="mine.json")
    assert str(object_made.path) == "mine.json"
    assert object_made.record.figures == made[1].record.figures


def test_points_have_their_own_protocol(evaluate):
    [made] = evaluate("mixture", nfe=(3,))
    assert made.record.label.startswith("KL[") and made.record.figure.standard_error is None
    with pytest.raises(UsageError, match="--samples"):
        evaluate("mixture", samples=100)
    with pytest.raises(UsageError, match="points"):
        evaluate("mixture", protocol="digits8", samples=100)
    with pytest.raises(UsageError, match="points"):
        evaluate("mixture", save_images="points")


def test_images_win_over_a_teacher_of_that_name(evaluate, tmp_path):
    (tmp_path / "digits").mkdir()
    for index, image in enumerate(load_digits()[0][:40, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "digits" / f"{index:02d}.png")
    [made] = evaluate("digits", protocol="digits8")
    record = made.record
    assert record.subject.kind == "images" and record.nfe is None and record.label.endswith("-40")
    assert record.protocol.samples.rng == "given images" and record.protocol.samples.labels == "none"
    with pytest.raises(UsageError, match="--nfe"):
        evaluate("digits", protocol="digits8", nfe=(1,))
    with pytest.raises(UsageError, match="no protocol is known"):
        evaluate("digits")


def test_images_are_saved_as_they_were_measured(evaluate, student_folder, tmp_path):
    evaluate(str(student_folder), samples=30, batch=8, save_images="pngs")
    evaluate(str(student_folder), samples=30, batch=8, save_images="all.npz")
    saved = np.load(tmp_path / "all.npz")["arr_0"]
    assert saved.shape == (30, 8, 8, 1) and saved.dtype == np.uint8
    for index in (0, 17, 29):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pngs" / f"{index:06d}.png")), saved[index, :, :, 0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"precision": "fp8"}, "fp8"),
        ({"samples": 1}, "--samples"),
        ({"first_seed": -1}, "--first-seed"),
        ({"batch": 0}, "--batch"),
        ({"guidance": -1.0}, "--guidance"),
        ({"nfe": (0,)}, "--nfe"),
    ],
)
def test_values_that_cannot_be_are_refused(options, named):
    with pytest.raises(UsageError, match=named):
        EvaluationOptions(**options)


def test_what_does_not_fit_the_subject_is_refused(evaluate, student_folder, teacher_folder):
    with pytest.raises(UsageError, match="--guidance"):
        evaluate(str(student_folder), guidance=2.0)
    for subject in (str(student_folder), load_teacher(str(teacher_folder))):
        with pytest.raises(UsageError, match="--data-grey"):
            evaluate(subject, data_grey=True)
    with pytest.raises(UsageError, match="7 evaluations"):
        evaluate(str(student_folder), nfe=(7,))
    with pytest.raises(UsageError, match="--nfe 2"):
        evaluate(teacher_folder, nfe=(2,))
    with pytest.raises(UsageError, match="absent"):
        evaluate("absent")
    (student_folder / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="best"):
        evaluate(f"{student_folder}@best")


def test_steps_of_a_solver_for_a_number_of_evaluations():
    assert solver_steps(35, "heun") == 18 and solver_steps(4, "euler") == solver_steps(4, "ddim") == 4
    with pytest.raises(UsageError, match="--guidance"):
        solver_steps(5, "heun", 2.0)


def test_a_teacher_of_digits_size_gets_their_protocol_and_others_none(tiny_teacher):
    assert default_protocol(tiny_teacher) == "digits8"
    assert protocol_for("mine", (1, 8, 8), 9) is None and protocol_for("mine", (3, 8, 8), 10) is None
    assert protocol_for("edm-cifar10-cond", (3, 32, 32), 10) == "edm-cifar10"
    assert protocol_for("mixture", (2,), 0) == "mixture" and protocol_for("moons", (2,), 0) is None


def test_a_run_is_measured_on_as_many_samples_as_before(tmp_path, capsys):
    """Before: on the protocol's own number, which is another protocol than its record's."""
    made = distillkit.distil(
        "kd", conditional(), output_dir=tmp_path / "run", duration=16, batch=8, pairs_count=8, pairs_steps=2,
        device="cpu", quiet=True, protocol="digits8", evaluation_samples=40,
    )  # fmt: skip
    capsys.readouterr()
    again = distillkit.evaluate(made.folder, output=tmp_path / "own.json", device="cpu")
    assert again.protocol_id == made.record.protocol_id and again.protocol.samples.count == 40
    assert "samples: 40, as the run was measured" in "".join(capsys.readouterr())
    asked = distillkit.evaluate(made.folder, samples=50, output=tmp_path / "more.json", device="cpu", quiet=True)
    named = distillkit.evaluate(
        made.folder, protocol="digits8", output=tmp_path / "named.json", device="cpu", quiet=True
    )
    assert (asked.protocol.samples.count, named.protocol.samples.count) == (50, 5000)


def test_several_records_are_not_written_into_one_file(evaluate, tmp_path):
    with pytest.raises(UsageError, match="--output names one record and several are made"):
        evaluate("digits", nfe=(1, 3), output=tmp_path / "one.json")
