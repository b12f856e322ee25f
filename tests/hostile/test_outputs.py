"""What leaves: reports, exports, uploads, the terminal; and downloads that are not what they say."""

import io
import json
import threading

import pytest
from rich.table import Table

from distillkit import DistillkitError, UsageError
from distillkit.benchmark.results import Results, inside, picture, read_results
from distillkit.benchmark.run import plan
from distillkit.cli import main
from distillkit.evaluation.presets import preset
from distillkit.evaluation.reference_files import fetch_files
from distillkit.models.store import fetch
from distillkit.models.store.resolve import cards
from distillkit.progress import Live, Plain, Quiet, Terminal
from distillkit.students.push import own_bytes, push, within

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (8).to_bytes(4, "big") * 2


@pytest.fixture
def secret(tmp_path):
    place = tmp_path / "elsewhere" / "secret"
    place.parent.mkdir()
    place.write_bytes(PNG)
    return place


def test_a_report_shows_nothing_from_outside_of_its_folder(tmp_path, secret):
    folder = tmp_path / "bench"
    (folder / "grid").mkdir(parents=True)
    (folder / "grid" / "a.png").write_bytes(PNG)
    (folder / "grid" / "link.png").symlink_to(secret)
    (folder / "grid" / "text.png").write_text("root:x:0:0")
    assert picture(folder, "grid/a.png") == PNG
    for path in ("grid/link.png", "grid/absent.png", "grid/text.png"):
        with pytest.raises(DistillkitError, match=path.rpartition("/")[2]):
            picture(folder, path)
    (folder / "grid-away").symlink_to(secret.parent)
    with pytest.raises(DistillkitError, match="out of"):
        inside(folder, "grid-away/secret")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "..\\x"])
def test_results_name_files_inside_their_folder_alone(tmp_path, path):
    suite = {"name": "x", "teacher": "digits", "budget": 1, "methods": {"kd": {}}}
    for field in ({"grid": {"a": path}}, {"teacher_records": [path]}):
        (tmp_path / "results.json").write_text(json.dumps({"suite": suite, **field}))
        with pytest.raises(DistillkitError, match=next(iter(field))):
            read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"suite": suite, "format": 99}))
    with pytest.raises(DistillkitError, match="99"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"suite": suite}))
    assert isinstance(read_results(tmp_path), Results)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol": "no-such"}, "no-such"), ({"nfe": [-1]}, "nfe"), ({"teacher_steps": [0]}, "teacher_steps"),
        ({"seeds": 10**9}, "seeds"), ({"budget": -1}, "budget"), ({"name": "../x"}, "name"),
        ({"methods": {"../x": {}}}, "../x"), ({"teacher": "no-such"}, "no-such"), ({"samples": 0}, "samples"),
    ],
)  # fmt: skip
def test_a_plan_refuses_what_a_benchmark_would(tmp_path, change, named):
    suite = {"name": "x", "teacher": "digits", "budget": 1000, "methods": {"kd": {}}, **change}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    with pytest.raises(UsageError) as refused:
        plan(tmp_path / "suite.yaml", output_dir=tmp_path / "out", device="cpu")
    assert named in str(refused.value) and not (tmp_path / "out").exists()


def test_links_out_of_a_folder_are_not_uploaded(tmp_path, secret, monkeypatch):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "a").write_bytes(b"1234")
    (folder / "b").symlink_to(folder / "a")
    assert own_bytes(folder) == 8
    (folder / "README.md").symlink_to(secret)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *a, **k: pytest.fail("nothing may be asked for"))
    with pytest.raises(DistillkitError, match=r"README\.md"):
        push(folder, "me/x")


def test_a_silent_hub_ends_the_upload(tmp_path, monkeypatch):
    waiting = threading.Event()
    monkeypatch.setattr("distillkit.students.push.ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *a, **k: waiting.wait(60))
    with pytest.raises(DistillkitError, match="did not answer"):
        push(tmp_path, "me/x")
    waiting.set()
    assert within(60, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(60, lambda: {}["x"])


def test_passwords_of_the_hub_are_not_said(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no route to https://me:secret@hub/api?token=secret")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(DistillkitError) as refused:
        push(tmp_path, "me/x")
    assert "secret" not in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Sign in</title>", b"", b"\x80\x04N."])
@pytest.mark.parametrize("placed", [False, True])
def test_a_download_that_is_not_the_teacher_is_not_trusted(tmp_path, monkeypatch, page, placed):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    card = cards()["edm-cifar10-uncond"]
    name = card.url.rpartition("/")[2]
    (tmp_path / "host" / "edm" / "pretrained").mkdir(parents=True)
    source = tmp_path / "host" / "edm" / "pretrained" / name
    source.write_bytes(page)
    target = tmp_path / "cache" / "downloads" / name
    if placed:
        target.parent.mkdir(parents=True)
        target.write_bytes(page)
    monkeypatch.setenv("DISTILLKIT_MIRROR", str(tmp_path / "host"))
    with pytest.raises(DistillkitError) as refused:
        fetch.fetch(card, Quiet())
    assert not fetch.lock_file().exists() and target.exists() == placed
    assert str(target) in str(refused.value) and (placed or "lock.json" in str(refused.value))
    assert fetch.fetched(card) is None


def test_a_download_that_holds_no_statistics_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def page(url, path, **options):
        path.write_bytes(b"<html>")

    monkeypatch.setattr("distillkit.evaluation.reference_files.obtain", page)
    chosen = preset("edm-cifar10").model_copy(update={"extractor": "dinov2"})
    with pytest.raises(DistillkitError, match="web page"):
        fetch_files(chosen, Quiet(), lambda: 0)
    assert not list((tmp_path / "evaluation").glob("*.npz"))


NAMES = ("[/red]", "[bold]x", ":smile:", "\x1b[31mred\x1b]0;title\x07", "a\u202eb")


@pytest.mark.parametrize("name", NAMES)
def test_no_name_steers_a_terminal_or_is_markup(name):
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=True, color_system=None, width=200)
    terminal.print(f"folder {name}")
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    terminal.print(table)
    Plain(terminal).say(name)
    with Live(terminal).task(name, 2, "images") as task:
        task.note(name)
        task.advance(2)
    shown = out.getvalue()
    assert "\x1b[31m" not in shown and "\x1b]" not in shown and "\u202e" not in shown
    assert name.startswith(("\x1b", "a")) or shown.count(name) >= 4


def test_a_message_of_the_command_line_steers_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["distillkit", "sample", "https://me:secret@host/\x1b[31m[/red]"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "\x1b" not in said and "secret" not in said and "[/red]" in said
