"""Final weights: written one tensor at a time from wherever they are, in files of bounded size that others read."""

import hashlib
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from distillkit import DistillkitError, StudentGenerator, load_student
from distillkit.engine.checkpoint import Checkpoints
from distillkit.files import WriteError
from distillkit.jobs.training import weights_at
from distillkit.pieces import Held
from distillkit.students.artifact import save_student
from distillkit.weight_files import read_weights, write_weights

WEIGHTS = {f"layer.{k}": torch.full((25, 10), float(k)) for k in range(6)} | {"count": torch.tensor(3)}
EACH = 1000


def test_small_weights_are_one_file_and_large_ones_several_with_an_index(tmp_path):
    assert (
        write_weights(tmp_path, "model", WEIGHTS)
        == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    sha = write_weights(tmp_path, "model", WEIGHTS, shard_bytes=2 * EACH)
    names = [f"model-0000{k}-of-00004.safetensors" for k in range(1, 5)]
    # The file of before would be taken for the weights.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "model.safetensors.index.json"])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 6 * EACH + 8} and list(index["weight_map"]) == list(WEIGHTS)
    assert index["weight_map"]["layer.2"] == names[1] and index["weight_map"]["count"] == names[3]
    assert all((tmp_path / name).stat().st_size < 2 * EACH + 500 for name in names)
    found, same = read_weights(tmp_path, "model")
    assert same == sha and found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) and found[name].dtype == WEIGHTS[name].dtype for name in found)
    write_weights(tmp_path, "model", WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tensor_larger_than_a_file_has_one_of_its_own(tmp_path):
    write_weights(tmp_path, "model", WEIGHTS, shard_bytes=10)
    assert len(list(tmp_path.glob("model-*-of-00007.safetensors"))) == 7


def test_what_is_missing_among_shards_is_named(tmp_path):
    write_weights(tmp_path, "model", WEIGHTS, shard_bytes=2 * EACH)
    second = tmp_path / "model-00002-of-00004.safetensors"
    write_weights(tmp_path / "other", "model", {"layer.2": WEIGHTS["layer.2"]})
    (tmp_path / "other" / "model.safetensors").replace(second)
    with pytest.raises(DistillkitError, match=r"model-00002-of-00004.*layer\.3"):
        read_weights(tmp_path, "model")
    second.unlink()
    with pytest.raises(DistillkitError, match=r"model-00002-of-00004.safetensors, which is not there"):
        read_weights(tmp_path, "model")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layer.0": "../../etc/x.safetensors"}}))
    with pytest.raises(DistillkitError, match=r"weight_map\.layer\.0"):
        read_weights(tmp_path, "model")


def test_a_student_in_several_files_is_loaded_and_checked(tmp_path, teacher_of, described):
    teacher = teacher_of()
    generator = StudentGenerator.from_teacher(teacher)
    save_student(tmp_path, generator, described(generator, teacher), shard_bytes=100)
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 1
    loaded = load_student(tmp_path).generator.denoiser.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in generator.denoiser.state_dict().items())
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(DistillkitError, match="does not match the sha256"):
        load_student(tmp_path)


class Alive:
    """The bytes of tensors that were read from files and are still held."""

    def __init__(self, monkeypatch):
        self.bytes = self.most = self.read = 0
        real = Held.read

        def counted(held):
            tensor = real(held)
            size = tensor.numel() * tensor.element_size()
            self.bytes, self.read = self.bytes + size, self.read + size
            self.most = max(self.most, self.bytes)
            weakref.finalize(tensor, self.freed, size)
            return tensor

        monkeypatch.setattr(Held, "read", counted)

    def freed(self, size):
        self.bytes -= size


@pytest.mark.parametrize("shard_bytes", [10**9, 3 * EACH])
def test_weights_go_from_a_checkpoint_to_the_student_one_tensor_at_a_time(tmp_path, monkeypatch, shard_bytes):
    checkpoints = Checkpoints(tmp_path)
    whole = {f"denoiser.{name}": value for name, value in WEIGHTS.items()}
    checkpoints.save(7, {"average": whole, "student": whole}, {})
    checkpoints.wait()
    alive = Alive(monkeypatch)
    weights = weights_at(checkpoints, 7)
    write_weights(tmp_path / "student", "model", weights, shard_bytes=shard_bytes)
    assert alive.read == 6 * EACH + 8 and alive.most <= 2 * EACH, "one tensor, and the next while it is read"
    found, _ = read_weights(tmp_path / "student", "model")
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", ())
    monkeypatch.setattr("distillkit.tensors.os.fsync", full)
    with pytest.raises(WriteError, match=r"model\.safetensors: No space"):
        write_weights(tmp_path, "model", WEIGHTS)
    assert not list(tmp_path.iterdir())


def test_others_read_the_shards_of_a_network(tmp_path):
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    network.save_config(tmp_path)
    write_weights(tmp_path, "diffusion_pytorch_model", network.state_dict(), shard_bytes=4000)
    assert len(list(tmp_path.glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 3
    theirs = UNet2DModel.from_pretrained(tmp_path, use_safetensors=True).state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in network.state_dict().items())
    assert not load_file(next(tmp_path.glob("*-00001-of-*.safetensors"))).keys() - network.state_dict().keys()
