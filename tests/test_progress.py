"""What is shown in a window of 80 columns: nothing is cut in the middle of a word or of a number."""

from __future__ import annotations

import io
import re

import pytest

from distillkit import progress
from distillkit.progress import Live, Plain, Terminal, packed

REMARK = "step 900  distribution_matching 0.01731  fake_score 0.5473  regression 0.001686  FD[x/fc64]-1000 0.002295"


def shown(act) -> list[str]:
    out = io.StringIO()
    act(Live(Terminal(file=out, force_terminal=True, width=80, height=30, color_system=None, legacy_windows=False)))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()


def test_what_is_noted_beside_a_bar_is_shown_whole() -> None:
    def act(live: Live) -> None:
        with live.task("training", 64_000, "images") as task:
            task.advance(512)
            task.note(REMARK)

    lines = shown(act)
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    for item in REMARK.split("  "):
        assert any(item in line for line in lines), item


@pytest.mark.parametrize("title", ["training", "measuring the student, untrained"])
def test_a_bar_is_one_line(title: str) -> None:
    def act(live: Live) -> None:
        with live.task(title, 5_000, "samples") as task:
            task.advance(2_500)

    # Drawn as it begins and as it ends: each line has the title and the count.
    assert all("5,000 samples" in line for line in shown(act) if line.strip())


def test_the_last_line_of_a_log_is_not_said_twice(monkeypatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    out = io.StringIO()
    with Plain(Terminal(file=out, width=100)).task("measuring", 20, "samples") as task:
        task.advance(10)
        task.advance(10)
    assert [line.split(" samples")[0] for line in out.getvalue().splitlines()] == [
        "measuring: 10/20",
        "measuring: 20/20",
    ]


def test_messages_break_between_words_and_commands_not_at_all() -> None:
    words = "figures: " + " ".join(f"word{number:04d}" for number in range(20))
    command = f"continue with: distillkit run dmd --resume {'folder/' * 12}run"
    lines = shown(lambda live: (live.say(words), live.say(command)))
    assert command in lines
    assert " ".join(line.strip() for line in lines if line != command).split() == words.split()


def test_no_name_leaves_its_value() -> None:
    assert packed("a 1  b 2  ccc 3", 8) == ["a 1  b 2", "ccc 3"]
    assert packed("longer than this  b 2", 5) == ["longer than this", "b 2"]
