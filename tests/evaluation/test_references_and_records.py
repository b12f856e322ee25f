"""References and records: read from every format, refused when they do not hold together."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillkit import DistillkitError, UsageError
from distillkit.evaluation.compare import compare
from distillkit.evaluation.presets import OwnMeasure, load_measure, presets
from distillkit.evaluation.protocol import ExtractorSpec, Protocol, ReferenceSpec
from distillkit.evaluation.record import Figure, Quoted, Record, Subject, digest_of, read_record, schema, write_record
from distillkit.evaluation.reference import Reference, load_reference, save_reference


def digits_protocol(count=5000, first_seed=0):
    return load_measure("digits8", count=count, first_seed=first_seed).protocol


MU = np.arange(4.0)
SIGMA = np.eye(4) + 0.5


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_reference_formats_hold_the_same_numbers(tmp_path):
    ours = Reference("x", 100, torch.from_numpy(MU), torch.from_numpy(SIGMA), torch.randn(3, 4))
    save_reference(tmp_path / "a.safetensors", ours)
    (tmp_path / "c.pkl").write_bytes(
        pickle.dumps({"fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": MU, "sigma": SIGMA}})
    )
    found = [
        load_reference(tmp_path / "a.safetensors"),
        load_reference(npz(tmp_path / "b.npz", mu=MU, sigma=SIGMA), name="x", count=100),
        load_reference(tmp_path / "c.pkl", name="x", count=100, key="fd_dinov2"),
    ]
    assert len({reference.spec for reference in found}) == 1
    assert torch.equal(found[0].features, ours.features)
    torch.testing.assert_close(found[0].root @ found[0].root, found[0].covariance)


WRONG = {
    "absent": (lambda p: p, "no reference statistics"),
    "not an archive": (lambda p: p.write_bytes(b"PK\x03\x04 torn"), "damaged"),
    "no sigma": (lambda p: npz(p, mu=MU), "damaged or holds no"),
    "objects inside": (lambda p: npz(p, mu=MU, sigma=np.array([{}], dtype=object)), "damaged"),
    "shapes": (lambda p: npz(p, mu=MU, sigma=np.eye(3)), "do not fit"),
    "NaN": (lambda p: npz(p, mu=MU * np.nan, sigma=SIGMA), "NaN"),
    "not symmetric": (lambda p: npz(p, mu=MU, sigma=np.triu(SIGMA)), "not symmetric"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_references_are_named(name, tmp_path):
    make, fragment = WRONG[name]
    path = tmp_path / "r.npz"
    make(path)
    with pytest.raises(DistillkitError, match=fragment):
        load_reference(path, count=10)


def test_hostile_reference_pickles_execute_nothing(tmp_path):
    (tmp_path / "r.pkl").write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x0ctouch canary\x85R.")
    with pytest.raises(DistillkitError, match=r"posix\.system"):
        load_reference(tmp_path / "r.pkl", count=10)
    with pytest.raises(DistillkitError, match="of how many images"):
        load_reference(npz(tmp_path / "n.npz", mu=MU, sigma=SIGMA))


def record(name="a", value=1.0, loo=(), nfe=1.0, **protocol) -> Record:
    made = digits_protocol(**protocol) if protocol else digits_protocol()
    figure = Figure(value=value, estimator="frechet@1", leave_one_out=tuple(loo))
    return Record(
        subject=Subject(kind="student", name=name), protocol=made, protocol_id=made.id, label=made.label,
        figures={made.label: figure}, nfe=nfe, seconds=1.0,
    )  # fmt: skip


def test_records_round_trip_and_any_edit_is_noticed(tmp_path):
    path = tmp_path / "r.json"
    written = write_record(path, record())
    assert read_record(path) == written
    original = json.loads(path.read_text())
    edits = [
        (["figures", written.label, "value"], 0.5, "digest"),
        (["subject", "name"], "better", "digest"),
        (["protocol", "samples", "count"], 6000, "protocol hashes to"),
        (["protocol_id"], "p1-0000000000000000", "protocol hashes to"),
        (["label"], "FID-5000", "protocol hashes to"),
        (["nfe"], -1, "nfe"),
        (["extra"], 1, "extra"),
        (["format"], 1, "format"),
        (["kind"], "guessed", "kind"),
    ]
    for place, value, fragment in edits:
        body = json.loads(json.dumps(original))
        inner = body
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(body))
        with pytest.raises(DistillkitError, match=fragment):
            read_record(path)
    for text in ("", "{", "[]", "null", '{"format": 2}'):
        path.write_text(text)
        with pytest.raises(DistillkitError, match="record"):
            read_record(path)
    with pytest.raises(UsageError, match="no such record"):
        read_record(tmp_path / "absent.json")


def test_the_shipped_schema_is_the_models():
    from importlib.resources import files

    shipped = json.loads((files("distillkit.evaluation") / "record.schema.json").read_text())
    assert shipped == json.loads(json.dumps(schema())), "write it anew: python tools/record_assets.py"


@given(st.integers(2, 10**6), st.integers(0, 10**9))
def test_every_field_of_a_protocol_is_in_its_identity(count, seed):
    base = digits_protocol()
    other = digits_protocol(count, seed)
    assert (base.id == other.id) == (base == other)
    assert base.model_copy(update={"name": "other"}).id == base.id
    for line in base.differences(other):
        assert line.startswith(("samples.count", "samples.first_seed"))


def test_protocols_keep_the_ids_of_version_0_1():
    assert digits_protocol().id == "p1-cca1b1ba9845f578" and digits_protocol().label == "FD[digits8cnn/fc64]-5000"
    prompts = digits_protocol().samples.model_copy(update={"prompts_sha256": "0" * 64})
    assert digits_protocol().model_copy(update={"samples": prompts}).id != digits_protocol().id


def test_fields_that_came_later_do_not_break_the_digest(tmp_path):
    written = write_record(tmp_path / "r.json", record())
    body = json.loads((tmp_path / "r.json").read_text())
    for name in ("remarks", "images_per_second"):
        del body[name]
    del body["protocol"]["samples"]["prompts_sha256"]
    body["digest"] = digest_of(body)
    (tmp_path / "r.json").write_text(json.dumps(body))
    assert read_record(tmp_path / "r.json").figures == written.figures


def test_figures_are_written_with_their_errors():
    assert Figure(value=0.0010586, estimator="x", standard_error=0.00021).text == "0.00106 ± 0.00021"
    assert Figure(value=12.3456789, estimator="x").text == "12.35"


def test_only_the_inception_network_makes_an_fid():
    def label(sha, name="inception-2015-12-05/pool3"):
        base = digits_protocol()
        extractor = ExtractorSpec(id=name, weights_sha256=sha, dim=2048, input="x")
        return Protocol(name="x", extractor=extractor, samples=base.samples, reference=base.reference).label

    real = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    assert label(real) == "FID-5000"
    assert label("0" * 64) == "FD[inception-2015-12-05/pool3]-5000", "the name alone is no claim"
    assert label(real, "inception-2015-12-05/logits") == "FD[inception-2015-12-05/logits]-5000"
    with pytest.raises(ValueError, match="sha256"):
        ReferenceSpec(id="x", sha256="short", count=10)


def test_comparison_pairs_seeds_and_refuses_to_mix_protocols():
    noise = [0.01 * k for k in range(10)]
    a, b = record("a", 1.0, [1 + n for n in noise]), record("b", 1.5, [1.5 + n for n in noise])
    quoted = Quoted(kind="quoted", name="paper", label="FID-50k", value=2.62, protocol="unknown", source="Table 1")
    (table,), apart = compare([b, a, quoted])
    assert [line.record.subject.name for line in table.lines] == ["a", "b"] and apart == [quoted]
    assert table.lines[1].difference == 0.5 and table.lines[1].difference_error == pytest.approx(0, abs=1e-12)
    other = record("c", 0.1, count=400)
    with pytest.raises(UsageError, match=r"samples\.count: 400, not 5000"):
        compare([a, b, other])
    grouped, _ = compare([a, b, other], group=True)
    assert [len(t.lines) for t in grouped] == [2, 1]


def test_shipped_protocols_are_whole():
    assert {
        "digits8",
        "edm-cifar10",
        "edm-imagenet64",
        "adm-imagenet64",
        "dmd2-coco30k",
        "coco30k",
        "fd-dinov2",
    } <= set(presets())
    assert any(name.startswith("clean-") for name in presets())
    for name, preset in presets().items():
        assert preset.name == name and preset.title
        assert isinstance(preset, OwnMeasure) or not preset.reference.url or preset.reference.file
