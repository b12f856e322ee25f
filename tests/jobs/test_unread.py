"""A setting that was given and of which a recipe makes nothing is said to have no effect, whatever the method."""

import pytest
from pydantic import Field, PrivateAttr

from distillkit import Method, MethodConfig, Preset, load_teacher
from distillkit.jobs.recipe import recipe_of
from distillkit.jobs.unread import Reads, without_effect
from distillkit.registry import Installed, registry
from distillkit.runs.config import resolve


def said_of(method: type[Method], teacher="digits", **settings) -> str:
    config, preset = resolve(method, options={"teacher": teacher, "settings": settings})
    reads = Reads()
    recipe_of(config, Installed(method, method.name, "here", ""), load_teacher(teacher), reads)
    return without_effect(reads, method, config.settings, preset)


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("dmd", {"kl_weight": 0, "fake_lr": 1e-3, "level_max": 0.5}, "--fake-lr, --level-max"),
        ("dmd", {"regression_weight": 0, "distance": "lpips"}, "--distance"),
        ("dmd2", {"gan_weight": 0, "gan_loss": "hinge", "r1_weight": 0.1}, "--gan-loss, --r1-weight"),
        ("dmd2", {"r1": "inputs"}, "--r1"),
        ("ladd", {"r1_weight": 0, "r1": "inputs"}, "--r1"),
        ("ect", {"curriculum": "ict", "q": 3.0}, "--q"),
        ("ect", {"teacher_free": True, "solver": "heun"}, "--solver"),
        ("tcm", {"teacher_free": True, "solver": "heun"}, "--solver"),
        ("tcm", {"first_share": 0, "level_std": 1.0}, "--level-std"),
        ("consistency", {"teacher_free": True, "guidance": 1.0, "solver": "ddim"}, "--solver"),
        ("dmd2", {"gan_features": "teacher", "critic_gan_weight": 0.5}, "--critic-gan-weight"),
        ("f-distill", {"gan_features": "teacher", "critic_gan_weight": 0.5}, "--critic-gan-weight"),
        ("scm", {"adaptive": False, "weight_lr": 1e-3}, "--weight-lr"),
        ("meanflow", {"end_std": 2.0}, "--end-std"),
        ("reflow", {"rounds": 0, "steps": 7, "flow_guidance": 1.5}, "--flow-guidance, --steps"),
    ],
)
def test_what_is_switched_off_by_another_setting_is_named(name, settings, options):
    teacher = "mixture" if name == "meanflow" else "digits"
    if name == "meanflow":
        settings = {"end_mean": None, **settings}
    said = said_of(registry().method(name), teacher, **settings)
    assert said.startswith(f"warning: {options} ha") and f"{name} with these settings" in said


def test_what_is_used_or_was_not_given_is_not():
    dmd = registry().method("dmd")
    assert said_of(dmd, fake_lr=1e-3, distance="l1") == ""
    # The preset's own numbers of what is off, and defaults that a configuration's file repeats.
    assert said_of(dmd, kl_weight=0) == ""
    assert said_of(dmd, kl_weight=0, fake_updates=1, guidance=1) == ""


class Settings(MethodConfig):
    rate: float = Field(1.0, description="of nothing")
    times: tuple[float, ...] = Field((1.0, 2.0), description="of nothing")


class Reading(Method):
    """Reads its settings in some way."""

    name = "reading"
    Config = Settings
    presets = (Preset("some", ("digits",), settings={"times": [3.0]}),)
    read = staticmethod(lambda config: None)

    def recipe(self, teacher, config):
        assert type(config).__name__ == self.Config.__name__ and isinstance(config, Settings)
        self.kept = self.read(config)
        return registry().method("kd")().recipe(teacher, registry().method("kd").Config())


def reading(how, config=Settings):
    return type("Own", (Reading,), {"read": staticmethod(how), "Config": config})


class Prepared(Settings):
    _twice: float = PrivateAttr(0.0)

    def model_post_init(self, context):
        self._twice = 2 * self.rate


def test_methods_of_others_are_watched_and_given_the_benefit_of_the_doubt():
    assert said_of(Reading, rate=2.0, times=(3, 4)).startswith("warning: --rate, --times have no effect: reading with")
    assert said_of(Reading, times=(3.0,)) == "", "the preset's, as a list"
    assert said_of(reading(lambda config: config.times), rate=2.0).startswith("warning: --rate has no effect")
    for how in (
        lambda config: config,  # read later, by what keeps it
        lambda config: lambda: config.rate,
        lambda config: config.model_dump(),
        lambda config: {**dict(config)},
        lambda config: config.model_copy(),
        lambda config: (config.rate, config.times),
    ):
        assert said_of(reading(how), rate=2.0, times=(1.0,)) == ""
    assert said_of(reading(lambda config: None, Prepared), rate=2.0) == "", "read before there is a recipe"


def test_the_command_line_says_it_and_refuses_what_is_of_nothing(inside):
    done = inside("run", "dmd", "--kl-weight", "0", "--fake-lr", "1e-3", "--dry-run")
    assert done.returncode == 0 and "warning: --fake-lr has no effect: dmd with these settings" in done.stdout
    done = inside("run", "dmd", "--snapshot-every", "8", "--dry-run")
    assert done.returncode == 2 and "and there are none: add --ema-sigmas" in done.stderr
