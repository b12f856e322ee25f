"""Work that one process does while others wait: they say so, and can be stopped."""

import pytest

from distillkit.errors import Interrupted
from distillkit.locks import held, waiting
from distillkit.models.store.fetch import fetch, teachers_folder
from distillkit.models.store.resolve import cards
from distillkit.progress import Quiet


def test_what_another_has_is_waited_for_and_that_is_said_once(tmp_path):
    said, looks = [], iter([0, 0, 15])
    with held(tmp_path / "a" / "x.lock", lambda: pytest.fail("waited")):
        with (
            pytest.raises(Interrupted, match="waiting"),
            held(tmp_path / "a" / "x.lock", waiting(said.append, "making it", lambda: next(looks))),
        ):
            pytest.fail("held twice")
        with held(tmp_path / "a" / "y.lock", lambda: pytest.fail("waited")):
            pass
    assert said == ["another process is making it; waiting for it"]


def test_a_teacher_that_another_process_fetches_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    said, card = [], next(card for card in cards().values() if card.url)
    monkeypatch.setattr(Quiet, "say", lambda self, text: said.append(text))
    with held(teachers_folder() / f".{card.name}.lock", lambda: None), pytest.raises(Interrupted) as stopped:
        fetch(card, Quiet(), lambda: 15)
    assert said == [f"another process is fetching {card.name}; waiting for it"] and stopped.value.exit_code == 143
