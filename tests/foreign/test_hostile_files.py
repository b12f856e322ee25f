"""Files made to do harm: nothing runs, time and memory stay bounded, one message names the reason."""

import contextlib
import io
import os
import pickle
import struct
import sys
import time
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillkit import DistillkitError
from distillkit.models.foreign.allowed import ALLOWED
from distillkit.models.foreign.pickles import read_pickle
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Refused, StoredTensor, load_tensors
from distillkit.models.store.convert import convert
from tests.conftest import HANG, denoiser_of, environment
from tests.foreign.edm_format import edm_kwargs, network_bytes

CANARY = "touch canary"


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def stored_zip(data: bytes, **options) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
    return out.getvalue()


def torch_bytes(value, *, zipped=True) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def nested(blob: bytes) -> bytes:
    return b"\x80\x04ctorch.storage\n_load_from_bytes\n" + b"B" + struct.pack("<I", len(blob)) + blob + b"\x85R."


def legacy_with(pickled: bytes) -> bytes:
    """A torch.save stream of the older kind whose object is `pickled`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled + pickle.dumps([], protocol=2)


GLOBAL_SYSTEM = b"\x80\x04cposix\nsystem\n\x8c\x0ctouch canary\x85R."
HOSTILE = {
    "os.system": (pickle.dumps(Call(os.system, CANARY)), "posix.system"),
    "builtins.eval": (pickle.dumps(Call(eval, "__import__('os').system('touch canary')")), "builtins.eval"),
    "exec, protocol 0": (pickle.dumps(Call(exec, "open('canary','w')"), protocol=0), "not a pickle"),
    "getattr": (pickle.dumps(Call(getattr, "x", "upper")), "builtins.getattr"),
    "import by dotted name": (b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01/\x85R.", "os.path.exists"),
    "popped call": (GLOBAL_SYSTEM[:-1] + b"0N.", "posix.system"),
    "call inside a list": (pickle.dumps({"ema": [Call(os.system, CANARY)]}), "posix.system"),
    "INST": (b"\x80\x04(\x8c\x0ctouch canaryiposix\nsystem\n.", "INST"),
    "OBJ": (b"\x80\x04(ccollections\nOrderedDict\no.", "OBJ"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
    "allowed name, wrong use": (b"\x80\x04cnumpy\nndarray\n)R.", "numpy.ndarray"),
    "BUILD on a dict subclass": (b"\x80\x04]}b.", "list"),
    "torch.load inside": (pickle.dumps(Call(torch.load, "x")), "torch.serialization.load"),
    "in a nested archive": (nested(legacy_with(GLOBAL_SYSTEM)), "posix.system"),
    "nested in nested": (nested(legacy_with(nested(b"x"))), "nested archive"),
    "in a torch archive": (stored_zip(GLOBAL_SYSTEM), "posix.system"),
    "in an old torch file": (legacy_with(GLOBAL_SYSTEM), "posix.system"),
    "compressed archive": (stored_zip(b"0" * 10**6, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "zip of something else": (stored_zip(b"").replace(b"data.pkl", b"data.txt"), "not one of torch.save"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + b"\0" * 64, "archive"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 64, "gunzip"),
    "empty": (b"", "empty"),
    "text": (b"hello world", "not a pickle"),
    "no end": (b"\x80\x04N", "damaged"),
    "empty stack": (b"\x80\x04.", "damaged"),
    "unknown opcode": (b"\x80\x04\xff.", "damaged"),
    "protocol 9": (b"\x80\x09N.", "protocol 9"),
    "memo of 2^31": (b"\x80\x04Nr\xff\xff\xff\x7f.", "plain value"),
    "10 GB of bytes claimed": (b"\x80\x04\x8e" + struct.pack("<Q", 10 * 2**30) + b"x.", "damaged"),
    "2^62 bytes claimed": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
    "10 GB of text claimed": (b"\x80\x04\x8d" + struct.pack("<Q", 10 * 2**30) + b"x.", "damaged"),
    "10 GB bytearray claimed": (b"\x80\x05\x96" + struct.pack("<Q", 10 * 2**30) + b"x.", "damaged"),
    "huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.", "plain value"),
    "huge integer": (b"\x80\x04\x8b" + struct.pack("<I", 10**6) + b"\x01" * 10**6 + b".", "128 bits"),
    "too many opcodes": (b"\x80\x04" + b"N0" * 1_100_000 + b"N.", "opcodes"),
    "deep nesting as a key": (b"\x80\x04}" + b")" + b"\x85" * 200_000 + b"Ns.", "used as a key"),
    "list as key": (b"\x80\x04}]Ns.", "used as a key"),
    "safetensors header of 2^63": (struct.pack("<Q", 2**63) + b'{"a"', "not a pickle"),
    "safetensors, overlapping": (
        struct.pack("<Q", 130) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(130 - 53) + b"\0" * 8, "safetensors",
    ),
    "safetensors, out of range": (
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60) + b"\0" * 8,
        "safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_little_time_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, reason = HOSTILE[name]
    path = tmp_path / "net.pkl"
    path.write_bytes(data)
    began = time.process_time()
    if reason == "plain value":
        assert read_foreign(path).value is None
    else:
        with pytest.raises(Refused) as refused:
            read_foreign(path)
        message = str(refused.value)
        assert reason in message and str(path) in message and "Nothing in the file was run" in message
        assert len(message) < 600
    assert time.process_time() - began < 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pkl"], "something was executed"


def test_the_list_of_allowed_globals_is_what_it_is():
    """A change here is a decision: every entry is an inert record of this project's own."""
    modules = {name.rpartition(".")[0] for name in ALLOWED}
    assert modules == {
        "collections", "dnnlib.util", "torch", "torch._utils", "torch.nn.modules.container", "torch_utils.persistence",
        "numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric",
        "builtins", "__builtin__", "argparse",
    }  # fmt: skip
    for allowed in ALLOWED.values():
        for function in (allowed.call, allowed.new):
            assert function is None or function.__module__.startswith("distillkit.")


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((50_000, 50_000), (0, 0), 0),
        ((5,), (1,), 0),
        ((2,), (1,), 3),
        ((2, 2), (4, 1), 0),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((2,), (1,), -1),
        ((2**62,), (1,), 0),
        ((2.0,), (1,), 0),
        ((1,) * 9, (1,) * 9, 0),
        ((2,), (1, 1), 0),
    ],
)
def test_tensor_that_claims_more_than_is_stored_is_refused(shape, stride, offset):
    from distillkit.models.foreign.records import Storage

    storage = Storage(torch.float32, 4, lambda: bytes(16))
    assert StoredTensor(storage, 0, (2, 2), (1, 2)).load().tolist() == [[0, 0], [0, 0]]
    with pytest.raises(Refused):
        StoredTensor(storage, offset, shape, stride)


def test_views_of_one_storage_cannot_fill_the_memory():
    from distillkit.models.foreign.records import Storage

    storage = Storage(torch.float32, 1000, lambda: bytes(4000))
    views = {str(k): StoredTensor(storage, 0, (1000,), (1,)) for k in range(1000)}
    with pytest.raises(Refused, match="claim"):
        load_tensors(views, 10_000)


@pytest.mark.parametrize("zipped", [True, False])
def test_storage_that_claims_10_gigabytes_is_refused(zipped, tmp_path):
    data = torch_bytes({"a": torch.arange(1000.0)}, zipped=zipped)
    # The count of the storage in its persistent id, and the tensor's size.
    assert data.count(b"M\xe8\x03") >= 2
    huge = data.replace(b"M\xe8\x03", b"\x8a\x05" + struct.pack("<Q", 2_500_000_000)[:5])
    if zipped:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickled = archive.read("archive/data.pkl")
        huge = stored_zip(pickled.replace(b"M\xe8\x03", b"\x8a\x05" + struct.pack("<Q", 2_500_000_000)[:5]))
    (tmp_path / "w.pt").write_bytes(huge)
    with pytest.raises(Refused, match="claim"):
        read_foreign(tmp_path / "w.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_refusals_stay_within_little_memory(tmp_path, warm):
    """All bombs in one process that may use 1.5 GiB beyond what importing takes."""
    for index, (data, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{index}.pkl").write_bytes(data)
    program = f"""
import resource, pathlib
from distillkit.models.foreign.read import read_foreign
from distillkit import DistillkitError
import distillkit.models.foreign.records
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**29, used + 3 * 2**29))
refused = 0
for path in sorted(pathlib.Path({str(tmp_path)!r}).glob("*.pkl")):
    try:
        read_foreign(path)
    except DistillkitError:
        refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = warm.run([sys.executable, "-c", program], tmp_path, environment(), HANG)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) == sum(reason != "plain value" for _, reason in HOSTILE.values())
    assert not (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def real(golden, tmp_path_factory):
    """A whole network pickle, which converts as long as it is not damaged."""
    reference = golden("edm_adm_small")
    constructor = reference.description["constructor"]
    denoiser = denoiser_of({**constructor, "model_channels": 8, "num_blocks": 1})
    data = network_bytes(denoiser, edm_kwargs({**constructor, "model_channels": 8, "num_blocks": 1}))
    path = tmp_path_factory.mktemp("real") / "x.pkl"
    path.write_bytes(data)
    convert(path, path.with_name("out"), name="x")
    return data


FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read_or_refuse(path):
    """Whatever the bytes are, reading ends with a value or with the one kind of error that users see."""
    with contextlib.suppress(DistillkitError):
        convert(path, path.with_name("out"), name="x")
    assert not path.with_name("canary").exists()


@given(data=st.binary(max_size=400), head=st.sampled_from([b"\x80\x04", b"\x80\x02", b"PK\x03\x04", b""]))
@FUZZ
def test_random_bytes(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp("fuzz") / "x.pkl"
    path.write_bytes(head + data)
    read_or_refuse(path)


@given(st.data())
@FUZZ
def test_damaged_network_pickles(tmp_path_factory, real, data):
    damaged = bytearray(real)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "copy"]))
        if kind == "flip":
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut" and place:
            del damaged[place:]
        elif kind == "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            other = data.draw(st.integers(0, len(damaged) - 1))
            damaged[place:place] = damaged[other : other + 40]
    path = tmp_path_factory.mktemp("fuzz") / "x.pkl"
    path.write_bytes(damaged)
    read_or_refuse(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-(2**59), 2**59), inner)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    """The interpreter agrees with Python's own unpickler on everything that is only data."""
    data = pickle.dumps(value, protocol=protocol)
    assert read_pickle(io.BytesIO(data)) == value
