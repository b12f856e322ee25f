"""Folders of teachers and students from anybody: bounded before work begins, named by file and field, never a path."""

import copy
import json
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, OneStep, StudentGenerator, load_student, load_teacher
from distillkit.files import sha256
from distillkit.jobs.context import job_context
from distillkit.jobs.evaluate import record_name
from distillkit.jobs.options import EvaluationOptions
from distillkit.jobs.planned import _folder
from distillkit.jobs.subjects import found_subjects
from distillkit.models.build import build_denoiser, described_weights
from distillkit.models.store.folder import read_spec, write_teacher
from distillkit.students.artifact import save_student
from distillkit.students.description import describe_student
from tests.conftest import TINY_NETWORK
from tests.hostile.records import record_of

NETWORK = ("network", "arguments", "network")
SCHEDULE = ("network", "arguments", "schedule")


def changed(values, place, value):
    """A copy with another value at a place."""
    made = copy.deepcopy(values)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made


@pytest.fixture(scope="module")
def teacher_json(tiny_teacher_folder):
    return json.loads((tiny_teacher_folder / "teacher.json").read_text())


@pytest.fixture(scope="module")
def spoilt(tiny_teacher_folder, tmp_path_factory):
    """The tiny teacher with another teacher.json."""
    folder = tmp_path_factory.mktemp("spoilt")
    (folder / "model.safetensors").write_bytes((tiny_teacher_folder / "model.safetensors").read_bytes())

    def write(values):
        text = values if isinstance(values, bytes) else json.dumps(values).encode()
        (folder / "teacher.json").write_bytes(text)
        return folder

    return write


def refusal(folder):
    began = time.process_time()
    with pytest.raises(DistillkitError) as refused:
        load_teacher(str(folder))
    assert time.process_time() - began < 20
    message = str(refused.value)
    assert "teacher.json" in message and len(message) < 900 and "\x1b" not in message
    return message


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ((*NETWORK, "num_blocks"), 10**9, "num_blocks"),
        ((*NETWORK, "num_blocks"), -1, "num_blocks"),
        ((*NETWORK, "num_blocks"), "many", "num_blocks"),
        ((*NETWORK, "model_channels"), 10**15, "model_channels"),
        ((*NETWORK, "channel_mult"), [10**9], "channel_mult"),
        ((*NETWORK, "channel_mult"), [1] * 1000, "channel_mult"),
        ((*NETWORK, "label_dim"), 10**12, "label_dim"),
        ((*NETWORK, "img_resolution"), 10**6, "img_resolution"),
        ((*NETWORK, "dropout"), -1, "dropout"),
        ((*NETWORK, "in_channels"), 3, "in"),
        ((*NETWORK, "unheard_of"), 3, "unheard_of"),
        ((*SCHEDULE, "sigma_min"), 100, "sigma_min"),
        ((*SCHEDULE, "sigma_min"), -1, "sigma_min"),
        ((*SCHEDULE, "sigma_max"), "x", "sigma_max"),
        ((*SCHEDULE, "rho"), 0, "rho"),
        ((*SCHEDULE, "rho"), 1e-300, "rho"),
        (("network", "arguments", "sigma_data"), 0, "sigma_data"),
        (("network", "arguments"), [1], "arguments"),
        (("network", "kind"), "x; rm -rf ~:Net", "package:Name"),
        (("network", "kind"), 5, "kind"),
        (("network",), [], "network"),
        (("name",), "", "name"),
        (("name",), "a\nb", "name"),
        (("name",), "\x1b[31mred", "name"),
        (("name",), "a\x00", "name"),
        (("name",), "x" * 10_000, "name"),
        (("shape",), [1, 8, -8], "shape"),
        (("shape",), [3, 1, 1], "in_channels"),
        (("shape",), [1, 8], "1 x 8"),
        (("shape",), [1, 4, 4], "img_resolution"),
        (("shape",), [1, 10**9, 10**9], "shape"),
        (("solver_steps",), 10**6, "solver_steps"),
        (("solver_steps",), -1, "solver_steps"),
        (("conditioner", "classes"), 10**12, "classes"),
        (("conditioner", "classes"), 11, "11"),
        (("conditioner", "kind"), [], "conditioner"),
        (("codec",), {"kind": "distillkit:Pixels", "video": True}, "video"),
        (("codec",), {"kind": "distillkit:Points"}, "points"),
        (("format",), 99, "99"),
    ],
)
def test_descriptions_are_bounded_by_field(spoilt, teacher_json, place, value, named):
    assert named in refusal(spoilt(changed(teacher_json, place, value)))


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 10_000, b'{"name": NaN}', b"<html>"])
def test_damaged_descriptions_are_one_message(spoilt, text):
    refusal(spoilt(text))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.sampled_from([10**9, 2**63, -1, 0, 1e300]),
)  # fmt: skip


@given(place=st.data(), value=VALUES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_value_in_any_field_is_refused_in_one_message_or_makes_a_network(spoilt, teacher_json, place, value):
    def places(values, above=()):
        for key, inner in values.items():
            yield (*above, key)
            if isinstance(inner, dict):
                yield from places(inner, (*above, key))

    where = place.draw(st.sampled_from(list(places(teacher_json))))
    folder = spoilt(changed(teacher_json, where, value))
    try:
        spec = read_spec(folder / "teacher.json")
        described_weights(spec.network)
        load_teacher(str(folder))
    except DistillkitError as refused:
        assert len(str(refused)) < 2000


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 10**9}, {"layers": 10**9}, {"layers": -1}, {"in_channels": 0},
    ],
)  # fmt: skip
def test_sizes_of_the_network_of_points_are_bounded(arguments):
    with pytest.raises(DistillkitError, match=next(iter(arguments))):
        build_denoiser({"kind": "distillkit:PointMLP", "arguments": {"network": {"width": 4, **arguments}}})


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers_per_block": 10**9}, {"block_out_channels": [10**9]}, {"block_out_channels": [32] * 1000},
        {"num_class_embeds": 10**13}, {"sample_size": [8, 8, 8]}, {"down_block_types": ["DownBlock2D"] * 100},
    ],
)  # fmt: skip
def test_sizes_of_diffusers_networks_are_bounded(arguments):
    description = {"network": arguments, "schedule": {"kind": "vp"}, "prediction": "epsilon"}
    with pytest.raises(DistillkitError, match=next(iter(arguments))):
        build_denoiser({"kind": "distillkit:UNet2DModel", "arguments": description})


def test_networks_larger_than_any_machine_are_refused_before_memory_is_asked_for(monkeypatch):
    monkeypatch.setattr("distillkit.models.build.MOST_PARAMETERS", 100)
    with pytest.raises(DistillkitError, match="parameters"):
        described_weights(TINY_NETWORK)


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "..", "a/../../b", "~/x", "-rf", "[/red]", "a b;c"])
def test_a_teachers_name_chooses_no_place(name, tmp_path, spoilt, teacher_json):
    folder = spoilt(changed(teacher_json, ("name",), name))
    runs = _folder(None, None, "dmd", "digits").resolve().parent
    assert _folder(None, None, "dmd", str(folder)).resolve().parent == runs
    with job_context(device="cpu", quiet=True) as context:
        found = found_subjects(str(folder), EvaluationOptions(), context)[0]
    assert found.candidate.subject.name.startswith(name)
    made = record_name(record_of(name))
    assert (tmp_path / made).resolve().parent == tmp_path.resolve() and not made.startswith((".", "-"))


def test_weights_with_nan_are_refused_by_tensor(tiny_teacher, tiny_teacher_folder, tmp_path, teacher_json):
    state = {name: value.clone() for name, value in tiny_teacher.denoiser.state_dict().items()}
    name = sorted(state)[3]
    state[name].view(-1)[0] = float("nan")
    write_teacher(tmp_path / "t", state, tiny_teacher.spec)
    with pytest.raises(DistillkitError, match=name.replace(".", r"\.")):
        load_teacher(str(tmp_path / "t"))


@pytest.fixture
def student_folder(tiny_teacher, tmp_path):
    generator = StudentGenerator.from_teacher(tiny_teacher, OneStep())
    description = describe_student(generator, tiny_teacher, method="kd", method_package="kd 1")
    save_student(tmp_path / "student", generator.eval(), description)
    return tmp_path / "student"


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("format",), 99, "99"),
        (("format",), 1, "format 1"),
        (("sampler",), {"kind": "distillkit:OneStep", "t": -1.0}, "t"),
        (("sampler",), {"kind": "distillkit:OneStep", "t": 1e300}, "t"),
        (("sampler",), {"kind": "distillkit:RenoisingSampler", "levels": [1.0, 80.0]}, "levels"),
        (("sampler",), {"kind": "distillkit:RenoisingSampler", "levels": []}, "levels"),
        (("sampler",), {"kind": "distillkit:EulerSampler", "levels": [1.0] * 20_000}, "levels"),
        (("sampler", "kind"), None, "sampler"),
        (("shape",), [1, 4, 4], "img_resolution"),
        (("shape",), [0], "shape"),
        (("nfe",), -1, "nfe"),
        (("method",), "x\ny", "method"),
        (("teacher", "name"), "\x1b]0;x\x07", "name"),
        (("network", "arguments", "network", "num_blocks"), 10**8, "num_blocks"),
        (("network", "arguments", "network", "model_channels"), 2048, "fit"),
        (("guidance",), "much", "guidance"),
    ],
)
def test_students_are_bounded_by_field(student_folder, place, value, named):
    path = student_folder / "student.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    began = time.process_time()
    with pytest.raises(DistillkitError) as refused:
        load_student(student_folder)
    assert named in str(refused.value) and str(student_folder) in str(refused.value)
    assert time.process_time() - began < 20


def test_a_students_nan_is_named(student_folder):
    weights = student_folder / "model.safetensors"
    state = load_file(weights)
    name = sorted(state)[0]
    state[name] = torch.full_like(state[name], float("inf"))
    save_file(state, weights)
    path = student_folder / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": sha256(weights)}))
    with pytest.raises(DistillkitError, match=name.replace(".", r"\.")):
        load_student(student_folder)
