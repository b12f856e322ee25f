"""Streams of tar and parquet files: found by patterns, read by blocks from any filesystem, in an order of their own."""

import itertools
import threading
import tracemalloc
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import torch

from distillkit import ClassLabels, DistillkitError, PromptList, Prompts, SampleRNG, SourceJob, UsageError
from distillkit.data import remote, stream_files
from distillkit.data.addresses import expanded, files_at, is_pattern
from distillkit.data.config import DataConfig
from distillkit.data.files import open_images
from distillkit.data.images import ImageSource
from distillkit.data.remote import FileSystem, RemoteFile
from distillkit.data.stream_files import StreamedFiles
from distillkit.data.stream_index import Wanted, indexed
from distillkit.data.stream_tars import TarFormat
from distillkit.downloads import nothing_downloaded
from tests.conftest import HANG
from tests.data.cached import uses_are_noted
from tests.data.streams import Flaky, flaky, in_memory, packed, pictured
from tests.data.teachers import Letters, linear_teacher

CPU = torch.device("cpu")
LENGTHS = (3, 9, 1, 12, 7)
COUNT = sum(LENGTHS)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    yield
    fsspec.filesystem("memory").store.clear()


def source(path, teacher=None, batch=6, **config):
    teacher = teacher or linear_teacher((3, 8, 8), ClassLabels(classes=10))
    made = ImageSource(teacher, DataConfig(path=str(path), **{"workers": 0, **config}))
    made.batch = batch
    return made


def numbers_of(images):
    """By their first pixels, which tell them."""
    return ((images.sample[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def read(path, steps, batch=6, parts=1, **config):
    """The pictures of each step, of each of several processes one after the other."""
    opened = [source(path, batch=batch, **config).open(SourceJob(CPU)) for _ in range(parts)]
    share = batch // parts
    return [
        [
            numbers_of(stream.batch(SampleRNG(0), step, range(k * share, (k + 1) * share)))
            for k, stream in enumerate(opened)
        ]
        for step in steps
    ]


def test_tars_of_unequal_lengths_are_read_once_an_epoch_with_their_classes():
    stream = source(in_memory("a", LENGTHS, pictured(COUNT))).open(SourceJob(CPU))
    assert len(stream) == COUNT and "5 files with 1 to 12 samples" in stream.summary
    seen = []
    for step in range(2 * COUNT // 6 + 1):
        images = stream.batch(SampleRNG(0), step, range(6))
        numbers = numbers_of(images)
        assert images.condition["labels"].tolist() == [number % 10 for number in numbers]
        seen += numbers
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT : 2 * COUNT]) == list(range(COUNT))
    assert seen[:COUNT] != seen[COUNT : 2 * COUNT]


def test_one_process_two_and_a_resumed_run_read_the_same():
    path = in_memory("a", LENGTHS, pictured(COUNT))
    whole = [list(itertools.chain(*step)) for step in read(path, range(12))]
    halves = [list(itertools.chain(*step)) for step in read(path, range(12), parts=2)]
    assert halves == whole
    assert [step[0] for step in read(path, range(7, 12))] == whole[7:]
    assert [step[0] for step in read(path, range(12), workers=2)] == whole
    uses_are_noted("streams", lambda: read(path, range(1)))


def test_the_same_files_here_and_there_are_the_same_data(tmp_path):
    path = in_memory("a", LENGTHS, pictured(COUNT))
    for name, data in fsspec.filesystem("memory").cat("/a/*.tar").items():
        (tmp_path / name.rpartition("/")[2]).write_bytes(data)
    here, there = open_images(f"{tmp_path}/*.tar"), open_images(path)
    assert here.fingerprint == there.fingerprint and len(here) == COUNT
    assert list(here.captions) == list(there.captions) == [f"picture {k}" for k in range(COUNT)]
    assert read(f"{tmp_path}/0?.tar", range(5)) == read(path, range(5))
    in_memory("a", LENGTHS, pictured(COUNT, first=1))
    assert open_images(path).fingerprint != there.fingerprint, "other contents are other data"


def test_processes_share_the_budget_and_the_order(monkeypatch):
    monkeypatch.setattr(stream_files, "BUDGET", 2**16)
    files = StreamedFiles(in_memory("a", [100, 140], pictured(240)), Wanted())
    alone = files.arrange(8).numbers(SampleRNG(0), 3, range(8))
    order, most = files.arrange(8, processes=4), 0
    for step in range(30):
        for number in order.numbers(SampleRNG(0), step, range(2)).tolist():
            files.read(number)
            most = max(most, files.held_bytes)
    assert np.array_equal(order.numbers(SampleRNG(0), 3, range(8)), alone)
    assert 2 * files.block_bytes <= most <= 2**14


@pytest.mark.parametrize("kind", ["binary", "struct"])
def test_parquet_by_row_groups(kind):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    samples = pictured(COUNT)
    images = [s["png"] if kind == "binary" else {"bytes": s["png"], "path": "/etc/passwd"} for s in samples]
    table = pa.table(
        {"image": images, "caption": [s["txt"].decode() for s in samples], "label": [k % 10 for k in range(COUNT)]}
    )
    system = fsspec.filesystem("memory")
    for number, (start, rows) in enumerate([(0, 20), (20, COUNT - 20)]):
        with system.open(f"/p/{number}.parquet", "wb") as file:
            pq.write_table(table.slice(start, rows), file, row_group_size=5)
    files = open_images("memory://p/*.parquet")
    assert len(files) == COUNT and list(files.captions)[21] == "picture 21" and files.labels[13] == 3
    seen = list(itertools.chain(*itertools.chain(*read("memory://p/*.parquet", range(COUNT // 4), batch=4))))
    assert sorted(seen) == list(range(COUNT))


def test_what_fails_now_and_then_is_tried_again():
    path = in_memory("a", LENGTHS, pictured(COUNT)).replace("memory://", "flaky://")
    flaky(every=0)
    good = read(path, range(8))
    flaky(every=3)
    said = []
    stream = source(path).open(SourceJob(CPU, say=said.append))
    again = [[numbers_of(stream.batch(SampleRNG(0), step, range(6)))] for step in range(8)]
    assert again == good and Flaky.failures > 3
    told = next(line for line in said if "trying again" in line)
    assert "flaky://a/0" in told and "ConnectionResetError" in told and "secret" not in told


def test_what_stays_impossible_is_one_message_with_the_address():
    path = in_memory("a", LENGTHS, pictured(COUNT)).replace("memory://", "flaky://")
    flaky(every=0)
    stream = source(path).open(SourceJob(CPU))
    flaky(every=1)
    with pytest.raises(
        DistillkitError, match=r"flaky://a/0\d.tar cannot be read .* after 6 tries: ConnectionReset"
    ) as failed:
        for step in range(9):
            stream.batch(SampleRNG(0), step, range(6))
    assert "\n" not in str(failed.value)
    Flaky.every = 0
    assert stream.batch(SampleRNG(0), 0, range(6)).sample.shape == (6, 3, 8, 8), "a later try is not held against it"


def test_too_few_bytes_are_asked_for_again_and_too_many_refused(monkeypatch):
    path = in_memory("a", [3], pictured(3))
    file = open_images(path).files[0]
    system, real, short = file.filesystem.system, type(file.filesystem.system).cat_file, [3, 2]

    def cut(self, where, start=None, end=None):
        return real(self, where, start=start, end=end)[: short.pop() if short else None]

    monkeypatch.setattr(type(system), "cat_file", cut)
    assert len(file.read(0, 1000)) == 1000 and not short
    monkeypatch.setattr(type(system), "cat_file", lambda self, where, start=None, end=None: real(self, where))
    with pytest.raises(DistillkitError, match="the whole file where a part of it is asked for"):
        file.read(0, 1000)


def test_what_is_known_of_a_file_is_in_its_fingerprint():
    (known,) = [indexed(TarFormat(), file, Wanted()) for file in open_images(in_memory("a", [9], pictured(9))).files]
    digests = {known.digest()}
    for name, place in (("places", (4, 1)), ("labels", 4), ("ends", 4), ("texts", 40)):
        changed = getattr(known, name).copy()
        changed[place] += 1
        digests.add(replace(known, **{name: changed}).digest())
    digests.add(replace(known, head=known.head + 1).digest())
    assert len(digests) == 6


def test_files_are_indexed_once():
    path = in_memory("a", LENGTHS, pictured(COUNT)).replace("memory://", "flaky://")
    flaky(every=0)
    said = []
    job = SourceJob(CPU, say=said.append)
    StreamedFiles(path, Wanted(), job)
    assert "5 new files" in said[0] and Flaky.reads >= 5
    flaky(every=0)
    StreamedFiles(path, Wanted(), job)
    assert len(said) == 1 and Flaky.reads == 0


def test_a_plan_reads_nothing_of_a_remote_that_is_not_known_yet():
    path = in_memory("a", LENGTHS, pictured(COUNT)).replace("memory://", "flaky://")
    flaky(every=0)
    with nothing_downloaded() as needed, pytest.raises(DistillkitError, match="has been read once"):
        source(path).plan()
    assert needed.names == [path] and Flaky.reads == 0
    source(path).check()
    with nothing_downloaded():
        assert f"{COUNT} images" in source(path).plan().summary


def test_little_is_in_memory_whatever_the_size(monkeypatch):
    """Twenty megabytes of samples through a budget of one; bytes are counted by Python as well."""
    monkeypatch.setattr(stream_files, "BUDGET", 2**20)
    noise = np.random.default_rng(0)
    samples = [{"png": data["png"] + noise.bytes(20_000), "cls": b"1"} for data in pictured(20)] * 50
    path = in_memory("big", [300, 500, 200], samples)
    files = StreamedFiles(path, Wanted())
    order = files.arrange(16)
    assert 2 * order.lanes * files.block_bytes <= 2**20
    del samples
    most, reads = 0, 0
    files.read(0)
    tracemalloc.start()
    for step in range(len(files) // 16):
        numbers = order.numbers(SampleRNG(0), step, range(16)).tolist()
        files.ahead(numbers)
        for number in numbers:
            assert len(files.read(number)) > 20_000
            reads += 1
        most = max(most, files.held_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reads == 992 and 2**18 < most <= 2**20, "some blocks are held, and never more than the budget"
    assert peak < 4 * 2**20


def test_each_block_is_read_about_once(monkeypatch):
    path = in_memory("a", [60] * 4, pictured(240)).replace("memory://", "flaky://")
    flaky(every=0)
    files = StreamedFiles(path, Wanted())
    order = files.arrange(8)
    flaky(every=0)
    for step in range(240 // 8):
        for number in order.numbers(SampleRNG(0), step, range(8)).tolist():
            files.read(number)
    blocks = len(files.blocks)
    assert blocks <= len(Flaky.ranges) <= blocks + 8 and blocks < 240 / 4


class Ranges(BaseHTTPRequestHandler):
    content: ClassVar[dict[str, bytes]] = {}
    faults: ClassVar[list[int]] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        data = self.content.get(self.path.partition("?")[0])
        if body and self.faults:
            self.send_error(self.faults.pop())
            return
        if data is None:
            self.send_error(404)
            return
        first, last = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}")
        else:
            self.send_response(200)
        part = data[first : last + 1]
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *ignored):
        pass


def test_a_web_server(monkeypatch):
    pytest.importorskip("aiohttp")
    samples = pictured(10)
    monkeypatch.setattr(Ranges, "content", {"/0.tar": packed(samples[:4]), "/1.tar": packed(samples[4:], 4)})
    monkeypatch.setattr(Ranges, "faults", [503, 500])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        where = f"http://127.0.0.1:{server.server_port}"
        seen = read(f"{where}/{{0..1}}.tar?token=secret", range(2), batch=5)
        assert sorted(itertools.chain(*itertools.chain(*seen))) == list(range(10))
        assert "secret" not in source(f"{where}/{{0..1}}.tar?token=secret").plan().summary
        with pytest.raises(UsageError, match=r"/2.tar: there is no such file"):
            source(f"{where}/{{0..2}}.tar").check()
    finally:
        server.shutdown()
        server.server_close()


def test_patterns():
    assert list(expanded("s3://b/{08..11}-{a,b}.tar"))[:3] == ["s3://b/08-a.tar", "s3://b/08-b.tar", "s3://b/09-a.tar"]
    assert is_pattern("s3://b/x.tar") and is_pattern("x/*.tar") and is_pattern("x/{0..3}.tar") and is_pattern("hf://x")
    assert not is_pattern("photos") and not is_pattern("hf:ORG/NAME") and not is_pattern("C:/photos")
    for pattern in ("{0..999999999}.tar", "{9..1}.tar", "{x}.tar"):
        with pytest.raises(UsageError, match=r"braces|upwards"):
            list(expanded(pattern))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://bucket/{0..3}.tar", "pip install s3fs"),
        ("nonsense://a/b.tar", "nonsense://"),
        ("memory://nothing/*.tar", "nothing that it names"),
        ("memory://nothing/{0..3}.tar", "memory://nothing/0.tar: there is no such file"),
        ("memory://kinds/{a.tar,b.zip}", "these are of .tar, .zip"),
        ("memory://kinds/b.zip", "of .zip"),
    ],
)
def test_addresses_that_lead_nowhere(path, said):
    fsspec.filesystem("memory").pipe({"/kinds/a.tar": b"", "/kinds/b.zip": b""})
    with pytest.raises(UsageError) as refused:
        source(path).check()
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_streams_refuse_balanced_classes_and_other_sizes():
    path = in_memory("a", [6], pictured(6))
    with pytest.raises(UsageError, match="balanced"):
        source(path, sampling="balanced").check()
    with pytest.raises(UsageError, match="--data-resolution 16"):
        source(path, linear_teacher((3, 16, 16))).check()
    with pytest.raises(UsageError, match="--data-latents-scaled is for data that hold latents"):
        source(path, latents_scaled="yes").check()


def test_captions_are_the_prompts_of_a_text_teacher():
    teacher = linear_teacher((3, 8, 8), Prompts(encoder=Letters()))
    made = source(in_memory("a", LENGTHS, pictured(COUNT)), teacher)
    assert isinstance(made.prompts, PromptList) and len(made.prompts) == COUNT
    teacher.conditioner = teacher.conditioner.with_prompts(made.prompts)
    images = made.open(SourceJob(CPU)).batch(SampleRNG(0), 3, range(6))
    texts = [f"picture {number}" for number in numbers_of(images)]
    expected = teacher.conditioner.encode(teacher.conditioner.parse(texts))
    assert torch.equal(images.condition["text"], expected["text"])


def test_many_files_are_asked_for_at_one_time_and_too_many_not_at_all(monkeypatch):
    together = threading.Barrier(4)

    def size(self, path):
        together.wait(HANG)
        return RemoteFile(self, path, 1024, {})

    monkeypatch.setattr(FileSystem, "file", size)
    found = [file.path.rpartition("/")[2] for file in files_at("memory://x/{0..7}.tar")]
    assert found == [f"{number}.tar" for number in range(8)]
    monkeypatch.setattr(FileSystem, "file", lambda self, path: pytest.fail("asked for"))
    with pytest.raises(UsageError, match="more than 100,000 files"):
        files_at("memory://x/{0..99999}/{0..99999}.tar")
