"""One protocol for teacher and students: on the same prompts, of distances; and what ends a process."""

import pytest
import torch

from distillkit import DistillkitError, UsageError, load_teacher
from distillkit.benchmark import measures
from distillkit.benchmark.harness import Bench, ProcessUnusable
from distillkit.benchmark.measures import is_of, measure_of
from distillkit.benchmark.suite import Suite
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.presets import load_measure
from distillkit.evaluation.reference import Reference
from distillkit.jobs.context import job_context
from tests.evaluation.test_whole_pipeline import Colours
from tests.models.pipelines import stable_diffusion

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("text") / "sd")


@pytest.fixture
def suite(place, tmp_path, monkeypatch):
    """Of a teacher without prompts, measured by a file without prompts; the suite has two."""
    reference = Reference("grey", 50, torch.zeros(6), torch.eye(6, dtype=torch.float64))
    plain = load_measure(None, reference=reference, extractor=Colours(), count=4, shape=(3, 16, 16))
    monkeypatch.setattr(measures, "load_measure", lambda name, **how: plain)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return Suite(
        name="text", teacher=str(place), protocol="own.safetensors", budget=1000, methods={"kd": {}},
        prompts={"path": str(tmp_path / "prompts.txt")},
    )  # fmt: skip


def test_teacher_and_students_are_measured_on_the_suites_prompts(suite, place):
    """Before: each on what its own conditioner held, the teacher on none, under one protocol's id."""
    teacher = load_teacher(str(place))
    found = measure_of(suite, teacher)
    assert found.prompts == tuple(PROMPTS) and found.protocol.samples.prompts_sha256
    generator = teacher_generator(teacher, 2)
    record = measure(generator, found, device=torch.device("cpu"))
    teacher.conditioner = measures.prompted(suite, teacher)
    listed = teacher_generator(teacher, 2)
    again = measure(listed, found, device=torch.device("cpu"))
    assert record.samples_sha256 == again.samples_sha256 and record.protocol_id == again.protocol_id
    # What a training may have rounded is not taken over.
    same = {"subject": generator.subject, "protocol_id": record.protocol_id}
    assert is_of(record.model_copy(update=same), generator, found)
    assert not is_of(again, listed, found)


def test_a_teacher_of_text_without_prompts_is_refused(suite, place):
    with pytest.raises(UsageError, match="measured on prompts"):
        measure_of(suite.model_copy(update={"prompts": {}}), load_teacher(str(place)))


def test_a_protocol_of_which_more_is_better_is_refused(suite, place, monkeypatch):
    monkeypatch.setattr("distillkit.evaluation.protocol.Protocol.more_is_better", True)
    with pytest.raises(UsageError, match=r"more is better of what own\.safetensors measures"):
        measure_of(suite, load_teacher(str(place)))


@pytest.mark.parametrize(
    ("cause", "unusable"), [("CUDA error: an illegal memory access", True), ("a plain one", False)]
)
def test_a_device_that_is_lost_inside_of_a_loss_ends_the_process(cause, unusable, tmp_path, monkeypatch):
    """A failure in a loss is told as its plugin's; what it was raised from says that nothing can go on here."""
    suite = Suite(name="small", teacher="mixture", budget=30_000, methods={"consistency": {}})

    def failing(job):
        try:
            raise RuntimeError(cause)
        except RuntimeError as error:
            raise DistillkitError("objective consistency failed") from error

    with job_context(device="cpu", quiet=True) as context:
        bench = Bench(suite, tmp_path, load_teacher("mixture"), context)
        job = bench.plan()[0]
        monkeypatch.setattr(bench, "_trained", failing)
        if unusable:
            with pytest.raises(ProcessUnusable, match="consistency"):
                bench.outcome(job)
        else:
            assert bench.outcome(job).state == "failed"
