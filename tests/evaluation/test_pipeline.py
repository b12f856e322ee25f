"""The one pipeline: figures that depend on nothing but subject and protocol, and resume after an interruption."""

import copy
import dataclasses
import os
import time

import pytest
import torch
from filelock import FileLock

from distillkit import DistillkitError, StudentGenerator, Unconditional, UsageError
from distillkit.contracts.codec import Pixels
from distillkit.contracts.text import prompts_sha256
from distillkit.diffusion.samplers import RenoisingSampler
from distillkit.errors import Interrupted
from distillkit.evaluation import generator as generator_module
from distillkit.evaluation.generator import student_generator, teacher_generator
from distillkit.evaluation.measure import FrechetMeasure
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.presets import load_measure
from distillkit.evaluation.record import Selection, Subject
from distillkit.evaluation.teacher_record import samples_per_second
from distillkit.jobs import timing
from distillkit.jobs.timing import timed
from distillkit.progress import Quiet

CPU = torch.device("cpu")
SUBJECT = Subject(kind="student", name="student")


@pytest.fixture(scope="module")
def digits8():
    return load_measure("digits8", count=120)


@pytest.fixture
def generator(tiny_teacher):
    student = StudentGenerator.from_teacher(tiny_teacher).eval()
    return student_generator(student, tiny_teacher.conditioner, tiny_teacher.codec, SUBJECT)


def test_a_figure_does_not_depend_on_the_batch(generator, digits8):
    whole, parts = (measure(generator, digits8, device=CPU, batch=batch) for batch in (120, 7))
    assert whole.figure.value == pytest.approx(parts.figure.value, rel=1e-4) and whole.nfe == parts.nfe == 1.0
    assert whole.figure.standard_error > 0 and len(whole.figure.leave_one_out) == 10
    assert whole.protocol_id == digits8.protocol.id and whole.selection == Selection()


def test_other_samples_are_another_protocol(generator, digits8):
    record = measure(generator, digits8, device=CPU, count=60, first_seed=1000)
    assert record.label.endswith("-60") and record.protocol.samples.first_seed == 1000
    assert record.protocol_id != digits8.protocol.id
    assert record.protocol_id == load_measure("digits8", count=60, first_seed=1000).protocol.id


def test_an_interrupted_measurement_goes_on_to_the_same_record(generator, digits8, tmp_path):
    calls = []

    def stop():
        calls.append(1)
        return 15 if len(calls) == 2 else 0

    arguments = {"device": CPU, "batch": 20, "folder": tmp_path / "work"}
    with pytest.raises(Interrupted) as stopped:
        measure(generator, digits8, **arguments, stop=stop)
    assert stopped.value.exit_code == 128 + 15
    made, generate = [], generator.generate
    counting = dataclasses.replace(generator, generate=lambda n, c, seeds: made.extend(seeds) or generate(n, c, seeds))
    record = measure(counting, digits8, **arguments)
    assert made == list(range(40, 120)), "the first 40 were kept"
    assert record.nfe == 1.0
    whole = measure(generator, digits8, device=CPU, batch=20)
    assert record.figures == whole.figures and record.samples_sha256 == whole.samples_sha256
    assert not [path for path in (tmp_path / "work").rglob("*") if path.suffix != ".lock"], "nothing is left behind"


def test_what_was_measured_before_is_verified(generator, digits8, tmp_path):
    arguments = {"device": CPU, "batch": 20, "folder": tmp_path / "work"}
    whole, calls = measure(generator, digits8, device=CPU, batch=20), []
    with pytest.raises(Interrupted):
        measure(generator, digits8, **arguments, stop=lambda: len(calls.append(1) or calls) // 3)
    (features,) = (tmp_path / "work").rglob("features.f32")
    data = features.read_bytes()
    features.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    record = measure(generator, digits8, **arguments)
    assert record.figures == whole.figures and record.nfe == 1.0


def test_temporary_files_of_killed_processes_are_removed(generator, digits8, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for process in (2**22 - 3, os.getppid()):
        (tmp_path / f"distillkit-features-{process}-abc").mkdir()
    measure(generator, digits8.with_samples(count=20), device=CPU)
    assert [path.name for path in tmp_path.iterdir()] == [f"distillkit-features-{os.getppid()}-abc"]


def test_a_cache_that_cannot_be_written_is_done_without(generator, digits8, tmp_path, caplog):
    (tmp_path / "file").touch()
    record = measure(generator, digits8.with_samples(count=20), device=CPU, folder=tmp_path / "file" / "work")
    assert record.figure.value > 0 and str(tmp_path / "file") in caplog.text


def test_another_process_that_measures_the_same_is_waited_for(generator, digits8, tmp_path):
    few, said = digits8.with_samples(count=20), []
    with pytest.raises(Interrupted):
        measure(generator, few, device=CPU, batch=10, folder=tmp_path, stop=lambda: 15)
    (held,) = tmp_path.glob("*.lock")
    lock = FileLock(held)
    lock.acquire()

    class Reporter(Quiet):
        def say(self, message):
            said.append(message)

    record = measure(
        generator, few, device=CPU, folder=tmp_path, reporter=Reporter(), stop=lambda: lock.release() or 0
    )  # fmt: skip
    assert record.figure.value > 0 and "waiting for it" in said[0]


def test_saved_samples_are_all_made(generator, digits8, tmp_path):
    saved = []
    measure(generator, digits8, device=CPU, batch=50, save=lambda images, index: saved.append((index, len(images))))
    assert saved == [(0, 50), (50, 50), (100, 20)]


def test_evaluations_are_counted_for_guidance_and_several_steps(tiny_teacher, digits8):
    few = digits8.with_samples(count=20)
    assert measure(teacher_generator(tiny_teacher, 3), few, device=CPU).nfe == 5
    assert measure(teacher_generator(tiny_teacher, 3, guidance=2.0), few, device=CPU).nfe == 10
    assert measure(teacher_generator(tiny_teacher, 3, solver="euler"), few, device=CPU).nfe == 3
    sampler = RenoisingSampler(levels=tiny_teacher.schedule.levels(4))
    student = StudentGenerator.from_teacher(tiny_teacher, sampler).eval()
    made = student_generator(student, tiny_teacher.conditioner, tiny_teacher.codec, SUBJECT)
    record = measure(made, few, device=CPU)
    assert record.nfe == 4 and record.subject.sampler["kind"] == "distillkit:RenoisingSampler"


SET_UP = 2.0


class SlowFirst:
    """Passes take long when the network has not seen their size before, as on a GPU."""

    def __init__(self):
        self.seen = set()

    def __call__(self, module, args):
        if len(args[0]) not in self.seen:
            time.sleep(SET_UP)
        self.seen.add(len(args[0]))


def test_what_a_gpu_does_once_for_a_size_is_not_taken_for_speed(tiny_teacher, digits8, monkeypatch, generator):
    """Before: on an H100 the same student was given as 4,173 and 59,169 samples a second in one table."""
    few = digits8.with_samples(count=20)
    monkeypatch.setattr(generator_module, "chooses_kernels", lambda device: True)
    for of, nfe in ((generator, 1), (teacher_generator(tiny_teacher, 2, guidance=2.0), 6)):
        with of.denoiser.register_forward_pre_hook(SlowFirst()):
            record = measure(of, few, device=CPU)
        assert record.images_per_second > 20 / SET_UP and record.nfe == nfe
        with of.denoiser.register_forward_pre_hook(SlowFirst()):
            assert samples_per_second(of, few, CPU) > 20 / SET_UP
        if of is generator:
            with of.denoiser.register_forward_pre_hook(SlowFirst()):
                found, speed = timed(of, CPU)
            assert found == nfe and speed > timing.MOST / SET_UP


def test_graphs_of_a_training_are_not_timed(tiny_teacher, digits8):
    """Before: a teacher made one sample a second under --compile, as a graph was made for the size of its samples, and
    its student was 7,727 times as fast."""

    def graph(*inputs, **others):
        raise AssertionError("a graph is made")

    few, teacher = digits8.with_samples(count=20), copy.deepcopy(tiny_teacher)
    made, [network] = teacher_generator(teacher, 2), list(teacher.denoiser.children())[:1]
    network._compiled_call_impl = graph
    assert measure(made, few, device=CPU).nfe == 3
    assert samples_per_second(made, few, CPU) > 0 and timed(made, CPU)[0] == 3
    # The training goes on with it.
    assert network._compiled_call_impl is graph


class Negative(Pixels):
    """A codec of its own: white on black."""

    def decode(self, samples):
        return 255 - super().decode(samples)


def test_samples_are_decoded_by_the_codec(tiny_teacher, generator, digits8):
    student, plain, negative = StudentGenerator.from_teacher(tiny_teacher).eval(), [], []
    other = student_generator(student, tiny_teacher.conditioner, Negative(), SUBJECT)
    first = measure(generator, digits8, device=CPU, save=lambda images, index: plain.append(images))
    second = measure(other, digits8, device=CPU, save=lambda images, index: negative.append(images))
    assert torch.equal(torch.cat(negative), 255 - torch.cat(plain))
    assert first.figure.value != second.figure.value


def test_unconditional_generators_have_no_labels(generator, digits8):
    record = measure(dataclasses.replace(generator, conditioner=Unconditional(), generate=noise_images), digits8,
                     device=CPU)  # fmt: skip
    assert record.protocol.samples.labels == "none" and record.protocol_id != digits8.protocol.id


def noise_images(noise, condition, seeds):
    assert not condition
    return Pixels().decode(noise)


def test_prompts_are_read_by_the_conditioner_and_go_round(generator, digits8):
    prompts, seen = ("7", "3", "5"), []
    samples = digits8.protocol.samples.model_copy(update={"prompts_sha256": prompts_sha256(prompts)})
    protocol = digits8.protocol.model_copy(update={"samples": samples})
    prompted = FrechetMeasure(protocol, digits8.extractor, digits8.reference, prompts=prompts)

    def generate(noise, condition, seeds):
        seen.extend(condition["labels"].tolist())
        return generator.generate(noise, condition, seeds)

    record = measure(dataclasses.replace(generator, generate=generate), prompted, device=CPU, count=20, batch=8)
    assert seen == ([7, 3, 5] * 7)[:20] and record.protocol.samples.prompts_sha256 == prompts_sha256(prompts)


def test_what_cannot_be_measured_is_refused(generator, digits8, tmp_path):
    video = dataclasses.replace(generator, codec=Pixels(video=True))
    with pytest.raises(UsageError, match="video"):
        measure(video, digits8, device=CPU)
    with pytest.raises(UsageError, match="fid"):
        measure(generator, digits8, device=CPU, metrics=("fid",))
    with pytest.raises(UsageError, match="3 samples"):
        measure(generator, digits8, device=CPU, count=3, metrics=("fd", "prdc"))
    broken = dataclasses.replace(generator, generate=lambda noise, condition, seeds: noise)
    with pytest.raises(DistillkitError, match=r"float32.*codec"):
        measure(broken, digits8, device=CPU)
    with torch.no_grad():
        next(generator.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(DistillkitError, match="NaN"):
        measure(generator, digits8, device=CPU)


def test_half_precision_is_of_the_generator_alone(generator, digits8):
    half = dataclasses.replace(generator, subject=SUBJECT.model_copy(update={"precision": "bf16"}))
    types = []
    handle = generator.denoiser.register_forward_hook(lambda m, a, out: types.append(torch.is_autocast_enabled("cpu")))
    try:
        record = measure(half, digits8, device=CPU)
        measure(generator, digits8, device=CPU)
    finally:
        handle.remove()
    assert types == [True, False] and record.subject.precision == "bf16"
