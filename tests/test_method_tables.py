"""What methods take: computed, shown by the command line, and written down as it is."""

import pytest

from distillkit import DistillkitError, Images, Method, Objective, Recipe, Stage, StudentGenerator, load_teacher
from distillkit.diffusion import RenoisingSampler
from distillkit.jobs.traits import traits_of
from distillkit.progress import Quiet
from distillkit.registry import BUILT_IN, Installed, registry
from distillkit.testing.teachers import conditional
from tools import method_tables


class Zero(Objective):
    """Asks the student and the teacher once, in the second stage twice."""

    needs = (Images,)

    def __init__(self, teacher, owned=None):
        super().__init__()
        self.teacher, self.owned = teacher, owned

    def modules(self):
        return {"frozen": self.owned} if self.owned is not None else {}

    def __call__(self, step):
        t = step.noise.new_ones(len(step))
        made = step.student.denoiser(step.noise, t, step.condition)
        for _ in range(2 if step.stage.name == "b" else 1):
            made = made - self.teacher(step.noise, t, step.condition)
        return made.square().mean()


class Twice(Method):
    """Two evaluations, and a frozen copy."""

    name = "twice"

    def recipe(self, teacher, config):
        student = StudentGenerator.from_teacher(teacher, RenoisingSampler(levels=(80.0, 1.0)))
        owned = teacher.copy_denoiser().requires_grad_(False)
        return Recipe(student, [Zero(teacher, owned)], stages=[Stage("a"), Stage("b", share=3.0)])


class Broken(Method):
    """Has no recipe."""

    name = "broken"

    def recipe(self, teacher, config):
        raise KeyError("nothing")


def offered(method):
    return Installed(method, method.name, "of-others", "1.0")


def test_traits_are_those_of_the_recipe():
    found = traits_of(offered(Twice), conditional())
    assert (found.data, found.networks, found.evaluations, found.more) == (("images",), ("frozen",), 2, False)
    # Teacher, student, average and the copy; the student's gradient and two moments.
    assert found.memory == pytest.approx(7.0)
    assert found.passes == 3 + (1 * 1 + 3 * 2) / 4
    assert found.cells == ("images", "frozen", "7.0", "4.8", "2")
    with pytest.raises(DistillkitError, match=r"broken \(of-others 1\.0\) cannot make its recipe.*nothing"):
        traits_of(offered(Broken), conditional())


@pytest.mark.parametrize("path", method_tables.PAGES, ids=lambda path: path.name)
def test_a_page_holds_what_the_code_and_the_reports_say(path):
    assert method_tables.written(path) == path.read_text(encoding="utf-8"), "run `python -m tools.method_tables`"


def test_every_method_of_ours_says_what_goes_wrong_and_is_in_the_page():
    page = (method_tables.ROOT / "docs" / "which-method.md").read_text(encoding="utf-8")
    for name, installed in registry().named("methods").items():
        if installed.package == BUILT_IN:
            assert installed.value.caution.endswith("."), name
            assert installed.value.caution in page


def test_the_command_line_shows_them(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    out = inside("methods").stdout
    teacher = load_teacher("digits", Quiet())
    row = traits_of(registry().named("methods")["dmd"], teacher).cells
    assert all(cell in out for cell in row) and registry().method("kd").caution[:12] in out
    shown = " ".join(inside("methods", "show", "kd").stdout.split())
    assert f"known to go wrong: {registry().method('kd').caution}" in shown
