"""The door for JSON, YAML and safetensors: whatever the bytes are, one message in little time, or plain values."""

import json
import os
import struct
import time

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from safetensors.torch import save

from distillkit.data.labels import read_labels
from distillkit.errors import DistillkitError
from distillkit.evaluation.features import Kept
from distillkit.files import read_recorded, slug, write_tensors
from distillkit.names import name_from, plain_name
from distillkit.reading import (
    DEEPEST,
    MOST_VALUES,
    Missing,
    Unreadable,
    check_format,
    json_lines,
    parse_json,
    parse_yaml,
    read_bytes,
    read_mapping,
    read_text,
    typed_values,
    validated,
)
from distillkit.tensors import mapped_tensors, parse_tensors, read_tensors
from distillkit.text import printable, redacted, short

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGES = (b"<!DOCTYPE html><html>", b"\n <html lang=en>", b"<?xml version='1.0'?>", b"\xef\xbb\xbf<!doctype HTML>")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"a": {"b": [1, NaN]}}', "a.b.1"),
        (b'{"a": -Infinity}', "a: "),
        (b'{"a": 1e999}', "a: "),
        (b'{"a": 1' + b"0" * 40 + b"}", "64 bits"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "digits"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": "\\ud800"}', "a: "),
        (b'{"\\ud800": 1}', "a key"),
        (b"[" * 100_000, str(DEEPEST)),
        (b"[" * 70 + b"]" * 70, str(DEEPEST)),
        (b'{"a":' * 70 + b"1" + b"}" * 70, str(DEEPEST)),
        (b"[" + b"0," * MOST_VALUES + b"0]", f"{MOST_VALUES:,}"),
        (b'{"a": \xff}', "UTF-8"),
        (b"[1,]", "line 1 column"),
        (b"", "empty"),
        (b"\0" * 64, "zeros"),
        (LFS, "git lfs pull"),
        *((page, "web page") for page in PAGES),
    ],
)
def test_json_that_nothing_can_use_is_refused_by_field(text, named):
    began = time.process_time()
    with pytest.raises(Unreadable) as refused:
        parse_json(text, "some.json")
    message = str(refused.value)
    assert "some.json" in message and named in message and len(message) < 500
    assert time.process_time() - began < 20


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
@settings(max_examples=60, deadline=None)
def test_plain_json_is_read_as_it_is(value):
    assert parse_json(json.dumps(value).encode(), "x") == value


@given(
    st.binary(max_size=200)
    | st.text("[]{}:,\"'&*!-? \n\t0123456789.eEnaNul<|>%@`#~\0\x85", max_size=80).map(str.encode)
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_values_or_one_message(data):
    for read in (
        lambda: parse_json(data, "file"),
        lambda: parse_yaml(data.decode("utf-8", "surrogateescape"), "file"),
        lambda: parse_tensors(data, "file"),
    ):
        try:
            read()
        except Unreadable as refused:
            assert "file" in str(refused)


def bomb(levels, width):
    """YAML whose every level repeats the one below."""
    lists = [f"a0: &a0 [{', '.join('1' * width)}]"]
    return "\n".join(lists + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, levels)])


def doubling(pattern):
    """YAML whose thirty levels each hold the one below twice, as the pattern says."""
    levels = [f"a{k}: &a{k} {pattern.replace('*', f'*a{k - 1}')}" for k in range(1, 31)]
    return "\n".join(["a0: &a0 {k: 1}", *levels])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (bomb(9, 9), "aliases"),
        (doubling("{l: *, r: *}"), "aliases"),
        (doubling("{<<: [*, *]}"), "aliases"),
        ("a: &a [1, *a]", "*a"),
        ("a: &a {b: {c: *a}}", "*a"),
        ("a: " + "[" * 10_000, "file:1: "),
        ("a: " + "{b: " * 10_000, "file:1: "),
        ("a: 1" + ":1" * 60_000, "number"),
        ("a: " + "9" * 5000, "number"),
        ("a: 2001-99-99", "file"),
        ("a: !!python/object/apply:os.system [true]", ":1"),
        ("a: 1\nb: [", "not valid YAML"),
        ("? [1]\n: 2", ":1"),
        ("--- 1\n--- 2", "document"),
        ("a: \x00", "file"),
    ],
)  # fmt: skip
def test_yaml_is_bounded_before_it_is_made(text, named):
    began = time.process_time()
    with pytest.raises(Unreadable) as refused:
        parse_yaml(text, "file")
    assert named in str(refused.value) and len(str(refused.value)) < 500
    assert time.process_time() - began < 20


def test_aliases_may_be_used():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "x").values["c"] == {"x": 1, "y": 2}
    assert typed_values("{a: [1, 2.5, x]}") == {"a": [1, 2.5, "x"]}
    with pytest.raises(ValueError, match="aliases"):
        typed_values(bomb(9, 9))


@given(PLAIN)
@settings(max_examples=50, deadline=None)
def test_yaml_is_read_as_pyyaml_reads_it(value):
    text = yaml.safe_dump(value)
    try:
        assert parse_yaml(text, "x").values == yaml.safe_load(text)
    except Unreadable as refused:
        assert "number of more than" in str(refused) or "64 levels" in str(refused)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "big").write_bytes(b" " * 1000)
    os.mkfifo(tmp_path / "pipe")
    for path, kind, named in [
        (tmp_path / "pipe", Unreadable, "pipe"),
        (tmp_path, Unreadable, str(tmp_path)),
        ("/dev/zero", Unreadable, "device"),
        (tmp_path / "absent", Missing, "absent"),
        (tmp_path / "a\0b", Unreadable, "null"),
        (tmp_path / "big", Unreadable, "1,000"),
    ]:
        with pytest.raises(kind) as refused:
            read_bytes(type(tmp_path)(path), 999)
        assert named in str(refused.value)
    assert read_bytes(tmp_path / "big", 1000) == b" " * 1000
    with pytest.raises(Unreadable, match="pipe"):
        read_tensors(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (LFS, "git lfs pull"),
        (PAGES[0], "web page"),
        (b"", "empty"),
        (b"\0" * 100, "zeros"),
        (b"\x1f\x8b\x08" + b"x" * 60, "gunzip"),
        (b"PK\x03\x04" + b"x" * 60, "teachers convert"),
        (b"\x80\x04" + b"x" * 60, "teachers convert"),
        (struct.pack("<Q", 2**40) + b"{}", "safetensors"),
        (struct.pack("<Q", 2) + b"{}" + b"x" * 9, "safetensors"),
        (save({"a": torch.zeros(8)})[:-3], "safetensors"),
        (b"hello world, this is no tensor", "safetensors"),
    ],
)
def test_what_is_not_safetensors_is_named_with_what_to_do(data, named, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    for read in (lambda: read_tensors(path), lambda: parse_tensors(data, str(path))):
        with pytest.raises(Unreadable) as refused:
            read()
        assert str(path) in str(refused.value) and named in str(refused.value)


def test_a_header_beyond_any_networks_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.tensors.LARGEST_HEADER", 10)
    with pytest.raises(Unreadable, match="header"):
        parse_tensors(save({"a": torch.zeros(1)}), "x")


class Level(BaseModel):
    sigma: float = Field(gt=0)


class Levels(BaseModel):
    levels: list[Level]


def test_the_first_wrong_field_is_named_with_what_it_holds():
    with pytest.raises(Unreadable) as refused:
        validated(Levels, {"levels": [{"sigma": 1}, {"sigma": "x" * 10_000}, {}]}, "f.json")
    message = str(refused.value)
    assert "f.json" in message and "levels.1.sigma" in message and "'xxx" in message and len(message) < 400
    assert "1 more" in message


@pytest.mark.parametrize(
    ("found", "remedy"), [(99, "upgrade"), (1, "anew"), ("x", "'x'"), (None, "None"), (True, "True")]
)
def test_formats_of_other_versions_are_refused_by_number(found, remedy):
    with pytest.raises(Unreadable, match=remedy) as refused:
        check_format({"format": found, "distillkit": "9.9"}, 2, "student.json")
    assert "2" in str(refused.value) and "9.9" in str(refused.value)
    check_format({"format": 2}, 2, "student.json")
    check_format({}, 2, "student.json")


def test_the_mark_that_some_editors_begin_utf8_with_is_no_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_mapping(path) == {"a": 1} and read_text(path).startswith("{")
    assert read_labels(b'\xef\xbb\xbf{"labels": [["a.png", 2]]}', ["a.png"], "dataset.json").labels.tolist() == [2]


@pytest.mark.parametrize("text", ["[", "{", "x", "[" * 100_000, '{"labels": 1}', '{"labels": [["a"]]}', "[1]", *PAGES])
def test_damaged_labels_are_one_message(text):
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(DistillkitError, match=r"dataset\.json"):
        read_labels(data, ["a.png"], "x/dataset.json")


@pytest.mark.parametrize("seal", ["{", '{"count": Infinity, "sha256": "", "notes": {}}', "[" * 10_000, "[1]", "\xff"])
def test_a_damaged_seal_of_features_counts_for_nothing(tmp_path, seal):
    (tmp_path / "seal.json").write_bytes(seal.encode("latin-1"))
    kept = Kept(tmp_path, 2, 2)
    assert len(kept) == 0 and kept.notes == {}


def test_damaged_lines_are_passed_over_and_counted(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n[1]\n\n{"a": NaN}\n{"a": 2}\n{"a": ')
    assert [line["a"] for line in json_lines(path, most=1000, say=said.append)] == [1, 2]
    assert len(said) == 1 and "4" in said[0]


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', "{", '{"a": {}, "a": {}}'])
def test_recorded_hashes_that_are_damaged_name_their_file(text, tmp_path):
    (tmp_path / "lock.json").write_text(text)
    with pytest.raises(DistillkitError, match=r"lock\.json"):
        read_recorded(tmp_path / "lock.json", dict)
    assert read_recorded(tmp_path / "none.json", dict) == {}


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_becomes_a_file_name_and_a_printable_line(text):
    made = slug(text)
    assert made and "/" not in made and "\\" not in made and not made.startswith((".", "-")) and len(made) <= 100
    shown = printable(text)
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in shown) and "\x1b" not in shown
    assert plain_name(name_from(text))


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "..", ".", "", "a/../../b", "C:\\x", "\x00", "~/x", "-rf"])
def test_no_name_is_a_path(name, tmp_path):
    assert (tmp_path / slug(name)).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[31m", "a\x00", "a\u202eb", "\x85"])
def test_names_that_would_steer_a_terminal_are_refused(name):
    with pytest.raises(ValueError, match="must"):
        plain_name(name)


@pytest.mark.parametrize(
    "address", ["https://me:secret@host/x.pkl", "http://secret@h/x", "https://h/x?token=secret&a=b", "s3://h/x#secret"]
)
def test_passwords_are_never_part_of_a_message(address):
    shown = redacted(f"cannot download {address}: no")
    assert "secret" not in shown and "//" in shown and shown.endswith(" no")


def test_values_are_shown_at_no_cost():
    value = ()
    for _ in range(60):
        value = (value, value)
    assert short(value) == "a tuple" and short({}) == "a dict" and short(10**400) == "a int"
    assert short("x" * 10**6).startswith("'xxx") and len(short("x" * 10**6)) < 100 and short(1.5) == "1.5"


def test_a_file_that_is_mapped_is_refused_where_it_is_damaged(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True])}, {"id": "x"})
    found, whole = mapped_tensors(path), path.read_bytes()
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["b"].tolist() == [True] and len(found) == 2
    del found
    damaged = (whole[:-8], whole[:5], b"", whole.replace(b'"F32"', b'"F31"'), whole.replace(b"[2,3]", b"[2,4]"),
               whole.replace(b'"dtype"', b'"dtypo"'))  # fmt: skip
    for data in damaged:
        assert data != whole
        path.write_bytes(data)
        with pytest.raises(Unreadable, match=r"x\.safetensors"):
            mapped_tensors(path)
    with pytest.raises(Unreadable):
        mapped_tensors(tmp_path / "none")
