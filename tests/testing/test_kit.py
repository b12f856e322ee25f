"""The conformance kit: every check catches what it is for."""

import subprocess
import sys

import pytest
import torch
from pydantic import BaseModel, Field

from distillkit import (
    Images,
    Learner,
    Method,
    MethodConfig,
    Objective,
    OneStep,
    Pairs,
    Preset,
    Recipe,
    Samples,
    ScoreEstimator,
    StudentGenerator,
    Teacher,
    build_denoiser,
)
from distillkit.diffusion import l2, pseudo_huber
from distillkit.parts import FakeScore
from distillkit.testing import CHECKS, TEACHERS, CheckFailure, check_method, outcomes
from distillkit.testing.checks import cases
from tests.conftest import HANG, environment


class Endpoint(Objective):
    needs = (Pairs,)

    def __call__(self, step):
        return pseudo_huber(step.student(step.pairs.noise, step.pairs.condition), step.pairs.sample).mean()


class Good(Method):
    """A method that keeps to the rules."""

    name = "good"

    class Config(MethodConfig):
        weight: float = Field(1.0, description="weight of the loss")

    objective = Endpoint

    def recipe(self, teacher, config):
        return Recipe(StudentGenerator.from_teacher(teacher), [self.objective(config.weight)], self.learners(teacher))

    def learners(self, teacher):
        return []


def test_a_small_good_method_passes_everything():
    check_method(Good)


class Perceptual(Good):
    """The student's samples in the features of the frozen teacher."""

    name = "perceptual"

    def recipe(self, teacher, config):
        return Recipe(StudentGenerator.from_teacher(teacher), [InFeatures(teacher, config.weight)])


class InFeatures(Objective):
    needs = (Pairs,)

    def __init__(self, teacher, weight):
        super().__init__(weight)
        self.teacher = teacher

    def __call__(self, step):
        made, pairs = step.student(step.pairs.noise, step.pairs.condition), step.pairs
        t = self.teacher.schedule.at(torch.full((len(made),), 0.1))
        a, b = (self.teacher.denoiser.features(x, t, pairs.condition)[0] for x in (made, pairs.sample))
        return l2(made, pairs.sample).mean() + 0.1 * l2(a, b.detach()).mean()


def test_a_method_in_the_features_of_the_frozen_teacher_passes_what_looks_at_it():
    for name in ("every_pass_is_counted", "levels_and_conditions_vary", "moves_to_the_teachers_distribution"):
        CHECKS[name](Perceptual, {})


def test_settings_are_checked_beside_the_defaults():
    class Fragile(Good):
        """Fails with an even number."""

        name = "fragile"
        examples = ({"even": 1}, {"even": 2})

        class Config(MethodConfig):
            weight: float = Field(1.0, description="weight of the loss")
            even: int = Field(1, description="fails where it is even")

        def recipe(self, teacher, config):
            if config.even % 2 == 0:
                raise ZeroDivisionError
            return super().recipe(teacher, config)

    asked = {name: (check, settings) for name, check, settings in cases(Fragile)}
    assert set(CHECKS) < set(asked), "the defaults come first"
    for name in ("steps_are_deterministic", "steps_are_deterministic[even=1]"):
        check, settings = asked[name]
        check(Fragile, settings)
    check, settings = asked["steps_are_deterministic[even=2]"]
    with pytest.raises(ZeroDivisionError):
        check(Fragile, settings)
    with pytest.raises(CheckFailure):
        check_method(Fragile, settings={"even": 2})


class Lax(BaseModel):
    weight: float = Field(1.0, description="weight")


class Silent(MethodConfig):
    weight: float = 1.0


class Required(MethodConfig):
    weight: float = Field(description="weight")


class Detached(Endpoint):
    def __call__(self, step):
        return super().__call__(step).detach()


class Constant(Endpoint):
    def __call__(self, step):
        return 0 * super().__call__(step)


class TrainsItsCopy(Endpoint):
    copied = None

    def modules(self):
        return {"copy": self.copied} if self.copied else {}

    def __call__(self, step):
        t = step.uniform("level").float() + 0.1
        return super().__call__(step) + l2(self.copied(step.pairs.sample, t, step.pairs.condition), 0).mean()


class Renamed(Learner):
    name = "renamed"
    needs = (Samples,)

    def __init__(self, teacher):
        super().__init__()
        self.network = teacher.copy_denoiser()

    def loss(self, step):
        x = step.samples.detach()
        return self.network(x, step.student.schedule.at(torch.ones(len(x))), step.condition).square().mean()


class Random(Endpoint):
    def __call__(self, step):
        return super().__call__(step) * torch.rand(())


class BatchStatistics(Endpoint):
    needs = (Samples,)

    def __call__(self, step):
        return step.samples.std(0).sum()


class Remembers(Endpoint):
    seen = 0

    def __call__(self, step):
        type(self)
        self.seen += 1
        return super().__call__(step) * self.seen


class ReadsMore(Endpoint):
    def __call__(self, step):
        return super().__call__(step) + step.images.sample.mean() * 0


class DeclaresMore(Endpoint):
    needs = (Pairs, Images)


class HiddenNetwork(Endpoint):
    hidden = None

    def __call__(self, step):
        with torch.no_grad():
            self.hidden(step.pairs.sample, torch.ones(len(step)), step.pairs.condition)
        return super().__call__(step)


class OnlyFloat32(Endpoint):
    def __call__(self, step):
        made = step.student(step.pairs.noise, step.pairs.condition)
        inner = torch.nn.functional.conv2d(made, torch.ones(1, made.shape[1], 1, 1))
        assert inner.dtype == torch.float32
        return super().__call__(step)


class Uphill(Endpoint):
    def __call__(self, step):
        return -super().__call__(step).clamp(max=100)


class Leaky(ScoreEstimator):
    def loss(self, step):
        return l2(self(step.samples, torch.ones(len(step)), step.condition), step.samples).mean()


class Idle(Learner):
    name = "idle"
    needs = (Samples,)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def loss(self, step):
        return step.samples.detach().mean() + 0 * self.weight


class OwnSampler(OneStep):
    """A sampler that no hook offers."""


class Weighted(Endpoint):
    def __call__(self, step):
        return super().__call__(step) * self.weight


class FixedLevel(Endpoint):
    needs = (Images,)
    drawn, mixed = 0.0, 1.0

    def __call__(self, step):
        x0, schedule = step.images.sample, step.student.schedule
        t = schedule.at(0.5 + self.drawn * step.uniform("level").float())
        x = self.noisy(x0, step.normal("images/noise"), t, schedule)
        return l2(step.student.denoiser(x, t, step.images.condition), x0).mean()

    def noisy(self, x0, noise, t, schedule):
        return schedule.add_noise(x0, noise, t)


class NoNoise(FixedLevel):
    drawn = 50.0

    def noisy(self, x0, noise, t, schedule):
        return x0


class OneScaleAlone(FixedLevel):
    drawn = 1.0

    def noisy(self, x0, noise, t, schedule):
        return x0 + t[:, None, None, None] * noise


class OwnNoise(Endpoint):
    needs = (Samples,)

    def __call__(self, step):
        return (step.samples * step.normal("noise")).mean()


class WritesAllWeights(Endpoint):
    def after_step(self, step):
        with torch.no_grad():
            for parameter in step.student.parameters():
                parameter.mul_(0.99)


class ReadsWeights(Endpoint):
    def __call__(self, step):
        return super().__call__(step) + 1e-3 * sum(p.square().sum() for p in step.student.parameters())


class Unweighted(FakeScore):
    def loss(self, step):
        t = self.draw_levels(step, "fake/level")
        noisy = self.denoiser.schedule.add_noise(step.samples.detach(), step.normal("fake/noise"), t)
        return l2(self(noisy, t, step.condition), step.samples.detach()).mean()


def with_copy(name):
    def recipe(self, teacher, config):
        objective = self.objective()
        setattr(objective, name, teacher.copy_denoiser())
        return Recipe(StudentGenerator.from_teacher(teacher), [objective])

    return recipe


def only_labels(self, teacher, config):
    recipe = Good.recipe(self, teacher, config)
    assert "labels" in teacher.conditioner.encode(torch.zeros(1, dtype=torch.int64))
    return recipe


def ignores_its_weight(self, teacher, config):
    return Recipe(StudentGenerator.from_teacher(teacher), [self.objective()])


def own_sampler(self, teacher, config):
    student = StudentGenerator.from_teacher(teacher, OwnSampler())
    return Recipe(student, [Endpoint()])


BROKEN = {
    "config without refusal": ("config_round_trips", {"Config": Lax}, "accepts a key"),
    "config without help": ("config_round_trips", {"Config": Silent}, "no description: weight"),
    "config without defaults": ("config_round_trips", {"Config": Required}, "no defaults"),
    "preset with a wrong value": (
        "presets_are_valid",
        {"presets": (Preset("p", ("some",), {"weight": "much"}, source="here"),)},
        "is refused",
    ),
    "preset without source": ("presets_are_valid", {"presets": (Preset("p", ("some",)),)}, "does not say where"),
    "only for labels": ("recipe_builds_for_every_teacher", {"recipe": only_labels}, "unconditional teacher"),
    "detached": ("gradients_reach_the_student_alone", {"objective": Detached}, "no gradient flows"),
    "constant": ("gradients_reach_the_student_alone", {"objective": Constant}, "is zero"),
    "trains its copy": (
        "gradients_reach_the_student_alone",
        {"objective": TrainsItsCopy, "recipe": with_copy("copied")},
        "trains_its_copy-copy",
    ),
    "learner leaks": (
        "learners_leave_the_student_alone",
        {"learners": lambda self, teacher: [Leaky.from_teacher(teacher)]},
        "into the student",
    ),
    "idle learner": ("learners_leave_the_student_alone", {"learners": lambda self, teacher: [Idle()]}, "idle"),
    "global randomness": ("steps_are_deterministic", {"objective": Random}, "average, student"),
    "batch statistics": ("steps_do_not_depend_on_the_split", {"objective": BatchStatistics}, "number of GPUs"),
    "remembers": ("resume_is_exact", {"objective": Remembers}, "resuming"),
    "reads weights past their network": (
        "networks_may_be_held_in_parts",
        {"objective": ReadsWeights},
        "mixed torch.Tensor",
    ),
    "other numbers in parts": ("networks_may_be_held_in_parts", {"objective": Random}, "and not"),
    "writes all weights": ("adapters_can_be_trained", {"objective": WritesAllWeights}, "changed the teacher's"),
    "network by another name": (
        "constraints_hold_after_updates",
        {"learners": lambda self, teacher: [Renamed(teacher)]},
        "of the renamed's network.model",
    ),
    "reads more": ("needs_are_what_is_used", {"objective": ReadsMore}, "reads Images"),
    "declares more": ("needs_are_what_is_used", {"objective": DeclaresMore}, "never reads"),
    "hidden network": (
        "every_pass_is_counted",
        {"objective": HiddenNetwork, "recipe": with_copy("hidden")},
        "8 of ",
    ),
    "only float32": ("works_in_bfloat16", {"objective": OnlyFloat32}, "AssertionError"),
    "weight twice": ("weights_belong_to_the_engine", {"objective": Weighted}, "2 times as large"),
    "weight ignored": ("settings_change_the_training", {"recipe": ignores_its_weight}, "with weight"),
    "level fixed": ("levels_and_conditions_vary", {"objective": FixedLevel}, "fixed_level asks the student"),
    "no noise": ("inputs_fit_their_levels", {"objective": NoNoise}, "less than there should be"),
    "one family alone": ("schedules_are_respected", {"objective": OneScaleAlone}, "changes its direction"),
    "noise twice": ("streams_are_separate", {"objective": OwnNoise}, "'noise'"),
    "score without weight": (
        "score_estimators_follow_the_student",
        {"learners": lambda self, teacher: [Unweighted.from_teacher(teacher)]},
        "no more than at high",
    ),
    "sampler of its own": ("runs_end_to_end", {"recipe": own_sampler}, "OwnSampler"),
    "uphill": ("moves_to_the_teachers_distribution", {"objective": Uphill}, "before it was"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_check_catches_what_it_is_for(kind):
    check, changes, said = BROKEN[kind]
    broken = type("Broken", (Good,), {"name": "broken", "__doc__": "Broken on purpose.", **changes})
    with pytest.raises(CheckFailure) as caught:
        CHECKS[check](broken, {})
    message = str(caught.value)
    assert said in message and "why it matters:" in message and "how to correct it:" in message


def test_every_check_has_something_to_catch():
    assert {check for check, _, _ in BROKEN.values()} == set(CHECKS)


def test_a_failing_check_does_not_stop_the_others():
    class Raises(Good):
        name = "raises"

        def recipe(self, teacher, config):
            raise RuntimeError("no")

    found = {outcome.check: outcome.failure for outcome in outcomes(Raises)}
    assert list(found) == list(CHECKS)
    assert not found["config_round_trips"] and "RuntimeError: no" in found["resume_is_exact"]


@pytest.mark.parametrize("kind", TEACHERS)
def test_students_of_the_kits_teachers_are_made_anew_from_their_descriptions(kind):
    teacher = TEACHERS[kind]()
    assert isinstance(teacher, Teacher)
    again = build_denoiser(teacher.denoiser.description)
    again.load_state_dict(teacher.denoiser.state_dict())
    noise = torch.randn(2, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.conditioner.encode(teacher.conditioner.in_turn(range(2)))
    t = teacher.schedule.at(torch.full((2,), 0.7))
    assert torch.equal(again(noise, t, condition), teacher.denoiser(noise, t, condition))
    decoded = teacher.codec.decode(teacher.sample(noise, condition))
    assert decoded.shape == (2, *teacher.codec.decoded_shape(teacher.spec.shape))
    assert teacher.codec.encode(decoded).shape == noise.shape


def test_the_command_names_what_is_checked(inside):
    unknown = inside("check", "dnd")
    assert unknown.returncode == 2 and "'dmd'" in unknown.stderr


def test_a_file_is_checked_without_a_package(tmp_path):
    from distillkit.errors import UsageError
    from distillkit.registry import _FILES, registry
    from distillkit.testing.select import methods_of

    place = tmp_path / "tried.py"
    place.write_text("from distillkit import Method\n\n\nclass Tried(Method):\n    name = 'tried'\n    recipe = None\n")
    try:
        assert [method.name for method in methods_of(str(place))] == ["tried"]
        with pytest.raises(UsageError):
            methods_of(str(tmp_path / "absent.py"))
    finally:
        _FILES.clear()
        registry.cache_clear()


def pytest_on(folder, *arguments):
    """How Python is asked for pytest on an empty test file."""
    (folder / "test_nothing.py").write_text("")
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder), *arguments]


def test_pytest_runs_the_checks_of_a_package(tmp_path, warm):
    asked = pytest_on(tmp_path, "--distillkit-check", "kd", "-q", "-k", "config or presets")
    outcome = warm.run(asked, tmp_path, environment(), HANG)
    assert outcome.returncode == 0 and "2 passed" in outcome.stdout, outcome.stdout
    wrong = warm.run(pytest_on(tmp_path, "--distillkit-check", "nothing-here"), tmp_path, environment(), HANG)
    assert wrong.returncode == 4 and "nothing-here" in wrong.stderr + wrong.stdout


def test_pytest_elsewhere_does_not_pay_for_torch(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import sys\n\n\ndef pytest_unconfigure(config):\n"
        "    print('distillkit' in str(config.pluginmanager.list_name_plugin()), 'torch' in sys.modules)\n"
    )
    asked = pytest_on(tmp_path, "-q")
    outcome = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "True False" in outcome.stdout, outcome.stdout
