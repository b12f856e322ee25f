"""Suites: read with clear errors, chosen from, and turned into trainings that cost the same."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit import UsageError
from distillkit.benchmark.jobs import affordable, configuration, source_hash
from distillkit.benchmark.suite import Suite, chosen, default_suite, load_suite, shipped_suites
from distillkit.jobs.planned import method_offer
from distillkit.registry import registry

SUITE = """
name: mine
teacher: mixture
budget: 100k
methods:
  kd: {}
  slow: {method: kd, training: {lr: 1.0e-5}}
"""


@pytest.fixture
def write(tmp_path):
    def put(text):
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return str(path)

    return put


def configured(suite, entry, length=None):
    return configuration(suite, entry, method_offer(suite.method_of(entry)), length)


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_hold_valid_runs(name):
    suite = load_suite(name)
    assert suite.name == name
    for entry in suite.methods:
        assert configured(suite, entry).method == suite.method_of(entry)


def test_exactly_one_shipped_suite_is_the_default():
    assert [name for name in shipped_suites() if load_suite(name).default] == [default_suite()]


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (("budget: 100k", "bugdet: 100k"), ["suite.yaml:4", "'budget'"]),
        (("budget: 100k", "budget: 0"), ["suite.yaml:4"]),
        (("budget: 100k", "budget: 1k\nseeds: 1000000000"), ["suite.yaml:5", "seeds"]),
        (("budget: 100k", "budget: 1k\nnfe: [-1]"), ["nfe"]),
        (("budget: 100k", "budget: 1k\nteacher_steps: [0]"), ["teacher_steps"]),
        (("name: mine", "name: ../mine"), ["suite.yaml:2"]),
        (("kd: {}", "kd: {seting: 1}"), ["suite.yaml:6", "'settings'"]),
        (("kd: {}", "kd: {pairs: {count: 1}}"), ["suite.yaml:6", "sources"]),
        (("kd: {}", "kd: {ablation_of: dmd}"), ["'dmd'"]),
        (("teacher: mixture\n", ""), ["teacher"]),
        (("  kd: {}", "  ../kd: {method: kd}"), ["'../kd'"]),
    ],
)
def test_a_mistake_in_a_suite_is_named_with_its_place(write, change, fragments):
    with pytest.raises(UsageError) as caught:
        load_suite(write(SUITE.replace(*change)))
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_unknown_suites_and_methods_are_named_with_the_nearest(write):
    with pytest.raises(UsageError, match=repr(default_suite())):
        load_suite(default_suite()[:-1])
    with pytest.raises(UsageError, match="'consistency'"):
        chosen(load_suite(write(SUITE)), methods=["consistancy"])


def test_any_installed_method_can_be_compared_beside_a_suites_entries(write):
    suite = chosen(load_suite(write(SUITE)), methods=["slow", "dmd"], seeds=2, budget=5000)
    assert list(suite.methods) == ["slow", "dmd"] and suite.method_of("slow") == "kd"
    assert (suite.seeds, suite.budget) == (2, 5000)
    alone = chosen(load_suite("digits"), methods=["dmd-without-kl"])
    assert alone.methods["dmd-without-kl"].ablation_of == "", "what it leaves out is not there to compare with"
    with pytest.raises(UsageError, match="seeds"):
        chosen(suite, seeds=0)


def test_a_python_file_can_be_compared_too(write, method_file):
    suite = chosen(load_suite(write(SUITE)), methods=[str(method_file("of-a-file")), "kd"])
    assert list(suite.methods) == ["of-a-file", "kd"]
    assert configured(suite, "of-a-file").method == "of-a-file"
    assert registry().named("methods")["of-a-file"].package == "mine.py"
    named = load_suite(write(SUITE + "  filed: {method: mine.py}\n"))
    assert configured(named, "filed").method == "of-a-file", "found beside the suite, wherever the work is done"


def test_a_file_cannot_take_the_name_of_a_built_in_method(write, method_file):
    with pytest.raises(UsageError, match=r"'kd'.*taker\.py"):
        chosen(load_suite(write(SUITE)), methods=[str(method_file("kd", "taker.py"))])


def test_settings_are_the_presets_then_the_suites_then_the_entrys(write):
    common = "training: {batch: 32, lr: 2.0e-5}\nsources: {pairs: {count: 64, steps: 4}}\nmethods:"
    text = SUITE.replace("methods:", common).replace("kd: {}", "kd: {sources: {pairs: {count: 128}}}")
    suite = load_suite(write(text.replace("1.0e-5", "1.0e-5}, student: {start_ratio: 5.0")))
    kd, slow = configured(suite, "kd"), configured(suite, "slow")
    assert kd.training.lr_schedule == "cosine", "the preset's"
    assert (kd.training.batch, kd.training.lr) == (32, 2e-5)
    assert slow.training.lr == 1e-5
    assert kd.sources["pairs"] == {"count": 128, "steps": 4} and slow.sources["pairs"]["count"] == 64
    assert (kd.student.start_ratio, slow.student.start_ratio) == (2.5, 5.0), "the preset's and the entry's"
    bad = load_suite(write(SUITE.replace("lr: 1.0e-5", "lr: fast")))
    with pytest.raises(UsageError, match=r"entry slow: .*lr"):
        configured(bad, "slow")


def test_one_guidance_holds_for_a_suite(write):
    """Of methods that have one, of the pairs of those that have none, and of the teacher that they stand beside."""
    entries = "methods:\n  sid: {}\n  other: {method: dmd, settings: {guidance: 5.0}}"
    suite = load_suite(write(SUITE.replace("methods:", entries).replace("teacher:", "guidance: 3.0\nteacher:")))
    assert configured(suite, "sid").settings["guidance"] == 3 and configured(suite, "other").settings["guidance"] == 5
    assert configured(suite, "kd").sources["pairs"]["guidance"] == 3
    assert "pairs" not in configured(suite, "sid").sources
    plain = load_suite(write(SUITE))
    assert "guidance" not in configured(plain, "kd").sources.get("pairs", {})


def test_a_suite_names_protocol_and_samples_of_every_run():
    suite = Suite(name="mine", teacher="digits", budget=1000, protocol="digits8", samples=300, methods={"kd": {}})
    evaluation = configured(suite, "kd").evaluation
    assert (evaluation.protocol, evaluation.samples) == ("digits8", 300)
    images = chosen(suite, data="folder").sources["data"]
    assert images == {"path": "folder"}


@given(
    budget=st.integers(1, 10**9),
    an_image=st.floats(1, 50),
    pairs=st.integers(0, 10**8),
    batch=st.integers(1, 4096),
)
def test_a_budget_is_spent_to_the_last_whole_batch(budget, an_image, pairs, batch):
    try:
        images = affordable(budget, an_image, pairs, batch)
    except UsageError as error:
        assert f"{budget:,}" in str(error) and pairs + an_image * batch > budget * (1 - 1e-9)
        return
    assert images % batch == 0 and images >= batch
    assert pairs + images * an_image <= budget * (1 + 1e-9)
    assert pairs + (images + batch) * an_image > budget * (1 - 1e-9)


def test_editing_a_plugin_changes_its_hash(tmp_path, monkeypatch):
    package = tmp_path / "edited_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("class Method:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import edited_plugin

    before = source_hash(edited_plugin.Method)
    assert source_hash(edited_plugin.Method) == before
    (package / "part.py").write_text("x = 1\n")
    assert source_hash(edited_plugin.Method) != before
    sys.modules.pop("edited_plugin")


def test_prompts_of_a_suite_lie_beside_it_or_are_named(write, tmp_path):
    path = write(f"{SUITE}\nprompts: {{path: mine.txt, unique: true}}\n")
    assert load_suite(path).prompts == {"path": "mine.txt", "unique": True}
    (tmp_path / "mine.txt").write_text("a cat\n")
    suite = load_suite(path)
    assert suite.prompts["path"] == str(tmp_path / "mine.txt")
    entry = next(iter(suite.methods))
    config = configured(suite, entry)
    assert config.prompts.path == suite.prompts["path"] and config.prompts.unique
    assert chosen(suite, prompts="other.txt").prompts == {"path": "other.txt"}
