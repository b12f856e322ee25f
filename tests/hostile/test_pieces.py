"""Files that say they hold pieces of tensors: untrusted offsets, names and lists."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.saved import sealed
from distillkit.errors import DistillkitError
from distillkit.pieces import PLACES, Part, held_in, places_of
from distillkit.students.checkpoints import State, groups_of
from distillkit.tensors import stream_tensors

WHOLE = torch.arange(20.0).reshape(5, 4)


def write(path, tensor, places):
    save_file({"w": tensor.contiguous()}, path, {PLACES: places if isinstance(places, str) else json.dumps(places)})
    return path


def place(*offset, shape=(5, 4)):
    return {"w": {"saved_offsets": list(offset), "shape": list(shape)}}


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"s-{k}.safetensors", WHOLE[k : k + 2], place(k, 0)) for k in (0, 2, 4)]


def test_pieces_are_one_tensor_again(files):
    held = held_in(files)["w"]
    assert torch.equal(held.read(), WHOLE) and held.shape == (5, 4)
    target = torch.zeros(5, 4, dtype=torch.float64).t().contiguous().t()
    held.read_into(target)
    assert torch.equal(target, WHOLE.double())


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (place(4, 0), "lies outside of its tensor"),
        (place(0, 0, 0), "lies outside"),
        (place(0, 1), "lies outside"),
        (place(2, 0, shape=(6, 4)), r"has shape \[6, 4\]"),
        (place(1, 0), "overlaps that in"),
        (place(-1, 0), "greater than or equal to 0"),
        (place(2**60, 0), "less than or equal"),
        (place(*[0] * 40), "at most 16"),
        (place(True, 0), "valid integer"),
        ({"w": {"saved_offsets": [0, 0], "shape": [5, 4], "file": "../../x"}}, "Extra inputs"),
        ({"w": {"saved_offsets": [0, 0]}}, "shape"),
        ([1], "valid dictionary"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "levels|valid JSON|values"),
        ({}, r"has shape \[2, 4\]"),
    ],
)
def test_places_that_cannot_be_are_named_with_their_file(files, places, said):
    write(files[1], WHOLE[2:4], places)
    with pytest.raises(DistillkitError, match=said) as refused:
        held_in(files)
    assert "s-" in str(refused.value) and len(str(refused.value)) < 2000


def test_what_is_missing_is_counted(files):
    with pytest.raises(DistillkitError, match="12 of its 20 numbers"):
        held_in(files[::2])
    files[1].unlink()
    with pytest.raises(DistillkitError, match=r"s-2\.safetensors"):
        held_in(files)


def test_a_type_that_differs_is_refused(files):
    write(files[1], WHOLE[2:4].half(), place(2, 0))
    with pytest.raises(DistillkitError, match="float16"):
        held_in(files)


def test_a_huge_tensor_of_which_little_is_there_is_never_made(tmp_path):
    path = write(tmp_path / "s.safetensors", WHOLE, place(0, 0, shape=(2**40, 4)))
    with pytest.raises(DistillkitError, match="20 of its 4,398,046,511,104 numbers"):
        held_in([path])


def test_columns_and_scalars_and_what_overlaps_in_one_corner(tmp_path):
    halves = [write(tmp_path / f"c-{k}.safetensors", WHOLE[:, k : k + 2], place(0, k)) for k in (0, 2)]
    assert torch.equal(held_in(halves)["w"].read(), WHOLE)
    write(halves[1], WHOLE[4:, 1:], place(4, 1))
    with pytest.raises(DistillkitError, match="overlaps"):
        held_in(halves)
    ones = [write(tmp_path / f"1-{k}.safetensors", torch.ones(()), place(shape=())) for k in (0, 1)]
    assert held_in(ones[:1])["w"].read() == 1
    with pytest.raises(DistillkitError, match="overlaps"):
        held_in(ones)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "int64", "uint8", "bool", "complex64"])
def test_streamed_files_are_safetensors(tmp_path, dtype):
    kind = getattr(torch, dtype)
    tensors = {"a": torch.ones(3, 2).to(kind), "b": torch.zeros(()).to(kind), "c": torch.ones(0, 2).to(kind),
               "d": torch.ones(2, 3).t().to(kind), "é": torch.ones(1, dtype=torch.uint8)}  # fmt: skip
    path = tmp_path / "x.safetensors"
    sha = stream_tensors(path, tensors, {"format": "pt"})
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert all(read[name].dtype == tensors[name].dtype for name in tensors)
    import hashlib

    assert sha == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["s-00001-of-00003", "s-00003-of-00003"], "s-00002-of-00003"),
        (["s-00002-of-00002"], "s-00001-of-00002"),
        (["s-00001-of-00001", "s"], "fit together"),
        (["s-00000-of-00002", "s-00001-of-00002", "s-00002-of-00002"], "fit together"),
        (["s", "s-00001-of-00002", "s-00002-of-00002"], "fit together"),
        (["s-00001-of-00002", "s-00002-of-00003"], "s-00002-of-00002"),
        (["s-00001-of-99999"], "s-00002-of-99999"),
        (["s-00001-of-00000"], "fit together"),
    ],
)  # fmt: skip
def test_lists_of_files_that_are_not_whole_are_named(names, said):
    state = State(step=1, values={}, sha256={f"{name}.safetensors": "0" * 64 for name in names})
    with pytest.raises(DistillkitError, match=re.escape(said)):
        groups_of(state)


def test_a_checkpoint_with_a_bad_place_is_passed_over(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"student": {"w": WHOLE}}, {})
        checkpoints.wait()
    path = tmp_path / "step-000000002" / "student.safetensors"
    sha = stream_tensors(path, {"w": WHOLE[:2]}, {PLACES: json.dumps(place(4, 0))})
    state = {"step": 2, "values": {}, "sha256": {path.name: sha}}
    (path.parent / "state.json").write_bytes(sealed(state))
    assert checkpoints.load().step == 1
    assert "lies outside" in caplog.text and str(path) in caplog.text


def test_whole_tensors_need_no_places():
    assert places_of({"w": Part.whole(WHOLE)}) == {}
    assert json.loads(places_of({"w": Part(WHOLE[:2], (0, 0), (5, 4))})[PLACES]) == place(0, 0)
