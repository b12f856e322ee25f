"""The teacher's kept records: found by everything that they depend on, and by nothing else."""

import copy
from contextlib import contextmanager

import pytest
import torch

from distillkit import Teacher, load_teacher
from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.evaluation import teacher_record as module
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.presets import load_measure
from distillkit.evaluation.teacher_record import record_key, teacher_record
from tests.data.cached import uses_are_noted

CPU = torch.device("cpu")


def changed(teacher, *, spec=None, schedule=None, weights=False, conditioner=None, codec=None):
    """A copy of a teacher that differs in one thing."""
    denoiser = copy.deepcopy(teacher.denoiser)
    if schedule:
        denoiser.schedule = EDMSchedule(**schedule)
    if weights:
        with torch.no_grad():
            next(denoiser.parameters()).view(-1)[0] += 1
    made = teacher.spec.model_copy(update=spec or {})
    return Teacher(denoiser, made, conditioner or teacher.conditioner, codec or teacher.codec)


def key(teacher, measure=None, **sampling):
    return record_key(teacher_generator(teacher, **sampling), measure or load_measure("digits8", count=40))


class Negative(Pixels):
    def decode(self, samples):
        return 255 - super().decode(samples)


def test_every_input_changes_the_key(tiny_teacher):
    keys = {
        "as it is": key(tiny_teacher),
        "sigma_max": key(changed(tiny_teacher, schedule={"sigma_max": 1.0})),
        "sigma_min": key(changed(tiny_teacher, schedule={"sigma_min": 0.01})),
        "rho": key(changed(tiny_teacher, schedule={"rho": 5.0})),
        "steps of the spec": key(changed(tiny_teacher, spec={"solver_steps": 5})),
        "solver of the spec": key(changed(tiny_teacher, spec={"solver": "euler"})),
        "hash of the weights": key(changed(tiny_teacher, spec={"weights_sha256": "0" * 64})),
        "no hash": key(changed(tiny_teacher, spec={"weights_sha256": ""})),
        "no hash, other weights": key(changed(tiny_teacher, spec={"weights_sha256": ""}, weights=True)),
        "network": key(_with_network(tiny_teacher)),
        "conditioner": key(changed(tiny_teacher, conditioner=ClassLabels(classes=9))),
        "codec": key(changed(tiny_teacher, codec=Negative())),
        "shape": key(changed(tiny_teacher, spec={"shape": (1, 16, 16)})),
        "steps": key(tiny_teacher, steps=7),
        "guidance": key(tiny_teacher, guidance=2.0),
        "precision": key(tiny_teacher, precision="bf16"),
        "samples": key(tiny_teacher, load_measure("digits8", count=41)),
        "seeds": key(tiny_teacher, load_measure("digits8", count=40, first_seed=1)),
    }
    same = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert not same


def _with_network(teacher):
    other = changed(teacher)
    arguments = dict(teacher.denoiser.description["arguments"], sigma_data=0.6)
    other.denoiser.description = {**teacher.denoiser.description, "arguments": arguments}
    return other


def test_names_for_people_do_not_change_the_key(tiny_teacher):
    renamed = changed(tiny_teacher, spec={"name": "other", "licence": "none", "source": "elsewhere"})
    assert key(renamed) == key(tiny_teacher)


def test_a_record_is_measured_once(tiny_teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    measured, measure = [], module.measure
    monkeypatch.setattr(module, "measure", lambda *a, **k: measured.append(1) or measure(*a, **k))
    protocol = load_measure("digits8", count=44)
    speeds = iter([5.0, 6.0])
    monkeypatch.setattr(module, "samples_per_second", lambda *a: next(speeds))
    first, again, third = (teacher_record(tiny_teacher, protocol, device=CPU) for _ in range(3))
    assert len(measured) == 1 and again.figures == first.figures and again.nfe == first.nfe == 7
    assert again.images_per_second == third.images_per_second == 5, "it is timed once in a process"
    uses_are_noted("records", lambda: teacher_record(tiny_teacher, protocol, device=CPU))
    assert teacher_record(tiny_teacher, protocol, device=CPU, fresh=True).figures == first.figures
    assert len(measured) == 2
    teacher_record(tiny_teacher, protocol, device=CPU, steps=2)
    assert len(measured) == 3


def test_jobs_that_start_together_measure_it_once(tiny_teacher, monkeypatch):
    """The second one finds the record, once it has waited for the first."""
    measured, measure, held = [], module.measure, module.alone

    @contextmanager
    def late(*arguments):
        monkeypatch.setattr(module, "alone", held)
        teacher_record(tiny_teacher, protocol, device=CPU)
        with held(*arguments):
            yield

    protocol = load_measure("digits8", count=43)
    monkeypatch.setattr(module, "measure", lambda *a, **k: measured.append(1) or measure(*a, **k))
    monkeypatch.setattr(module, "alone", late)
    teacher_record(tiny_teacher, protocol, device=CPU)
    assert measured == [1]


def test_a_damaged_record_is_measured_anew(tiny_teacher):
    protocol = load_measure("digits8", count=46)
    first = teacher_record(tiny_teacher, protocol, device=CPU)
    path = module._path(record_key(teacher_generator(tiny_teacher), protocol))
    path.write_text(path.read_text().replace(f"{first.figure.value}", "0.5"))
    assert teacher_record(tiny_teacher, protocol, device=CPU).figures == first.figures


@pytest.mark.parametrize("schedule", [{"sigma_max": 1.0}, {"rho": 3.0}])
def test_a_teacher_with_another_schedule_is_not_given_the_shipped_record(schedule):
    teacher = load_teacher("digits")
    assert teacher.records
    other = changed(teacher, schedule=schedule)
    assert key(other, load_measure("digits8")) not in teacher.records
    assert key(teacher, load_measure("digits8")) in teacher.records
