"""Lists of prompts: every format, what is left out and counted, and what is no list at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillkit import DistillkitError, PromptList, UsageError
from distillkit.data import prompts as module
from distillkit.data.prompts import PromptsConfig, open_prompts
from tests.data.cached import uses_are_noted

TEXTS = ["a cat", 'a dog, "asleep"', "ein Bär", "a cat", "猫"]


def found(path: Path, **config):
    return open_prompts(PromptsConfig(path=str(path), **config))


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def parquet(path: Path, **columns) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def every_format(folder: Path) -> list[Path]:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return [
        written(folder / "a.txt", "\ufeff" + "\r\n".join(TEXTS)),
        written(folder / "a.csv", "id,Caption\n" + "".join(f"{k},{text}\n" for k, text in enumerate(quoted))),
        written(folder / "a.tsv", "caption\tid\n" + "".join(f"{text}\t{k}\n" for k, text in enumerate(quoted))),
        written(folder / "a.jsonl", "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS)),
        written(folder / "b.jsonl", "".join(json.dumps(text) + "\n" for text in TEXTS)),
        written(folder / "a.json", json.dumps(TEXTS)),
        written(folder / "b.json", json.dumps([{"prompt": text, "text": "other"} for text in TEXTS])),
        parquet(folder / "a.parquet", caption=TEXTS, id=list(range(len(TEXTS)))),
    ]


def test_every_format_is_the_same_list(tmp_path):
    lists = [found(path).prompts for path in every_format(tmp_path)]
    assert all(list(prompts.texts) == TEXTS for prompts in lists)
    assert {prompts.sha256 for prompts in lists} == {PromptList.of(TEXTS, "").sha256}
    assert lists[0].texts[1:3] == TEXTS[1:3] and lists[0].texts[-1] == TEXTS[-1] and len(lists[0]) == len(TEXTS)


def test_the_hash_tells_lists_apart():
    hashes = [
        PromptList.of(texts, "").sha256 for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["ab", "c", ""])
    ]
    assert len(set(hashes)) == len(hashes)


def test_blank_and_repeated_prompts_are_counted(tmp_path):
    path = written(tmp_path / "p.txt", "a\n\n  \nb\n a \nb\nc")
    kept = found(path)
    assert (list(kept.prompts.texts), kept.blank, kept.repeated) == (["a", "b", "a", "b", "c"], 2, 2)
    assert "5 prompts" in kept.summary and "2 blank" in kept.summary and "--prompts-unique" in kept.summary
    unique = found(path, unique=True)
    assert (list(unique.prompts.texts), unique.repeated) == (["a", "b", "c"], 2) and "left out" in unique.summary
    assert unique.prompts.sha256 != kept.prompts.sha256
    assert found(written(tmp_path / "p.csv", "prompt,n\na,1\n,2\nb\n")).blank == 1


def test_a_large_list_is_kept_in_the_cache_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    texts = [f"number {k % 90}" for k in range(100)]
    path, said = written(tmp_path / "p.txt", "\n\n".join(texts)), []
    first = open_prompts(PromptsConfig(path=str(path)), said.append)
    assert len(said) == 1 and (tmp_path / "cache" / "prompts").is_dir()
    again = open_prompts(PromptsConfig(path=str(path)), said.append)
    assert len(said) == 1, "it was read again"
    uses_are_noted("prompts", lambda: open_prompts(PromptsConfig(path=str(path)), said.append))
    small = PromptList.of(texts, str(path))
    for read in (first, again):
        assert list(read.prompts.texts) == texts and read.prompts.sha256 == small.sha256
        assert (read.blank, read.repeated) == (99, 10)
    assert open_prompts(PromptsConfig(path=str(path), unique=True)).prompts.texts[:] == texts[:90]
    assert again.prompts.texts.longest_first()[0] >= 10
    # Another content under the same name is another list; what is torn is read again.
    written(path, "\n".join(texts[1:]))
    assert list(found(path).prompts.texts) == texts[1:]
    for file in (tmp_path / "cache" / "prompts").glob("*/texts"):
        file.write_bytes(file.read_bytes()[:-1])
    assert list(found(path).prompts.texts) == texts[1:]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    written(tmp_path / "file", "in the way")
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    texts, said = [f"number {k}" for k in range(100)], []
    path = written(tmp_path / "p.txt", "\n".join(texts))
    read = open_prompts(PromptsConfig(path=str(path)), said.append)
    assert list(read.prompts.texts) == texts and "DISTILLKIT_CACHE" in said[0]


BAD = {
    "empty.txt": (b"", "it is empty"),
    "blank.txt": (b"\n \n\t\n", "3 lines without a text"),
    "binary.txt": (b"a cat\nb\0d\n", "line 2"),
    "latin.txt": ("a\nein B\xe4r\n".encode("latin-1"), "line 2 is not UTF-8"),
    "wide.txt": ("a cat".encode("utf-16"), "not UTF-8"),
    "gzip.txt": (b"\x1f\x8b\x08\0", "gunzip"),
    "long.txt": (b"a\n" + b"x" * 100_001 + b"\n", "line 2: a prompt of 100,001 characters"),
    "endless.txt": (b"x" * 2**21, "line 1: more than"),
    "empty.csv": (b"", "it is empty"),
    "headless.csv": (b"a cat,1\na dog,2\n", "columns: a cat, 1"),
    "several.csv": (b"Caption,caption\na,b\n", "--prompts-column"),
    "quote.csv": (b'prompt\n"a cat\n', "row"),
    "broken.jsonl": (b'{"prompt": "a"}\n{"prompt": \n', "line 2"),
    "keyless.jsonl": (b'{"prompt": "a"}\n{"other": "b"}\n', "columns: other"),
    "numbers.jsonl": (b"1\n2\n", "a number"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "deeper"),
    "object.json": (b'{"prompts": ["a"]}', "no list"),
    "list.json": (b'[["a"]]', "entry 1: text is due"),
    "broken.parquet": (b"PAR1 and no more", "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_list_of_prompts_is_said(tmp_path, name):
    data, says = BAD[name]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DistillkitError) as error:
        found(written(tmp_path / name, data))
    assert says in str(error.value) and name in str(error.value) and len(str(error.value)) < 600


def test_columns_that_are_not_there_name_those_that_are(tmp_path):
    csv = written(tmp_path / "a.csv", "id,what\n1,a cat\n")
    table = parquet(tmp_path / "a.parquet", words=["a"], n=[1])
    for path in (csv, table):
        with pytest.raises(UsageError, match=r"--prompts-column prompt: .*columns: "):
            found(path, column="prompt")
        with pytest.raises(UsageError, match=r"which column the prompts are.*--prompts-column"):
            found(path)
    assert list(found(csv, column="what").prompts.texts) == ["a cat"]
    assert list(found(table, column="words").prompts.texts) == ["a"]
    with pytest.raises(UsageError, match="of text"):
        found(table, column="n")
    with pytest.raises(UsageError, match="one prompt a line"):
        found(written(tmp_path / "a.txt", "a"), column="what")


def test_paths_that_lead_nowhere_are_said(tmp_path):
    places = ((tmp_path / "missing.txt", "no such file"), (tmp_path, "is a folder"), ("x" * 3000, "too long"))
    for path, says in (*places, ("a\0b", "null")):
        with pytest.raises(DistillkitError, match=says):
            found(path)
    with pytest.raises(UsageError, match="hf:ORG/NAME:COLUMN"):
        open_prompts(PromptsConfig(path="hf:a/b/c"))


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"n": [1, 2, 3], "prompt": ["a cat", "", "a dog"], "title": ["x", "y", "z"]})
    asked = []
    monkeypatch.setattr("distillkit.data.hub.open_dataset", lambda *a, **k: (asked.append((a, k)), data)[1])
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    read = open_prompts(PromptsConfig(path="hf:org/name"))
    assert list(read.prompts.texts) == ["a cat", "a dog"] and read.blank == 1 and read.prompts.name == "hf:org/name"
    assert asked[0] == (("load_dataset", "org/name"), {"split": "train"})
    assert list(open_prompts(PromptsConfig(path="hf:org/name:title", split="test")).prompts.texts) == ["x", "y", "z"]
    assert asked[1][1] == {"split": "test"}
    with pytest.raises(UsageError, match="columns: n, prompt, title"):
        open_prompts(PromptsConfig(path="hf:org/name:nothing"))
