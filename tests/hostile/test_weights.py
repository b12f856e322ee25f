"""Files of weights of every other kind: read, or refused with the way to go; nothing takes unbounded time."""

import io
import json
import pickle
import shutil
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, UsageError, load_teacher
from distillkit.evaluation.reference import load_reference
from distillkit.models.diffusers.hub import parts
from distillkit.models.diffusers.weights import chosen
from distillkit.models.edm.pickles import weights
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Instance, Refused, Storage, StoredTensor, load_tensors
from distillkit.models.foreign.torch_files import check_members


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small diffusers pipeline as it is saved."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


@pytest.fixture
def copied(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "out")
    return tmp_path / "out"


WHOLE = "diffusion_pytorch_model.safetensors"


def weights_of(folder):
    return load_teacher(str(folder)).denoiser.state_dict()


def assert_same(found, expected):
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_are_read_as_the_whole(copied, pipeline):
    state = load_file(copied / "unet" / WHOLE)
    names = sorted(state)
    (copied / "unet" / WHOLE).unlink()
    shards = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: state[name] for name in own}, copied / "unet" / file)
    index = copied / "unet" / f"{WHOLE}.index.json"
    weight_map = {name: file for file, own in shards.items() for name in own}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    assert_same(weights_of(copied), weights_of(pipeline))
    for spoilt, named in [
        ({**weight_map, names[0]: "../../etc/passwd"}, "weight_map"),
        ({**weight_map, names[0]: "/etc/passwd"}, "weight_map"),
        ({**weight_map, "unheard_of": "a-00001-of-00002.safetensors"}, "unheard_of"),
        ({**weight_map, names[0]: "absent.safetensors"}, "absent"),
        ({}, "weight_map"),
    ]:
        index.write_text(json.dumps({"weight_map": spoilt}))
        with pytest.raises(DistillkitError, match=named):
            load_teacher(str(copied))
    index.unlink()
    with pytest.raises(UsageError, match=r"index\.json"):
        load_teacher(str(copied))


def test_a_variant_is_read_and_named(copied, pipeline, caplog):
    state = load_file(copied / "unet" / WHOLE)
    (copied / "unet" / WHOLE).unlink()
    save_file({name: value.half() for name, value in state.items()}, copied / "unet" / WHOLE.replace(".s", ".fp16.s"))
    found, expected = weights_of(copied), weights_of(pipeline)
    assert "fp16" in caplog.text
    for name, value in found.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name].half().float())


def test_a_checkpoint_of_a_training_is_read_with_the_pipelines_noise(copied, pipeline, caplog):
    (copied / "checkpoint-500").mkdir()
    shutil.move(copied / "unet", copied / "checkpoint-500" / "unet")
    for place in (copied / "checkpoint-500", copied / "checkpoint-500" / "unet"):
        caplog.clear()
        assert_same(weights_of(place), weights_of(pipeline))
        assert "scheduler_config.json" in caplog.text
    shutil.rmtree(copied / "scheduler")
    with pytest.raises(UsageError, match="scheduler"):
        load_teacher(str(copied / "checkpoint-500"))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"", "empty"),
        (b"\0" * 4096, "zeros"),
        (b"\x1f\x8b" + b"0" * 99, "gunzip"),
    ],
)
@pytest.mark.parametrize("name", [WHOLE, "diffusion_pytorch_model.bin"])
def test_what_was_saved_in_the_place_of_weights_is_named(copied, data, named, name):
    (copied / "unet" / WHOLE).unlink()
    (copied / "unet" / name).write_bytes(data)
    with pytest.raises(DistillkitError, match=named) as refused:
        load_teacher(str(copied))
    assert name in str(refused.value)
    file = copied / "net.pkl"
    file.write_bytes(data)
    with pytest.raises(DistillkitError, match=named):
        load_teacher(str(file))


@pytest.mark.parametrize(
    ("file", "named"),
    [("model.msgpack", "Flax"), ("model.onnx", "ONNX"), ("pytorch_lora_weights.safetensors", "LoRA"), ("x.txt", WHOLE)],
)
def test_a_folder_without_weights_says_what_it_has(copied, file, named):
    (copied / "unet" / WHOLE).rename(copied / "unet" / file)
    with pytest.raises(UsageError, match=named):
        load_teacher(str(copied))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["conv_in.weight", "time_embedding.linear_1.weight"], "diffusers"),
        (["unet.lora_A.weight", "unet.lora_B.weight"], "LoRA"),
        (["model.diffusion_model.x"], "Stable Diffusion"),
        (["anything"], "--like"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_alone_say_whose_they_are(tmp_path, names, named, suffix):
    path, state = tmp_path / f"a file{suffix}", {name: torch.zeros(2) for name in names}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(UsageError, match=named) as refused:
        load_teacher(str(path))
    assert "teachers convert" not in str(refused.value) or f"'{path}'" in str(refused.value)


def test_weights_beside_their_description_name_its_folder(tiny_teacher_folder, copied):
    for file, folder in [
        (tiny_teacher_folder / "model.safetensors", tiny_teacher_folder), (copied / "unet" / WHOLE, copied),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=f"folder, {folder}"):
            load_teacher(str(file))


def test_one_variant_is_chosen_in_a_fixed_order():
    fp16, index = WHOLE.replace(".s", ".fp16.s"), f"{WHOLE}.index.json"
    assert chosen([fp16, WHOLE, index]).files == (WHOLE,)
    assert chosen([fp16, index]).patterns == (index, "diffusion_pytorch_model-*-of-*.safetensors")
    assert chosen([fp16, fp16.replace("fp16", "non_ema")]).variant == "fp16"
    assert (
        chosen(["diffusion_pytorch_model.safetensors.index.fp16.json"])
        .patterns[1]
        .startswith("diffusion_pytorch_model.fp16-*")
    )
    assert chosen(["README.md"]) is None


def test_the_variant_of_the_type_is_chosen_where_there_is_one():
    fp16, bf16, index = WHOLE.replace(".s", ".fp16.s"), WHOLE.replace(".s", ".bf16.s"), f"{WHOLE}.index.json"
    shards, plain = f"{WHOLE}.index.fp16.json", "diffusion_pytorch_model.bin"
    for dtype, names, first in [
        (torch.float16, [WHOLE, bf16, fp16], fp16), (torch.bfloat16, [WHOLE, bf16, fp16], bf16),
        (torch.float16, [WHOLE, index, shards], shards), (torch.bfloat16, [WHOLE, fp16], WHOLE),
        (torch.bfloat16, [index, fp16], index), (torch.bfloat16, [shards, fp16], fp16),
        (torch.float32, [fp16, plain], plain), (torch.float32, [index, WHOLE, fp16], WHOLE),
    ]:  # fmt: skip
        found = chosen(names, dtype)
        assert (found.index or found.files[0]) == first, (dtype, names)


@pytest.mark.parametrize(
    "name", ["hf:../x", "hf:a/../b", "hf:/etc/x", "hf:a/b@../../c", "hf:a/b/c", "hf:a b/c", "hf:-a/b"]
)
def test_repositories_are_names_and_no_paths(name):
    with pytest.raises(UsageError, match="hf:ORG/REPO"):
        parts(name)


def doubling(levels, last=b""):
    """A pickle of a tuple that holds itself twice, again and again."""
    return b"\x80\x04)" + b"2\x86" * levels + last


HOSTILE = {
    "a tuple that doubles, as a type's code": b"\x80\x04cnumpy\ndtype\n)" + b"2\x86" * 40 + b"\x85R.",
    "a tuple that doubles, as a key": b"\x80\x04}" + doubling(40)[2:] + b"Ns.",
    "integers that collide": b"\x80\x04}(" + b"".join(
        b"\x8a\x10" + ((k + 1) * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(50_000)
    ) + b"u.",
    "numbers with a point as keys": b"\x80\x04}G?\xf0\0\0\0\0\0\0Ns.",
    "tuples as keys": b"\x80\x04}K\x01K\x02\x86Ns.",
    "a long code again and again": b"\x80\x04\x8d" + struct.pack("<Q", 10**6) + b"f" * 10**6 + b"\x940"
    + b"cnumpy\ndtype\n\x94" + b"0" + b"h\x01h\x00\x85R0" * 10_000 + b"N.",
    "many arguments again and again": b"\x80\x04(" + b"N" * 100_000 + b"t\x940"
    + b"cnumpy.core.multiarray\n_reconstruct\n\x940"
    + b"h\x01h\x00R0" * 20_000 + b"N.",
    "an archive nested again and again": b"\x80\x04B" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"\x940"
    + b"ctorch.storage\n_load_from_bytes\n\x940" + b"h\x01h\x00\x85R0" * 1000 + b"N.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_small_files_cannot_ask_for_unbounded_work(name, tmp_path):
    path, began = tmp_path / "net.pkl", time.process_time()
    path.write_bytes(HOSTILE[name])
    with pytest.raises(Refused) as refused:
        read_foreign(path)
    assert time.process_time() - began < 20 and len(str(refused.value)) < 600


def test_a_tree_of_modules_that_doubles_is_not_walked_to_its_end():
    module = Instance("Leaf", {"_parameters": {}})
    for _ in range(30):
        module = Instance("Pair", {"_modules": {"a": module, "b": module}})
    began = time.process_time()
    with pytest.raises(Refused, match="entries"):
        weights(module)
    assert time.process_time() - began < 20


def test_a_storage_is_read_once_for_all_of_its_views():
    reads = []

    def read():
        reads.append(1)
        return bytes(4000)

    storage = Storage(torch.float32, 1000, read)
    views = {str(k): StoredTensor(storage, k, (1,), (1,)) for k in range(500)}
    assert len(load_tensors(views, 10_000)) == 500 and len(reads) == 1


def test_archives_with_endless_lists_of_members_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.models.foreign.torch_files.MOST_MEMBERS", 1)
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1), "b": torch.zeros(2)}, path)
    with pytest.raises(Refused, match="members"):
        check_members(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Refused, match="cut"):
        read_foreign(path)


def npz(**arrays):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def npy(value):
    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


def header(shape, kind="<f8"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


STATISTICS = {
    "another page": (b"<html>", "web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a shape that is not there": (npz(mu=header((10**6, 10**6)), sigma=npy(np.eye(2))), "mu"),
    "a bomb": (npz(mu=npy(np.zeros(3)), sigma=b"\0" * 3_000_000), "sigma"),
    "an object": (npz(mu=header((1,), "|O") + pickle.dumps([1]), sigma=npy(np.eye(1))), "mu"),
    "nothing": (npz(), "mu"),
    "other shapes": (npz(mu=npy(np.zeros(3)), sigma=npy(np.eye(2))), "fit"),
    "infinite": (npz(mu=npy(np.full(2, np.inf)), sigma=npy(np.eye(2))), "NaN or infinity"),
    "cut short": (npz(mu=npy(np.zeros(2)), sigma=npy(np.eye(2)))[:-40], "damaged"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_reference_statistics_that_are_none_are_one_message(name, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.evaluation.reference.LARGEST_ARRAY", 2_000_000)
    data, named = STATISTICS[name]
    (tmp_path / "ref.npz").write_bytes(data)
    with pytest.raises(DistillkitError, match=named) as refused:
        load_reference(tmp_path / "ref.npz", count=10)
    assert "ref.npz" in str(refused.value)


def test_reference_statistics_are_read_as_numpy_reads_them(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    np.savez(tmp_path / "ref.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    found = load_reference(tmp_path / "ref.npz", count=50)
    np.testing.assert_array_equal(found.mean.numpy(), rows.mean(0))
    np.testing.assert_array_equal(found.covariance.numpy(), np.cov(rows, rowvar=False))
