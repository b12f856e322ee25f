"""A student that knows how to be sampled."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillkit import (
    ClassLabels,
    Condition,
    Denoiser,
    DistillkitError,
    OneStep,
    Points,
    StudentGenerator,
    UsageError,
    changed_network,
    load_student,
)
from distillkit.contracts.codec import Pixels
from distillkit.diffusion import EulerSampler, RenoisingSampler
from distillkit.files import sha256
from distillkit.models.build import build_denoiser
from distillkit.students.artifact import save_student
from distillkit.students.load import initial_weights
from tests.students.parts import PACKAGE, Halves, TinyAutoencoder, Twice


def test_round_trip_from_its_own_or_the_runs_folder(tmp_path, teacher_of, described):
    teacher = teacher_of()
    generator = StudentGenerator.from_teacher(teacher)
    save_student(tmp_path / "run" / "student", generator, described(generator, teacher, images_seen=7))
    for path in (tmp_path / "run" / "student", tmp_path / "run", str(tmp_path / "run")):
        student = load_student(path)
        assert student.folder == tmp_path / "run" / "student" and student.description.images_seen == 7
        for name, value in generator.denoiser.state_dict().items():
            assert torch.equal(student.generator.denoiser.state_dict()[name], value)


@pytest.mark.parametrize("family", ["edm", "vp", "flow"])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4), (2, 3, 4, 4)], ids=["points", "images", "video"])
def test_every_family_and_rank_comes_back_the_same(teacher_of, student_of, family, shape):
    codec = {1: Points(), 3: Pixels(), 4: Pixels(video=True)}[len(shape)]
    teacher = teacher_of(family, shape, codec=codec)
    student = student_of(teacher, RenoisingSampler(levels=teacher.schedule.levels(2)))
    noise, more, labels = (*torch.randn(2, 5, *shape).unbind(), torch.arange(5) % 3)
    # Frozen as the loaded one: torch multiplies otherwise where weights need gradients.
    same = StudentGenerator.from_teacher(teacher, student.generator.sampler).requires_grad_(False)
    expected = same(noise, Condition(labels=labels), lambda k: more)
    found = student.generator(noise, Condition(labels=labels), lambda k: more)
    assert torch.equal(found, expected) and student.codec == codec
    decoded = student(3, seed=1)
    assert decoded.shape == (3, *shape) and decoded.dtype == (torch.float32 if len(shape) == 1 else torch.uint8)
    assert student(0).shape == (0, *shape) and student(0).dtype == decoded.dtype


def test_sample_i_depends_on_seed_and_i_alone(teacher_of, student_of):
    teacher = teacher_of("vp")
    student = student_of(teacher, RenoisingSampler(levels=teacher.schedule.levels(3)))
    images = student(20, seed=3)
    assert torch.equal(student(7, seed=3), images[:7])
    assert torch.equal(student(20, seed=3, batch=6), images)
    assert not torch.equal(student(20, seed=4), images)


def test_a_latent_students_samples_are_decoded_after_loading(teacher_of, student_of):
    teacher = teacher_of("flow", (4, 4, 4), codec=TinyAutoencoder(gain=30.0), conditioner=Halves(classes=4), classes=4)
    student = student_of(teacher)
    assert student.codec == TinyAutoencoder(gain=30.0) and student.conditioner == Halves(classes=4)
    images = student(4, seed=0)
    assert images.shape == (4, 3, 8, 8) and student(0).shape == (0, 3, 8, 8)
    assert torch.equal(images, student(4, seed=0, keys=[2, 3, 2, 3]))
    assert not torch.equal(images, student(4, seed=0, keys=[0, 1, 0, 1]))


def test_conditions_are_chosen_by_key_or_by_what_people_call_them(teacher_of, student_of):
    names = ("cat", "dog", "owl")
    student = student_of(teacher_of(conditioner=ClassLabels(classes=3, class_names=names)))
    chosen = student(4, keys=torch.tensor([2, 0, 2, 0]))
    assert torch.equal(student(4, classes=["owl", "0"]), chosen)
    assert torch.equal(student(4, classes=[2, "cat"]), chosen)
    assert torch.equal(student(4), student(4, keys=[0, 1, 2, 0]))
    for keys, named in (([3, 0, 0, 0], "3"), ([-1, 0, 0, 0], "-1"), ([0, 1], "(2,)")):
        with pytest.raises(UsageError) as refused:
            student(4, keys=keys)
        assert named in str(refused.value)
    for wrong in ({"classes": ["bat"]}, {"classes": []}, {"classes": ["cat"], "keys": [0] * 4}):
        with pytest.raises(UsageError):
            student(4, **wrong)


def test_an_unconditional_student_takes_no_conditions(teacher_of, student_of):
    student = student_of(teacher_of(classes=0))
    assert student(2).shape == (2, 1, 4, 4)
    for wrong in ({"keys": [0, 0]}, {"classes": ["0"]}):
        with pytest.raises(UsageError, match="no conditions"):
            student(2, **wrong)


@pytest.mark.parametrize("family", ["edm", "vp", "flow"])
def test_evaluations_are_counted(teacher_of, student_of, family):
    teacher = teacher_of(family)
    assert student_of(teacher).nfe == 1
    assert student_of(teacher, EulerSampler.on_grid(4, teacher.schedule)).nfe == 4
    assert student_of(teacher, RenoisingSampler(levels=teacher.schedule.levels(3))).description.nfe == 3


def test_describing_leaves_the_students_mode_alone(teacher_of, described):
    teacher = teacher_of()
    generator = StudentGenerator(teacher.copy_denoiser(), OneStep(), teacher.spec.shape)
    generator.denoiser.model.read.train()
    before = [module.training for module in generator.modules()]
    described(generator, teacher)
    assert [module.training for module in generator.modules()] == before and len(set(before)) == 2


def test_another_number_of_evaluations_is_counted_anew_and_saved(teacher_of, student_of, tmp_path):
    student = student_of(teacher_of(), Twice())
    more = student.with_nfe(5)
    assert (student.nfe, more.nfe) == (2, 5)
    assert load_student(more.save(tmp_path / "more")).nfe == 5
    assert torch.equal(load_student(tmp_path / "more")(3), more(3)) and not torch.equal(student(3), more(3))
    with pytest.raises(UsageError, match="OneStep"):
        student_of(teacher_of(), OneStep()).with_nfe(2)


def test_a_plugins_own_parts_load_where_it_is_installed_and_are_named_where_it_is_not(
    teacher_of, student_of, tiny_parts
):
    teacher = teacher_of(codec=TinyAutoencoder(), conditioner=Halves(classes=4), shape=(4, 2, 2), classes=4)
    student = student_of(teacher, Twice(weight=0.25))
    assert student.generator.sampler == Twice(weight=0.25)
    assert {part["kind"] for part in (student.description.network, student.description.sampler,
            student.description.conditioner, student.description.codec)} == {
        f"{PACKAGE}:TinyNet", f"{PACKAGE}:Twice", f"{PACKAGE}:Halves", f"{PACKAGE}:TinyAutoencoder"
    }  # fmt: skip
    tiny_parts()
    with pytest.raises(UsageError) as refused:
        load_student(student.folder)
    assert refused.value.exit_code == 2
    assert f"pip install {PACKAGE}" in str(refused.value) and str(student.folder) in str(refused.value)


def test_a_smaller_student_is_built_from_its_own_network(teacher_of, described, tmp_path):
    teacher = teacher_of()
    small = build_denoiser(changed_network(teacher.denoiser.description, {"width": 2}))
    generator = StudentGenerator(small, OneStep(), teacher.spec.shape)
    save_student(tmp_path / "small", generator, described(generator, teacher))
    student = load_student(tmp_path / "small")
    assert student.generator.denoiser.model.read.out_features == 2
    assert student.description.network != student.description.teacher.network == teacher.denoiser.description


class Unoffered(OneStep):
    """A sampler of nobody."""


class Alone(Denoiser):
    """A network of nobody."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.schedule = inner, inner.schedule

    def forward(self, x, t, condition):
        return self.inner(x, t, condition)


class Shy(Halves):
    """A conditioner of nobody."""


@pytest.mark.parametrize("part", ["networks", "samplers", "conditioners", "codecs", "changed network"])
def test_what_could_never_be_loaded_is_refused_at_once(teacher_of, described, part):
    teacher = teacher_of(classes=4)
    generator = StudentGenerator.from_teacher(teacher)
    if part == "networks":
        generator.denoiser = Alone(generator.denoiser)
    elif part == "samplers":
        generator.sampler = Unoffered()
    elif part == "conditioners":
        teacher.conditioner = Shy(classes=4)
    elif part == "codecs":
        teacher.codec = type("Odd", (TinyAutoencoder,), {})()
    else:
        generator.denoiser.model.read = torch.nn.Linear(1, 9)
    with pytest.raises(UsageError) as refused:
        described(generator, teacher)
    named = "model.read" if part == "changed network" else f"distillkit_{part}"
    assert named in str(refused.value) and "never be loaded" in str(refused.value)


@pytest.mark.parametrize("damage", ["flip", "json", "field", "kind", "weights", "format", "nan", "shape", "negative"])
def test_damaged_students_are_refused_with_one_message(teacher_of, student_of, damage):
    folder = student_of(teacher_of()).folder
    path, weights = folder / "student.json", folder / "model.safetensors"
    body, state = json.loads(path.read_text()), load_file(weights)
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "json":
        path.write_text(path.read_text()[:40])
    elif damage == "weights":
        weights.unlink()
    elif damage in {"nan", "shape"}:
        state["model.read.bias"] = torch.full((4,), math.nan) if damage == "nan" else torch.zeros(5)
        save_file(state, weights)
        path.write_text(json.dumps({**body, "weights_sha256": sha256(weights)}))
    else:
        changes = {"field": {"mystery": 1}, "format": {"format": 1}, "negative": {"nfe": -1},
                   "kind": {"sampler": {"kind": "distillkit:OneStep", "steps": 2}}}  # fmt: skip
        path.write_text(json.dumps({**body, **changes[damage]}))
    with pytest.raises(DistillkitError) as refused:
        load_student(folder)
    assert refused.value.exit_code == 1 and str(folder) in str(refused.value)
    named = {"nan": "model.read.bias", "shape": "model.read.bias", "field": "mystery", "format": "format 1",
             "weights": "README.md", "kind": "steps", "negative": "nfe"}  # fmt: skip
    assert named.get(damage, "") in str(refused.value)


def test_saving_overwrites_nothing(teacher_of, student_of, tmp_path):
    student = student_of(teacher_of())
    with pytest.raises(UsageError, match=str(student.folder)):
        student.save(student.folder)
    assert torch.equal(load_student(student.save(tmp_path / "copy"))(2), student(2))


def test_weights_to_start_from_come_from_a_student_or_a_file(teacher_of, student_of, tmp_path):
    student = student_of(teacher_of())
    expected = student.generator.denoiser.state_dict()
    save_file({f"denoiser.{name}": value for name, value in expected.items()}, tmp_path / "average.safetensors")
    like = teacher_of().denoiser
    for path in (student.folder, student.folder / "model.safetensors", tmp_path / "average.safetensors"):
        state, origin, _ = initial_weights(path, like)
        assert state.keys() == expected.keys() and str(path) in origin
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    (tmp_path / "weights.pt").write_bytes(b"pickle")
    (tmp_path / "torn.safetensors").write_bytes(b"no")
    save_file({**expected, "model.read.bias": torch.full((4,), math.nan)}, tmp_path / "nan.safetensors")
    wrong = {"weights.pt": UsageError, "none": UsageError, "torn.safetensors": DistillkitError,
             "nan.safetensors": DistillkitError}  # fmt: skip
    for path, kind in wrong.items():
        with pytest.raises(DistillkitError, match=path) as refused:
            initial_weights(tmp_path / path, like)
        assert isinstance(refused.value, UsageError) is (kind is UsageError)
    with pytest.raises(UsageError, match=r"model\.read\.weight"):
        initial_weights(student.folder, teacher_of(shape=(2, 4, 4)).denoiser)
