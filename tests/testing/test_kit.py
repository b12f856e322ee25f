"""The conformance kit: every check catches what it is for."""

import pytest
import torch
from pydantic import BaseModel, Field

from distillkit import (
    Learner,
    Method,
    MethodConfig,
    Objective,
    OneStep,
    Preset,
    Recipe,
    ScoreEstimator,
    StudentGenerator,
)
from distillkit.diffusion import l2, pseudo_huber
from distillkit.testing import CHECKS, CheckFailure, check_method, outcomes


class Endpoint(Objective):
    needs = ("pairs",)

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
        level = torch.ones(len(step))
        return super().__call__(step) + l2(self.copied(step.pairs.sample, level, step.pairs.condition), 0).mean()


class Random(Endpoint):
    def __call__(self, step):
        return super().__call__(step) * torch.rand(())


class BatchStatistics(Endpoint):
    needs = ("samples",)

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
    needs = ("pairs", "images")


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
    needs = ("samples",)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def loss(self, step):
        return step.samples.detach().mean() + 0 * self.weight


class OwnSampler(OneStep):
    kind: str = "mine"


def with_copy(name):
    def recipe(self, teacher, config):
        objective = self.objective()
        setattr(objective, name, teacher.copy_denoiser())
        return Recipe(StudentGenerator.from_teacher(teacher), [objective])

    return recipe


def only_labels(self, teacher, config):
    recipe = Good.recipe(self, teacher, config)
    assert teacher.draw_condition(torch.zeros(1)).labels is not None
    return recipe


def own_sampler(self, teacher, config):
    student = StudentGenerator.from_teacher(teacher, OwnSampler())
    return Recipe(student, [Endpoint()])


BROKEN = {
    "config without refusal": ("config_round_trips", {"Config": Lax}, "accepts a key"),
    "config without help": ("config_round_trips", {"Config": Silent}, "no description: weight"),
    "config without defaults": ("config_round_trips", {"Config": Required}, "no defaults"),
    "preset with a wrong value": (
        "presets_are_valid",
        {"presets": (Preset("p", ("digits",), {"weight": "much"}, source="here"),)},
        "is refused",
    ),
    "preset without source": ("presets_are_valid", {"presets": (Preset("p", ("digits",)),)}, "does not say where"),
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
    "global randomness": ("steps_are_deterministic", {"objective": Random}, "differ in average, student"),
    "batch statistics": ("steps_do_not_depend_on_the_split", {"objective": BatchStatistics}, "number of GPUs"),
    "remembers": ("resume_is_exact", {"objective": Remembers}, "resuming"),
    "reads more": ("needs_are_what_is_used", {"objective": ReadsMore}, "reads step.images"),
    "declares more": ("needs_are_what_is_used", {"objective": DeclaresMore}, "never reads"),
    "hidden network": (
        "every_pass_is_counted",
        {"objective": HiddenNetwork, "recipe": with_copy("hidden")},
        "8 of ",
    ),
    "only float32": ("works_in_bfloat16", {"objective": OnlyFloat32}, "AssertionError"),
    "sampler of its own": ("students_load_and_sample", {"recipe": own_sampler}, "cannot be saved, loaded and sampled"),
    "uphill": ("moves_to_the_teachers_distribution", {"objective": Uphill}, "before it was"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_check_catches_what_it_is_for(kind):
    check, changes, said = BROKEN[kind]
    broken = type("Broken", (Good,), {"name": "broken", "__doc__": "Broken on purpose.", **changes})
    with pytest.raises(CheckFailure) as caught:
        CHECKS[check](broken)
    message = str(caught.value)
    assert said in message and "why it matters:" in message and "how to mend it:" in message


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


def test_the_command_names_what_is_checked(inside):
    unknown = inside("check", "dnd")
    assert unknown.returncode == 2 and "Did you mean 'dmd'" in unknown.stderr
    good = inside("check", "kd")
    assert good.returncode == 0 and "13 of 13 checks passed" in good.stdout


def test_pytest_runs_the_checks_of_a_package(pytester_like):
    outcome = pytester_like("--distillkit-check", "kd", "-q", "-k", "config or presets")
    assert outcome.returncode == 0 and "2 passed" in outcome.stdout, outcome.stdout
    wrong = pytester_like("--distillkit-check", "nothing-here")
    assert wrong.returncode == 4 and "unknown package or method" in wrong.stderr + wrong.stdout


@pytest.fixture
def pytester_like(tmp_path):
    import subprocess
    import sys

    def run(*arguments):
        (tmp_path / "test_nothing.py").write_text("")
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path), *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run
