"""Exports: loaded by diffusers itself, the same samples; pushed to a hub that is a small server here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel

from distillkit import (
    ClassLabels,
    DistillkitError,
    OneStep,
    Pixels,
    Points,
    Teacher,
    TeacherSpec,
    UsageError,
    build_denoiser,
    load_student,
)
from distillkit.diffusion import ConsistencySampler, EulerSampler, RenoisingSampler, boundary_for
from distillkit.students.export import export
from distillkit.students.push import push
from distillkit.testing import TEACHERS
from tests.students.parts import PACKAGE, Backwards, Halves, Inverted, TinyAutoencoder, Twice

UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [4, 8], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 2, "attention_head_dim": 4, "add_attention": False,
}  # fmt: skip
VP, EDM, FLOW = {"kind": "vp", "steps": 100}, {"kind": "edm", "sigma_max": 60.0}, {"kind": "flow", "shift": 3.0}
FAMILIES = {
    "vp epsilon": (VP, "epsilon"),
    "vp v": (VP, "v_prediction"),
    "vp sample": (VP, "sample"),
    "edm epsilon": (EDM, "epsilon"),
    "edm v": (EDM, "v_prediction"),
    "flow": (FLOW, "velocity"),
}


def sampler_of(name, schedule):
    """A sampler of that name whose levels suit the schedule."""
    levels = schedule.levels(3)
    return {
        "one-step": OneStep(),
        "one level": OneStep(t=levels[1]),
        "euler": EulerSampler.on_grid(4, schedule),
        "renoising": RenoisingSampler(levels=levels),
        "consistency": ConsistencySampler(levels=levels[:2], boundary=boundary_for(schedule), clip=True),
        "consistency, Karras": ConsistencySampler(levels=levels[:2]),
    }[name]


def unet_teacher(family, **changes):
    torch.manual_seed(0)
    schedule, prediction = FAMILIES[family]
    arguments = {"network": {**UNET, **changes}, "schedule": schedule, "prediction": prediction}
    classes = changes.get("num_class_embeds")
    return Teacher(
        build_denoiser({"kind": "distillkit:UNet2DModel", "arguments": arguments}),
        TeacherSpec(name="unet", shape=(1, 8, 8)),
        ClassLabels(classes=classes, null_label=False) if classes else None,
    )


def both(student, folder, count=3):
    """(distillkit's samples, diffusers') from the same noise and labels, and the pipeline."""
    shape = student.generator.shape
    noise, more = torch.randn(count, *shape), [torch.randn(count, *shape) for _ in range(4)]
    keys = student.conditioner.in_turn(range(count))
    with torch.no_grad():
        ours = student.generator(noise, student.conditioner.encode(keys), lambda k: more[k])
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    labels = keys if student.conditioner.count else None
    theirs = pipeline(noise=noise, renoise=more, class_labels=labels, output_type="pt").images
    return ours, theirs, pipeline


def assert_same(theirs, ours):
    # (x - sigma F) / alpha and x - 60 F in float32 round to the last digit of the larger terms.
    scale = max(1.0, ours.abs().max().item())
    torch.testing.assert_close(theirs / scale, ours / scale, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "sampler", ["one-step", "one level", "euler", "renoising", "consistency", "consistency, Karras"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet2dmodel_samples_the_same_in_diffusers(student_of, tmp_path, sampler, family):
    teacher = unet_teacher(family)
    student = student_of(teacher, sampler_of(sampler, teacher.schedule))
    export(student, "diffusers", tmp_path / "out")
    ours, theirs, pipeline = both(student, tmp_path / "out")
    assert_same(theirs, ours)
    assert ours.std() > 1e-3 and type(pipeline.network) is UNet2DModel
    text = (tmp_path / "out" / "pipeline.py").read_text()
    assert "import distillkit" not in text and "from distillkit" not in text


@pytest.mark.parametrize("family", ["edm v", "flow"])
def test_classes_come_along(student_of, tmp_path, family):
    teacher = unet_teacher(family, num_class_embeds=3)
    student = student_of(teacher, sampler_of("euler", teacher.schedule))
    export(student, "diffusers", tmp_path / "out")
    ours, theirs, pipeline = both(student, tmp_path / "out")
    assert_same(theirs, ours)
    images = pipeline(batch_size=4, generator=torch.Generator().manual_seed(0)).images
    assert len(images) == 4 and images[0].size == (8, 8)
    again = pipeline(batch_size=4, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert again.shape == (4, 8, 8, 1) and 0 <= again.min() <= again.max() <= 1


@pytest.mark.parametrize("family", ["vp", "flow"])
def test_a_plugins_network_brings_the_file_that_builds_it(student_of, tmp_path, teacher_of, family):
    teacher = teacher_of(family)
    student = student_of(teacher, sampler_of("renoising", teacher.schedule))
    export(student, "diffusers", tmp_path / "out")
    ours, theirs, pipeline = both(student, tmp_path / "out")
    assert_same(theirs, ours)
    assert type(pipeline.network).__name__ == "DistillkitNetwork"


@pytest.mark.parametrize("classes", [0, 3])
def test_an_edm_network_brings_the_file_that_builds_it(student_of, tmp_path, classes):
    arguments = {"network": {"channels": 1, "classes": classes}}
    denoiser = build_denoiser({"kind": f"{PACKAGE}:TinyEDM", "arguments": arguments})
    conditioner = ClassLabels(classes=classes) if classes else None
    student = student_of(Teacher(denoiser, TeacherSpec(name="edm", shape=(1, 4, 4)), conditioner))
    export(student, "diffusers", tmp_path / "out")
    assert_same(*both(student, tmp_path / "out")[:2])


def test_a_network_of_edm2_samples_the_same_in_diffusers(student_of, tmp_path):
    student = student_of(TEACHERS["magnitude-preserving"](), OneStep(t=2.5))
    export(student, "diffusers", tmp_path / "out")
    ours, theirs, _ = both(student, tmp_path / "out")
    assert_same(theirs, ours)
    assert ours.std() > 0.01


def test_the_card_of_an_export_says_how_it_is_used_there(student_of, tmp_path, teacher_of):
    student = student_of(teacher_of())
    (student.folder / "README.md").write_text("---\nlibrary_name: distillkit\n---\nmine\n<!-- usage -->\n"
                                              "load_student\n<!-- end of usage -->\nFigures\n")  # fmt: skip
    (student.folder / "samples.png").write_bytes(b"picture")
    export(student, "diffusers", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: diffusers" in text and "mine" in text and "Figures" in text
    assert "load_student" not in text and "DiffusionPipeline.from_pretrained" in text
    assert (tmp_path / "out" / "samples.png").read_bytes() == b"picture"
    snippet = text.partition("```python")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    scope = {}
    exec(snippet, scope)
    assert len(scope["images"]) == 16
    with pytest.raises(DistillkitError, match=r"README\.md"):
        load_student(tmp_path / "out")


@pytest.mark.parametrize(
    ("parts", "sampler", "named"),
    [
        ({"codec": TinyAutoencoder(), "shape": (4, 4, 4)}, None, "TinyAutoencoder"),
        ({"codec": Points(), "shape": (2,)}, None, "points"),
        ({"codec": Pixels(video=True), "shape": (1, 2, 4, 4)}, None, "video"),
        ({"conditioner": Halves(classes=4), "classes": 4}, None, "Halves"),
        ({"codec": Inverted()}, None, "Inverted"),
        ({}, Twice(), "Twice"),
        ({}, Backwards(), "Backwards"),
    ],
)
def test_what_the_pipeline_cannot_make_is_refused(student_of, tmp_path, teacher_of, parts, sampler, named):
    student = student_of(teacher_of(**parts), sampler)
    with pytest.raises(UsageError, match=named):
        export(student, "diffusers", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_nothing_is_overwritten(student_of, tmp_path, teacher_of):
    student = student_of(teacher_of())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for folder in ("full", "full/mine.txt"):
        with pytest.raises(UsageError, match="full"):
            export(student, "diffusers", tmp_path / folder)
    with pytest.raises(UsageError, match="diffusers"):
        export(student, "difusers", tmp_path / "out")
    student.generator.denoiser = torch.nn.Identity()
    student.generator.denoiser.schedule = teacher_of().schedule
    with pytest.raises(UsageError, match="Identity"):
        export(student, "diffusers", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "student"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_the_same_export_may_be_repeated_and_another_is_refused(student_of, teacher_of, tmp_path):
    student = student_of(teacher_of())
    written = export(student, "diffusers", tmp_path / "out")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in written}
    assert export(student, "diffusers", tmp_path / "out") == written
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in written} == before
    (tmp_path / "out" / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="out"):
        export(student, "diffusers", tmp_path / "out")


@pytest.mark.parametrize("name", ["README.md", "samples.png"])
def test_what_lies_outside_of_a_student_is_not_exported(student_of, teacher_of, tmp_path, name):
    student = student_of(teacher_of())
    (tmp_path / "private").write_text("private")
    (student.folder / name).unlink(missing_ok=True)
    (student.folder / name).symlink_to(tmp_path / "private")
    written = export(student, "diffusers", tmp_path / "out")
    assert written and not any(b"private" in path.read_bytes() for path in written)


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine: creates repositories, and takes commits of files that are not large."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body, status=200):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.answer({"sha": "0" * 40, "id": "me/student", "siblings": []})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.path, self.headers.get("Authorization"), body))
            host = f"http://127.0.0.1:{self.server.server_port}"
            if self.path.endswith("/repos/create"):
                self.answer({"url": f"{host}/me/student", "name": "me/student"})
            elif "/preupload/" in self.path:
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                         for f in json.loads(body)["files"]]  # fmt: skip
                self.answer({"files": files})
            elif "/commit/" in self.path:
                self.answer(
                    {"commitUrl": f"{host}/me/student/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""}
                )
            else:
                self.answer({})

        def log_message(self, *arguments): ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


def test_a_folder_is_pushed_whole_and_a_refusal_says_where_it_is(student_of, teacher_of, tmp_path, hub, monkeypatch):
    address, seen = hub
    export(student_of(teacher_of()), "diffusers", tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", address, raising=False)
    assert push(tmp_path / "out", "me/student") == f"{address}/me/student"
    commits = [body.decode(errors="replace") for path, _, body in seen if "/commit/" in path]
    assert len(commits) == 1 and "model_index.json" in commits[0]
    assert all(token == "Bearer hf_test" for _, token, _ in seen)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DistillkitError) as refused:
        push(tmp_path / "out", "me/student")
    assert refused.value.exit_code == 1 and str(tmp_path / "out") in str(refused.value)
