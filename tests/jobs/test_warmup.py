"""A warm-up is a share of the duration where nothing else is asked for, and settings that cannot learn are said."""

import pytest

from distillkit.engine.config import TrainingConfig
from distillkit.engine.optimization import learning_rate_factor
from distillkit.errors import UsageError
from distillkit.jobs.teacher_config import resolve_teacher


@pytest.mark.parametrize("duration", [1000, 200_000_000])
def test_a_teachers_warm_up_is_a_share_of_its_training(duration):
    training = resolve_teacher({"data": {"path": "pictures"}, "training": {"duration": duration}}).training
    assert training.warmup == "5%"
    assert learning_rate_factor(training, duration / 40, duration) == pytest.approx(0.5)
    assert learning_rate_factor(training, duration / 20, duration) == 1.0


def test_a_shipped_teachers_warm_up_is_the_share_that_it_was():
    training = resolve_teacher({"name": "digits", "training": {"duration": 3000}}).training
    constant = training.model_copy(update={"lr_schedule": "constant"})
    assert learning_rate_factor(constant, 50, 3000) == pytest.approx(1.0, rel=1e-3)
    assert resolve_teacher({"name": "digits"}).training.warmup == 25_000


def test_images_stay_images_and_nonsense_is_refused():
    assert TrainingConfig(warmup="10k").warmup == 10_000
    for wrong in (-1, "-5%", "101%", "much"):
        with pytest.raises(ValueError, match="share of the duration"):
            TrainingConfig(warmup=wrong)
    with pytest.raises(UsageError, match="--warmup"):
        resolve_teacher({"data": {"path": "pictures"}, "training": {"warmup": "500%"}})


def test_a_training_that_cannot_learn_is_doubted():
    assert TrainingConfig(duration="100k", warmup="5%").doubts == []
    (doubt,) = TrainingConfig(duration=10_000, warmup="10M").doubts
    assert "10,000,000" in doubt and "10,000:" in doubt
    (doubt,) = TrainingConfig(duration=1000, batch=512).doubts
    assert "2 steps of 512" in doubt


def test_doubts_are_said_before_a_teachers_training(inside, monkeypatch):
    monkeypatch.setattr("distillkit.jobs.plan._tried", lambda *args: (None, "left out"))
    done = inside("teachers", "train", "digits", "--duration", "1k", "--warmup", "10M", "--dry-run")
    assert done.returncode == 0 and done.stdout.count("warning:") == 2, done.stdout


def test_the_averages_half_life_may_be_a_share_of_the_training():
    assert (
        TrainingConfig(ema_halflife="2%").ema_halflife == "2%"
        and TrainingConfig(ema_halflife="3k").ema_halflife == 3000
    )
    with pytest.raises(ValueError, match="share of the duration"):
        TrainingConfig(ema_halflife="200%")
