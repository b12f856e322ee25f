"""Exports: loaded by diffusers itself, the same samples; pushed to a hub that is a small server here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, UNet2DModel

from distillkit import Condition, OneStep, StudentGenerator, UsageError, load_student, load_teacher
from distillkit.diffusion import ConsistencySampler, EulerSampler, RenoisingSampler
from distillkit.students.artifact import StudentDescription, save_student
from distillkit.students.export import export
from tests.teachers.test_diffusers import SMALL

SAMPLERS = {
    "one-step": OneStep(sigma=60.0),
    "euler": EulerSampler.karras(3, sigma_min=0.02, sigma_max=60.0),
    "renoising": RenoisingSampler(sigmas=(60.0, 3.0, 0.5)),
    "consistency": ConsistencySampler(sigmas=(60.0, 2.0), sigma_min=0.02, clip=True),
}


@pytest.fixture
def student(tmp_path):
    """Makes a saved student from a teacher with a sampler."""

    def make(teacher, sampler):
        generator = StudentGenerator.from_teacher(teacher, sampler).eval()
        description = StudentDescription(
            distillkit="0", method="test", method_package="test 1", settings={}, teacher=teacher.spec,
            sampler=sampler.model_dump(mode="json"), nfe=1, images_seen=0,
        )  # fmt: skip
        save_student(tmp_path / "student", generator, description)
        return load_student(tmp_path / "student")

    return make


def unet_teacher(tmp_path, scheduler, **changes):
    torch.manual_seed(0)
    UNet2DModel(**{**SMALL, **changes}).save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "unet")
    return load_teacher(str(tmp_path / "unet"))


def both(student, folder, count=5):
    """(distillkit's samples, diffusers') from the same noise and labels."""
    spec = student.generator.spec
    noise, more = torch.randn(count, *spec.shape), [torch.randn(count, *spec.shape) for _ in range(4)]
    labels = torch.arange(count) % spec.num_classes if spec.num_classes else None
    condition = Condition() if labels is None else Condition(labels=labels)
    with torch.no_grad():
        ours = student.generator(noise, condition, lambda k: more[k])
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(noise=noise, renoise=more, class_labels=labels, output_type="pt").images
    return ours, theirs, pipeline


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_unet2dmodel_samples_the_same_in_diffusers(student, tmp_path, sampler, prediction):
    teacher = unet_teacher(tmp_path, DDPMScheduler(prediction_type=prediction))
    export(student(teacher, SAMPLERS[sampler]), tmp_path / "student", "diffusers", tmp_path / "out")
    ours, theirs, pipeline = both(load_student(tmp_path / "student"), tmp_path / "out")
    # x - 60 F in float32 rounds to 60 times the last digit of x.
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
    assert type(pipeline.network) is UNet2DModel
    text = (tmp_path / "out" / "pipeline.py").read_text()
    assert "import distillkit" not in text and "from distillkit" not in text


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_classes_and_the_edm_convention_come_along(student, tmp_path, prediction):
    scheduler = EDMEulerScheduler(prediction_type=prediction)
    teacher = unet_teacher(tmp_path, scheduler, num_class_embeds=3)
    export(student(teacher, SAMPLERS["euler"]), tmp_path / "student", "diffusers", tmp_path / "out")
    ours, theirs, pipeline = both(load_student(tmp_path / "student"), tmp_path / "out")
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=2e-5)
    images = pipeline(batch_size=4, generator=torch.Generator().manual_seed(0)).images
    assert len(images) == 4 and images[0].size == (8, 8)
    again = pipeline(batch_size=4, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert again.shape == (4, 8, 8, 3) and 0 <= again.min() <= again.max() <= 1


def test_edm_networks_bring_the_file_that_builds_them(student, tmp_path, tiny_teacher):
    export(student(tiny_teacher, SAMPLERS["one-step"]), tmp_path / "student", "diffusers", tmp_path / "out")
    ours, theirs, pipeline = both(load_student(tmp_path / "student"), tmp_path / "out")
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=2e-5)
    assert type(pipeline.network).__name__ == "EDMNetwork"


def test_nothing_is_overwritten_and_nothing_is_left_behind(student, tmp_path, tiny_teacher):
    loaded = student(tiny_teacher, SAMPLERS["one-step"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        export(loaded, tmp_path / "student", "diffusers", tmp_path / "full")
    with pytest.raises(UsageError, match=r"unknown format .difusers.\. Did you mean"):
        export(loaded, tmp_path / "student", "difusers", tmp_path / "out")
    loaded.generator.sampler = loaded.generator.sampler.model_copy()
    loaded.generator.denoiser = torch.nn.Identity()
    with pytest.raises(UsageError, match="Identity cannot be exported"):
        export(loaded, tmp_path / "student", "diffusers", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "student"]


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


def test_the_command_exports_and_pushes(cli, student, tmp_path, tiny_teacher, hub):
    student(tiny_teacher, SAMPLERS["one-step"])
    address, seen = hub
    env = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = cli("export", "student", "--to", "diffusers", "--push-to-hub", "me/student", env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "student-diffusers" / "model_index.json").is_file()
    commits = [body.decode(errors="replace") for path, _, body in seen if "/commit/" in path]
    assert len(commits) == 1 and "exported by distillkit" in commits[0] and "model_index.json" in commits[0]
    assert all(token == "Bearer hf_test" for _, token, _ in seen)
    refused = cli("export", "student", "-o", "other", "--push-to-hub", "me/student",
                  env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"})  # fmt: skip
    assert refused.returncode == 1 and "The export itself is in other" in refused.stderr
    assert "Traceback" not in refused.stderr
