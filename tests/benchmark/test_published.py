"""Generators that others have trained as entries of a benchmark: measured as its students are, shown apart."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import distillkit
from distillkit import DistillkitError, UsageError
from distillkit.benchmark.leaderboard import Standing, difference
from distillkit.benchmark.published import published_candidate, require_comparable, to_download
from distillkit.benchmark.results import Run, read_results
from distillkit.benchmark.run import BenchResult, plan
from distillkit.benchmark.sheets import Sheets
from distillkit.benchmark.suite import Published, chosen, load_suite
from distillkit.benchmark.verdicts import findings
from distillkit.contracts.text import PromptList
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.record import Figure, read_record
from distillkit.evaluation.reference import Reference
from distillkit.evaluation.whole_pipeline import WholePipeline
from distillkit.jobs.context import job_context
from distillkit.models.store.resolve import load_teacher
from tests.benchmark.conftest import published_student
from tests.models.pipelines import stable_diffusion

SUITE = """
name: small
teacher: mixture
budget: 10k
curve_points: 1
teacher_steps: [3]
training: {batch: 64}
methods:
  kd: {sources: {pairs: {count: 64}}}
published:
  theirs: {subject: ./theirs, note: of a <paper>}
  not-there: {subject: ./not-there}
"""
ALONE = """
name: alone
teacher: mixture
teacher_steps: [3]
published:
  theirs: {subject: ./theirs}
  nearer: {subject: ./nearer}
"""


@pytest.fixture(autouse=True, scope="module")
def _few_points():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillkit.embedded.mixture.protocol.POINTS", 4096)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Suites beside what they name."""
    place = tmp_path_factory.mktemp("published")
    (place / "small.yaml").write_text(SUITE)
    (place / "alone.yaml").write_text(ALONE)
    published_student(place / "theirs")
    published_student(place / "nearer", ratio=8.0)
    return place


@pytest.fixture(scope="module")
def done(folder):
    """The first suite's benchmark."""
    return distillkit.bench(folder / "small.yaml", output_dir=folder / "bench", quiet=True)


def test_a_published_generator_is_measured_and_never_trained(folder, done):
    runs = {run.entry: run for run in done.results.runs}
    assert {entry: (run.kind, run.state) for entry, run in runs.items()} == {
        "theirs": ("published", "done"), "not-there": ("published", "failed"), "kd": ("training", "done"),
    }  # fmt: skip
    theirs = runs["theirs"]
    assert (theirs.images, theirs.seconds, theirs.cost, theirs.config, theirs.folder) == (0, 0, {}, {}, "")
    assert (
        not list((folder / "bench" / "runs").glob("theirs*")) and "there is no such folder" in runs["not-there"].reason
    )
    [path] = theirs.records
    record, trained = read_record(done.folder / path), read_record(done.folder / runs["kd"].records[0])
    assert record.subject.name == "theirs" and record.subject.kind == "student" and record.nfe == 1
    assert record.protocol_id == trained.protocol_id, "the same protocol and noise"
    own = distillkit.evaluate(folder / "theirs", "mixture", output=folder / "own", quiet=True)
    assert own.figures == record.figures and own.samples_sha256 == record.samples_sha256


def test_it_is_shown_apart(done):
    board = done.leaderboard
    assert [row.name for row in board.students] == ["kd"] and [row.name for row in board.published] == ["theirs"]
    assert not any(row.name == "theirs" for rows in board.tables.values() for row in rows)
    [theirs], [kd] = board.published, [row for row in board.students if row.name == "kd"]
    assert theirs.to_best == difference(theirs, kd) and theirs.to_best.value == pytest.approx(theirs.mean - kd.mean)
    said = list(findings(done.results, board))
    assert any("theirs, published, has" in line and "kd, by" in line for line in said)
    assert any(line.startswith("not-there, published, failed:") for line in said)
    text = (done.folder / "report.md").read_text()
    part = text.partition("## Published students")[2].partition("\n\n±")[0]
    assert "| theirs | 1 |" in part and " to kd |" in part and "kd | 1" not in part
    assert "theirs" not in text.partition("## Published students")[0].partition("| generator |")[2]
    page = (done.folder / "report.html").read_text()
    assert "of a &lt;paper&gt;" in page and "<paper>" not in page
    assert '<g class="published">' in page and "published, NFE 1" in page
    assert "published students" in done._repr_html_() and "1 published, 1 failed" in repr(done)
    assert all("difference to the best trained" in shown for shown in (text, page, done._repr_html_()))
    assert "not ranked with those above" in text and "not ranked with those above" in page


def test_it_is_resumed_planned_and_picked(folder, done, inside, monkeypatch):
    kept = {path: path.stat().st_mtime_ns for path in (done.folder / "records").iterdir()}
    again = inside("bench", "--suite", folder / "small.yaml", "--output-dir", done.folder)
    assert again.returncode == 1, "one entry failed"
    assert "[1/3] theirs, published: done" in again.stdout and "failed: not-there (published):" in again.stdout
    assert "of published students, not trained here" in " ".join(again.stdout.split())
    assert {path: path.stat().st_mtime_ns for path in (done.folder / "records").iterdir()} == kept
    planned = plan(folder / "small.yaml", output_dir=done.folder)
    assert [(one.job.title, one.state, one.seconds) for one in planned.jobs[:2]] == [
        ("theirs, published", "done", 0.0), ("not-there, published", "to do", 0.0),
    ]  # fmt: skip
    shown = inside("bench", "--suite", folder / "small.yaml", "--dry-run")
    assert shown.returncode == 0 and "theirs" in shown.stdout and "published" in shown.stdout
    picked = chosen(load_suite(folder / "small.yaml"), methods=["theirs", "kd"])
    assert [*picked.published] == ["theirs"] and [*picked.methods] == ["kd"]
    assert not chosen(load_suite(folder / "small.yaml"), methods=["kd"]).published
    with pytest.raises(UsageError, match="Did you mean 'theirs'"):
        chosen(load_suite(folder / "small.yaml"), methods=["their"])


def test_another_file_is_measured_anew(folder, done, tmp_path):
    """The entry's name is the same; what it names is another student."""
    before = read_record(done.folder / "records" / "theirs-published.json")
    suite = load_suite(folder / "small.yaml")
    other = suite.published["theirs"].model_copy(update={"subject": str(folder / "nearer")})
    changed = suite.model_copy(update={"methods": {}, "published": {"theirs": other}})
    (tmp_path / "bench" / "records").mkdir(parents=True)
    for path in ("results.json", "records/theirs-published.json"):
        (tmp_path / "bench" / path).write_bytes((done.folder / path).read_bytes())
    again = distillkit.bench(changed, output_dir=tmp_path / "bench", quiet=True)
    after = read_record(again.folder / "records" / "theirs-published.json")
    assert after.figures != before.figures


def test_a_suite_of_published_generators_alone(folder, inside):
    done = inside("bench", "--suite", folder / "alone.yaml", "--output-dir", folder / "alone")
    assert done.returncode == 0 and "Nothing was trained here" in " ".join(done.stdout.split()), done.stderr
    result = BenchResult(folder / "alone")
    assert [row.name for row in result.leaderboard.published] and not result.leaderboard.students
    assert all(row.to_best is None for row in result.leaderboard.published)
    text = (folder / "alone" / "report.md").read_text()
    assert "nothing trained" in text and "Where the budget went" not in text and "nearer" in text
    assert "± is a standard error" in text and "paired" not in text and "Training time" not in text
    # Nothing is above them, and there is nothing to be different from.
    page = (folder / "alone" / "report.html").read_text()
    for said in (text, page, result._repr_html_(), done.stdout):
        assert "nearer" in said and "difference to" not in said and "those above" not in said
    part = text.partition("## Published students")[2].partition("\n\n±")[0]
    assert {row.count("|") for row in part.splitlines() if row.startswith("|")} == {6}
    assert read_results(folder / "alone").suite.budget is None
    shown = inside("bench", "--suite", folder / "alone.yaml", "--dry-run")
    assert shown.returncode == 0 and "nothing to train" in shown.stdout and "trainings" not in shown.stdout


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (("note: of", "nite: of"), ["small.yaml:11", "'note'"]),
        (("{subject: ./not-there}", "{steps: 4}"), ["small.yaml:12", "subject"]),
        (("{subject: ./not-there}", "./not-there"), ["small.yaml:12", "write what it is as {subject: ./not-there}"]),
        (("{subject: ./not-there}", "{subject: x, steps: 0}"), ["small.yaml:12", "steps"]),
        (("{subject: ./not-there}", "{subject: x, timesteps: [1, 2]}"), ["small.yaml:12", "descending"]),
        (("{subject: ./not-there}", "{subject: x, eta: 2}"), ["small.yaml:12", "eta"]),
        (("  not-there:", "  kd:"), ["kd is a method and a published generator"]),
        (("  not-there:", "  ../x:"), ["'../x'"]),
        (("budget: 10k\n", ""), ["budget"]),
        (("budget: 10k", "budget: 0"), ["small.yaml:4"]),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, change, fragments):
    (tmp_path / "small.yaml").write_text(SUITE.replace(*change))
    with pytest.raises(UsageError) as caught:
        load_suite(tmp_path / "small.yaml")
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


def test_an_empty_suite_is_refused(tmp_path):
    (tmp_path / "none.yaml").write_text("name: none\nteacher: mixture\n")
    with pytest.raises(UsageError, match="methods, or published generators"):
        load_suite(tmp_path / "none.yaml")


def test_a_suite_of_which_nothing_could_be_measured_says_why(folder, inside):
    (folder / "failing.yaml").write_text(ALONE.replace("./theirs", "./theirs, steps: 4").replace("./nearer", "./gone"))
    failed = inside("bench", "--suite", folder / "failing.yaml", "--output-dir", folder / "failing")
    assert failed.returncode == 1 and "seed" not in failed.stderr, failed.stderr
    assert "  theirs, published: 4 evaluations" in failed.stderr and "  nearer, published: subject" in failed.stderr


def test_files_are_found_beside_the_suite(tmp_path):
    for name in ("lora.safetensors", "unet.bin", "scheduler.json"):
        (tmp_path / name).touch()
    (tmp_path / "pipeline").mkdir()
    entry = "{subject: ./pipeline, lora: lora.safetensors, weights: unet.bin, scheduler: scheduler.json, steps: 4}"
    other = "{subject: hf:a/b, lora: hf:c/d, scheduler: 'EulerDiscreteScheduler,timestep_spacing=trailing'}"
    text = f"name: files\nteacher: mixture\npublished:\n  a: {entry}\n  b: {other}\n"
    (tmp_path / "files.yaml").write_text(text)
    a, b = load_suite(tmp_path / "files.yaml").published.values()
    for key in ("subject", "lora", "weights", "scheduler"):
        assert Path(getattr(a, key)).parent == tmp_path and Path(getattr(a, key)).exists()
    assert (b.subject, b.lora) == ("hf:a/b", "hf:c/d") and b.scheduler.startswith("EulerDiscreteScheduler,")


# Pipelines


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A tiny Stable Diffusion as teacher, a protocol of two prompts, and a pipeline with LCM's scheduler."""
    from tests.evaluation.test_whole_pipeline import Colours

    place = stable_diffusion(tmp_path_factory.mktemp("text") / "sd")
    teacher = load_teacher(str(place))
    from distillkit.evaluation.presets import load_measure

    reference = Reference("grey", 50, torch.zeros(6), torch.eye(6, dtype=torch.float64))
    measure = load_measure(None, reference=reference, extractor=Colours(), count=4, shape=(3, 16, 16))
    prompts = ["a cat", "two dogs"]
    teacher.conditioner = teacher.conditioner.with_prompts(PromptList(prompts, "two", "0" * 64))
    return place, teacher_generator(teacher, 2), measure.with_prompts(prompts)


def test_a_pipeline_is_pictured_and_compared_like_a_student(text, tmp_path):
    place, teacher, measure = text
    entry = Published(subject=str(place), steps=2, scheduler="LCMScheduler", guidance=1.0)
    with job_context(quiet=True) as context:
        candidate = published_candidate(entry, context)
        assert isinstance(candidate, WholePipeline) and candidate.subject.kind == "pipeline"
        require_comparable(candidate, teacher, measure, context)
        Sheets(measure, teacher, context.device).write(tmp_path / "grid.png", candidate)
        assert (tmp_path / "grid.png").stat().st_size > 1000
        larger = published_candidate(entry.model_copy(update={"subject": str(doubled(place, tmp_path))}), context)
        with pytest.raises(DistillkitError, match="3 x 32 x 32, and those of the suite's students 3 x 16 x 16"):
            require_comparable(larger, teacher, measure, context)
        with pytest.raises(DistillkitError, match="is a teacher"):
            published_candidate(Published(subject=str(place)), context)
        with pytest.raises(DistillkitError, match="set of images"):
            published_candidate(Published(subject=str(images(tmp_path))), context)


def doubled(place, tmp_path):
    """The same pipeline with twice the side."""
    import shutil

    from tests.models.pipelines import change

    folder = shutil.copytree(place, tmp_path / "doubled")
    change(folder / "unet" / "config.json", sample_size=16)
    return folder


def images(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def test_samples_of_other_conditions_are_not_compared(tiny_teacher_folder):
    """The noise is the same, and what is asked for is not."""
    measure = distillkit_measure()
    teacher = load_teacher(str(tiny_teacher_folder))
    conditional = teacher_generator(teacher, 2)
    without = dataclasses.replace(conditional, conditioner=distillkit.Unconditional())
    fewer = dataclasses.replace(conditional, conditioner=distillkit.ClassLabels(classes=3))
    with job_context(quiet=True) as context:
        require_comparable(conditional, conditional, measure, context)
        with pytest.raises(DistillkitError, match=r"another protocol .* labels are 'none'"):
            require_comparable(without, conditional, measure, context)
        with pytest.raises(DistillkitError, match="3 classes, and the suite's students 10"):
            require_comparable(fewer, conditional, measure, context)


def distillkit_measure():
    from distillkit.evaluation.presets import load_measure

    return load_measure("digits8", count=4)


def test_what_is_to_be_downloaded_is_known_before(monkeypatch, folder):
    monkeypatch.setattr("distillkit.models.diffusers.hub.cached", lambda name: None)
    entry = Published(subject="hf:org/pipeline", lora="hf:org/lora", weights="hf:org/repo/unet.bin", steps=1)
    assert to_download(entry) == ["hf:org/pipeline", "hf:org/lora/pytorch_lora_weights.safetensors",
                                  "hf:org/repo/unet.bin"]  # fmt: skip
    assert to_download(Published(subject=str(folder / "theirs"))) == []


def test_a_difference_to_few_seeds_is_as_sure_as_these():
    """Three trainings against one published student: the spread between trainings is known from three seeds."""
    figures = tuple(Figure(value=v, estimator="x@1", leave_one_out=(v, v + 0.01)) for v in (1.0, 1.1, 1.2))
    runs = [Run(entry="dmd", method="dmd", package="p 1", seed=k, state="done") for k in range(3)]
    trained = Standing("dmd", 1, figures, 1.0, tuple(runs))
    theirs = Run(kind="published", entry="t", method="published", package="published", seed=0, state="done")
    published = Standing("t", 1, (dataclasses.replace(trained, figures=figures[:1]).figures[0],), 1.0, (theirs,))
    apart = difference(published, trained)
    assert apart.seeds == 3 and apart.needed == 4.3 and apart.error > 0.05
    assert published.is_published and not published.is_teacher and not trained.is_published


def test_results_of_before_are_read(done, tmp_path):
    """Runs say what they are since published generators are among them."""
    values = json.loads((done.folder / "results.json").read_text())
    values["runs"] = [{k: v for k, v in run.items() if k != "kind"} for run in values["runs"] if run["entry"] == "kd"]
    (tmp_path / "results.json").write_text(json.dumps(values))
    assert [run.kind for run in read_results(tmp_path).runs] == ["training"]
