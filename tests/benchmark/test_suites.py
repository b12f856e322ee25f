"""Suites: read with clear errors, chosen from, and turned into trainings that cost the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit import UsageError
from distillkit.benchmark.jobs import affordable, configuration, source_hash
from distillkit.benchmark.suite import chosen, load_suite, shipped_suites

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


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_hold_valid_runs(name):
    suite = load_suite(name)
    assert suite.name == name
    for entry in suite.methods:
        assert configuration(suite, entry).method == suite.method_of(entry)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (("budget: 100k", "bugdet: 100k"), ["suite.yaml:4", "Did you mean 'budget'"]),
        (("budget: 100k", "budget: 0"), ["suite.yaml:4", "greater than or equal to 1"]),
        (("name: mine", "name: ../mine"), ["suite.yaml:2", "pattern"]),
        (("kd: {}", "kd: {seting: 1}"), ["suite.yaml:6", "Did you mean 'settings'"]),
        (("kd: {}", "kd: {ablation_of: dmd}"), ["ablation of 'dmd', which is no entry"]),
        (("teacher: mixture\n", ""), ["teacher", "Field required"]),
        (("  kd: {}", "  ../kd: {method: kd}"), ["'../kd' names files"]),
    ],
)
def test_a_mistake_in_a_suite_is_named_with_its_place(write, change, fragments):
    with pytest.raises(UsageError) as caught:
        load_suite(write(SUITE.replace(*change)))
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_unknown_suites_and_methods_are_named_with_the_nearest(write):
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        load_suite("digit")
    with pytest.raises(UsageError, match="Did you mean 'consistency'"):
        chosen(load_suite(write(SUITE)), methods=["consistancy"])


def test_any_installed_method_can_be_compared_beside_a_suites_entries(write):
    suite = chosen(load_suite(write(SUITE)), methods=["slow", "dmd"], seeds=2, budget=5000)
    assert list(suite.methods) == ["slow", "dmd"] and suite.method_of("slow") == "kd"
    assert (suite.seeds, suite.budget) == (2, 5000)
    alone = chosen(load_suite("digits"), methods=["dmd-without-kl"])
    assert alone.methods["dmd-without-kl"].ablation_of == "", "what it leaves out is not there to compare with"


def test_settings_are_the_presets_then_the_suites_then_the_entrys(write):
    suite = load_suite(write(SUITE.replace("methods:", "training: {batch: 32, lr: 2.0e-5}\nmethods:")))
    kd, slow = configuration(suite, "kd"), configuration(suite, "slow")
    assert kd.training.lr_schedule == "cosine", "the preset's"
    assert (kd.training.batch, kd.training.lr) == (32, 2e-5)
    assert slow.training.lr == 1e-5
    bad = load_suite(write(SUITE.replace("lr: 1.0e-5", "lr: fast")))
    with pytest.raises(UsageError, match=r"entry slow: .*lr"):
        configuration(bad, "slow")


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
        assert "too small" in str(error) and pairs + an_image * batch > budget * (1 - 1e-9)
        return
    assert images % batch == 0 and images >= batch
    assert pairs + images * an_image <= budget * (1 + 1e-9)
    assert pairs + (images + batch) * an_image > budget * (1 - 1e-9)


def test_editing_a_plugin_changes_its_hash(tmp_path, monkeypatch):
    package = tmp_path / "edited_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = source_hash("edited_plugin")
    source_hash.cache_clear()
    assert source_hash("edited_plugin") == before
    source_hash.cache_clear()
    (package / "part.py").write_text("x = 1\n")
    assert source_hash("edited_plugin") != before
