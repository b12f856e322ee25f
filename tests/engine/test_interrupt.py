"""Signals: acknowledged at once, acted on at a safe place; one that a launcher repeats is one."""

import os
import signal

import pytest

from distillkit.engine.interrupt import stop_on_signal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_acknowledged(number, capfd, monkeypatch):
    monkeypatch.setattr("distillkit.engine.interrupt._leave_terminal", lambda: None)
    # Whoever starts the tests may ignore SIGHUP, as nohup does.
    surrounding = signal.signal(number, signal.default_int_handler)
    try:
        with stop_on_signal() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop.signum == number
        assert "again to stop at once" in capfd.readouterr().err
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, surrounding)


def test_the_second_one_ends_the_process_unless_a_launcher_repeats_the_first(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for launched in (True, False):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x") if launched else monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        with stop_on_signal():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        assert ended == ([] if launched else [130])


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
