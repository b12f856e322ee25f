"""`--guide-with`: runs, pairs, samples and figures of a teacher that another network guides, and what is said of it."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import distillkit
from distillkit import UsageError, load_student, load_teacher
from distillkit.benchmark.jobs import configuration
from distillkit.benchmark.suite import Suite
from distillkit.contracts.source import Pairs
from distillkit.data.identity import teacher_identity
from distillkit.data.pair_store import PairStore
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.record import read_record
from distillkit.jobs.devices import device_rows
from distillkit.jobs.planned import method_offer, planned
from distillkit.jobs.reading import _Known
from distillkit.models.guide_cost import guide_cost
from distillkit.models.store.folder import fresh_teacher, write_teacher
from distillkit.models.store.resolve import resolve
from distillkit.progress import Quiet
from distillkit.registry import registry
from tests.conftest import HANG, environment, group_of
from tests.parts.toys import step_of, toy_teacher

SMALL = {"arguments": {"channels": 1, "rank": 2, "classes": 10}, "kind": "distillkit:SmallNetwork"}


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """A smaller network for the same samples and classes."""
    spec = resolve("digits").spec.model_copy(
        update={"network": SMALL, "name": "weak", "licence": "of the guide", "source": "made here"}
    )
    folder = tmp_path_factory.mktemp("guides") / "weak"
    write_teacher(folder, fresh_teacher(spec, 3).denoiser.state_dict(), spec)
    return folder


@pytest.fixture
def run(tiny_teacher_folder, weak):
    return [
        "run", "dmd", "--teacher", tiny_teacher_folder, "--guide-with", weak, "--guidance", "2", "--distance", "l2",
        "--duration", "32", "--batch", "8", "--pairs-count", "4", "--pairs-steps", "2", "--evaluation-samples", "20",
        "--evaluate-samples", "20", "--checkpoint-every", "16",
    ]  # fmt: skip


def test_a_run_says_everywhere_what_guided_its_teacher_and_goes_on_with_it_alone(inside, run, weak, tmp_path):
    made = inside(*run, "-o", "mine")
    assert made.returncode == 0, made
    sha256 = json.loads((weak / "teacher.json").read_text())["weights_sha256"]
    title = f"weak ({sha256[:8]})"
    said = " ".join((made.stdout + made.stderr).split())
    assert f"guidance: 2 with {title} (the teacher's and the pairs'); the student needs none itself" in said
    folder = tmp_path / "mine"
    assert yaml.safe_load((folder / "config.yaml").read_text())["pipeline"]["guide_with"] == str(weak)
    inputs = json.loads((folder / "inputs.json").read_text())
    assert inputs["guide"].startswith(f"weak, weights {sha256[:16]}, identity ")
    guide = load_student(folder).description.guide
    assert (guide.name, guide.weights_sha256, guide.licence) == ("weak", sha256, "of the guide")
    card = (folder / "student" / "README.md").read_text()
    assert "learnt in: 2, away from weak." in card and sha256[:16] in card and "of the guide" in card
    assert f"teacher with guidance 2 with {title}" in (folder / "samples" / "README.txt").read_text()

    record = json.loads((folder / "record.json").read_text())
    teacher, _, student = record["rows"]
    assert teacher["name"] == f"teacher, 4 Heun steps, guidance 2 with {title}" and teacher["nfe"] == 14
    for row in (teacher, student):
        assert row["record"]["subject"]["guide"]["weights_sha256"] == sha256
    cost, share = record["cost_forward_equivalents"], guide_cost(_guided(run, weak))
    assert 0 < share < 0.5 and cost["guide"] == pytest.approx(share * cost["teacher"])
    assert cost["pairs"] == round(4 * 3 * (1 + share))

    for command in ("sample", "evaluate"):
        done = inside(command, "mine", "--guide-with", weak, "--guidance", "2")
        assert done.returncode == 2 and "for teachers, and mine is a student" in done.stderr

    more = ["run", "dmd", "--resume", "mine", "--duration", "48"]
    other = shutil.copytree(weak, tmp_path / "other")
    spec = resolve(str(other)).spec
    write_teacher(other, fresh_teacher(spec, 4).denoiser.state_dict(), spec)
    refused = inside(*more, "--guide-with", other)
    assert refused.returncode == 2 and "guide: weak, weights" in refused.stderr and sha256[:16] in refused.stderr
    weak.rename(tmp_path / "moved")
    gone = inside(*more)
    said = " ".join(gone.stderr.split())
    assert gone.returncode == 2 and f"what it learns from is not where it was: --guide-with {weak}" in said
    (tmp_path / "moved").rename(weak)
    assert inside(*more).returncode == 0


def _guided(run, weak):
    return load_teacher(str(run[run.index("--teacher") + 1]), guide_with=str(weak))


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(start, inside, run, tmp_path):
    """Its guide is found again by the configuration."""
    whole = inside(*run, "--protocol", "none", "-o", "whole")
    assert whole.returncode == 0, whole
    half = inside(*run, "--protocol", "none", "--duration", "16", "-o", "half")
    assert half.returncode == 0, half
    # The same training, told that it is not at its end.
    config = (tmp_path / "half" / "config.yaml").read_text().replace("duration: 16", "duration: 32")
    (tmp_path / "half" / "config.yaml").write_text(config)
    shutil.rmtree(tmp_path / "half" / "student")
    (tmp_path / "half" / "record.json").unlink()
    assert inside("run", "dmd", "--resume", "half").returncode == 0
    first, second = (load_student(tmp_path / name).generator.state_dict() for name in ("whole", "half"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_pairs_of_a_guided_teacher_are_others_unless_they_are_not_guided(
    inside, run, weak, tiny_teacher, tmp_path, monkeypatch
):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    guided = _guided(run, weak)
    stores = {w: [PairStore(one, steps=2, guidance=w).folder for one in (tiny_teacher, guided)] for w in (1.0, 2.0)}
    assert stores[1.0][0] == stores[1.0][1] and stores[2.0][0] != stores[2.0][1]
    half = _guided(run, weak)
    half.guide.denoiser.to(torch.bfloat16)
    assert teacher_identity(half) != teacher_identity(guided)
    assert teacher_identity(half, guided=False) == teacher_identity(tiny_teacher)

    asked = [*run[2:6], "--steps", "2", "--count", "4", "-q"]
    refused = inside("pairs", "make", *asked)
    assert refused.returncode == 2 and "give --guidance, such as 2, as well" in refused.stderr
    made = inside("pairs", "make", *asked, "--guidance", "2")
    _, _, following = made.stdout.partition("next: distillkit ")
    assert made.returncode == 0 and "--guide-with" in following and "--guidance 2 --pairs-steps 2 " in following
    # It is a command as it stands, which finds these pairs.
    small = ("--pairs-count", "4", "--protocol", "none", "--distance", "l2", "--dry-run")
    planned = inside(*shlex.split(following.partition("   ")[0]), *small)
    assert planned.returncode == 0, planned.stderr
    assert stores[2.0][1].is_dir() and not stores[2.0][0].exists()
    sample, _ = PairStore(guided, steps=2, guidance=2.0).solved(range(2), torch.device("cpu"))
    opened = PairStore(guided, steps=2, guidance=2.0).open(4, torch.device("cpu")).select([0, 1])
    torch.testing.assert_close(opened.sample, sample, rtol=1e-4, atol=1e-3)
    listed = inside("pairs", "list")
    assert "with weak" in " ".join(listed.stdout.split())
    assert inside("pairs", "verify", *asked, "--guidance", "2", "--remake", "2").returncode == 0
    assert inside(*run, "--protocol", "none", "-o", "found").stdout.count("making") == 0


def test_a_guided_teacher_is_sampled_and_measured(inside, run, weak, tmp_path):
    name, guide = run[3], ["--guide-with", weak, "--guidance", "2"]
    drawn = inside("teachers", "sample", name, *guide, "--num", "2", "--steps", "2", "--output", "a.npz")
    assert drawn.returncode == 0 and "6 network evaluation(s) each" in drawn.stdout
    measured = inside("evaluate", name, *guide, "--samples", "20", "--steps", "2", "--protocol", "digits8", "-o", ".")
    assert measured.returncode == 0, measured
    (path,) = tmp_path.glob("*.json")
    record = read_record(path)
    sha256 = resolve(str(weak)).spec.weights_sha256
    assert record.subject.guide.weights_sha256 == sha256 and record.nfe == 6 and f"with-weak-{sha256[:8]}" in path.name
    guided = _guided(run, weak)
    plain, with_guide = (teacher_generator(guided, 2, weight) for weight in (1.0, 2.0))
    assert plain.guide is None and plain.subject.guide is None and "guide" not in plain.identity()
    assert with_guide.identity()["guide"]["weights"] == sha256


def test_what_has_no_meaning_is_refused(inside, run, weak, tmp_path):
    name = run[3]
    cases = {
        ("teachers", "sample", name, "--guide-with", weak): "guidance 1 the teacher's prediction is taken as it is",
        ("evaluate", name, "--guide-with", weak, "--protocol", "digits8"): "would not be evaluated",
        ("run", "dmd", "--teacher", name, "--guide-with", weak, "--protocol", "none"): "would not be evaluated",
        ("run", "ect", "--teacher", name, "--guide-with", weak, "--protocol", "none"): "would not be evaluated",
        ("teachers", "sample", name, "--guide-with", name, "--guidance", "2"): "by its own weights",
        ("teachers", "sample", name, "--guide-with", "nowhere", "--guidance", "2"): "--guide-with nowhere: unknown",
        ("teachers", "sample", name, "--guide-with", "shapes", "--guidance", "2"): "4 x 8 x 8 and cannot guide",
        ("teachers", "sample", name, "--guide-with", weak, "--guidance", "2", "--negative", "x"): "leave one",
        ("evaluate", tmp_path, "--guide-with", weak, "--guidance", "2"): "holds images",
    }
    for arguments, said in cases.items():
        done = inside(*arguments)
        assert done.returncode == 2 and said in " ".join(done.stderr.split()), (arguments, done)
        assert "Traceback" not in done.stderr


def test_in_python_a_guided_teacher_is_taken_as_it_is(tiny_teacher, weak, tmp_path):
    guided = tiny_teacher.guided_by(load_teacher(str(weak)))
    asked = {
        "output_dir": tmp_path / "run", "quiet": True, "duration": 8, "batch": 4, "pairs_count": 4, "pairs_steps": 2,
        "distance": "l2", "protocol": "none", "device": "cpu",
    }  # fmt: skip
    with pytest.raises(UsageError, match="would not be evaluated"):
        distillkit.distil("dmd", guided, **asked)
    made = distillkit.distil("dmd", guided, guidance=2.0, **asked)
    assert made.config.pipeline.guide_with == "weak" and made.student.description.guide.name == "weak"
    with pytest.raises(UsageError, match="guide_with=\\) takes them"):
        distillkit.distil("dmd", guided, guidance=2.0, guide_with=str(weak), **{**asked, "output_dir": tmp_path / "no"})


GUIDED = {
    "dmd": {"regression_weight": 0, "guidance": 2.0},
    "dmd2": {"gan_weight": 0, "guidance": 2.0},
    "f-distill": {"guidance": 2.0},
    "sid": {"guidance": 2.0},
    "sida": {"guidance": 2.0},
    "consistency": {"guidance": 2.0},
    "ect": {"teacher_free": False, "guidance": 2.0},
    "tcm": {"first_share": 0.0, "teacher_free": False, "guidance": 2.0},
    "scm": {"tangent_warmup": 0, "guidance": 2.0},
    "meanflow": {"share": 1.0, "guidance": 2.0},
    "progressive": {"start_steps": 1, "guidance": 2.0},
}


@pytest.mark.parametrize("name", GUIDED)
def test_every_method_with_a_guidance_asks_the_guide(name):
    """On another schedule than the teacher's; and with guidance 1 nothing of it is evaluated."""
    assert {n for n, o in registry().named("methods").items() if "guidance" in o.value.Config.model_fields} <= {*GUIDED}
    for settings, asked in ((GUIDED[name], True), ({**GUIDED[name], "guidance": 1.0}, False)):
        guide = toy_teacher("vp")
        teacher, method = toy_teacher("flow").guided_by(guide), registry().method(name)
        recipe, seen = method().recipe(teacher, method.Config(**settings)), []
        recipe.student.sampler = recipe.stages[0].sampler or recipe.student.sampler
        guide.denoiser.register_forward_hook(lambda *_, seen=seen: seen.append(None))
        step = step_of(recipe, teacher)
        losses = [objective(step) for objective in recipe.objectives]
        assert all(torch.isfinite(loss).all() for loss in losses) and bool(seen) == asked, settings


def test_a_plan_and_a_training_know_of_the_second_network(inside, run, weak, tmp_path):
    planned_run = inside(*run, "--protocol", "none", "--dry-run", "-o", "none")
    said = " ".join(planned_run.stdout.replace("│", " ").split())
    assert planned_run.returncode == 0 and "guide weak" in said and ", guide 0." in said, planned_run
    teacher, settings = run[3], {"guidance": 2.0, "distance": "l2", "guide_with": str(weak)}
    with planned("dmd", teacher, output_dir=tmp_path / "x", device="cpu", batch=8, **settings) as plan:
        rows = dict(device_rows(plan, 2))
        job = plan.job()
        job.prepare()
    assert "guide 1" in rows["passes"] and "guide" in rows["networks"]
    guide = job.teacher.guide.denoiser
    assert any(guide is network for network in job.networks.all) and job.networks.frozen["guide"] > 0
    assert job.sources[Pairs].plan().evaluations > 0
    half = {**settings, "teacher_dtype": "bf16"}
    with (
        pytest.raises(UsageError, match="weak takes no weights in bf16"),
        planned("dmd", teacher, output_dir=tmp_path / "x", device="cpu", batch=8, **half) as plan,
    ):
        plan.job()


def test_less_than_float32_is_of_both_networks_and_of_the_run_alone(tiny_teacher, tmp_path):
    other = fresh_teacher(tiny_teacher.spec.model_copy(update={"name": "fresh"}), 7)
    guided = tiny_teacher.guided_by(other)
    asked = {"guidance": 2.0, "distance": "l2", "batch": 4, "teacher_dtype": "bf16"}
    with planned("dmd", guided, output_dir=tmp_path / "x", device="cpu", **asked) as plan:
        job = plan.job()
    for mine, whose in ((torch.bfloat16, job.teacher), (torch.float32, guided)):
        assert {p.dtype for denoiser in whose.denoisers for p in denoiser.parameters()} == {mine}
    assert other.denoiser is guided.guide.denoiser is not job.teacher.guide.denoiser


def test_a_process_without_weights_has_the_guide_of_the_first(tiny_teacher, weak):
    first, second = (tiny_teacher.guided_by(load_teacher(str(weak))) for _ in range(2))
    first.guide.denoiser.to(torch.bfloat16)
    assert _Known.of(first).adopted_by(second, 1) == ""
    types = [{p.dtype for p in denoiser.parameters()} for denoiser in second.denoisers]
    assert types == [{torch.float32}, {torch.bfloat16}]
    other = tiny_teacher.guided_by(fresh_teacher(tiny_teacher.spec.model_copy(update={"name": "other"}), 1))
    assert "process 1 has another network of other than process 0" in _Known.of(first).adopted_by(other, 1)


def test_two_processes_that_share_both_networks_end_where_one_does(warm, run, tmp_path):
    """And keep the same averages of the student, whose snapshots are in pieces."""
    kept = ["--ema-sigmas", "0.05,0.10", "--snapshot-every", "8"]
    asked = [*map(str, run), *kept, "--protocol", "none", "--channels-last", "off"]
    spread = [*asked, "--parallel", "shard", "--offload-teacher", "-o", "two"]
    command = [str(Path(sys.executable).parent / "distillkit"), *spread]
    done = warm.run_together(command, tmp_path, [environment(one) for one in group_of(2)], HANG)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    alone = warm.run([command[0], *asked, "-o", "one"], tmp_path, environment(), HANG)
    assert alone.returncode == 0, alone
    for name in ("one", "two"):
        distillkit.make_average(tmp_path / name, 0.07, tmp_path / f"{name}-ema", reporter=Quiet())
    assert len(list((tmp_path / "two" / "snapshots" / "step-000000004").glob("average-0.1-*-of-00002*"))) == 2
    for suffix in ("", "-ema"):
        first, second = (load_student(tmp_path / f"{name}{suffix}").generator.state_dict() for name in ("one", "two"))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


def test_a_suite_names_the_guide_for_all(weak):
    suite = Suite(
        name="guided", teacher="digits", pipeline={"guide_with": str(weak)}, guidance=2.0, budget=1000,
        methods={"dmd": {}},
    )  # fmt: skip
    config = configuration(suite, "dmd", method_offer("dmd"))
    assert config.pipeline.guide_with == str(weak) and config.settings["guidance"] == 2.0
    with pytest.raises(ValueError, match="would not be evaluated"):
        Suite.model_validate({**suite.model_dump(), "guidance": 1.0})
