"""First-party methods pass the conformance kit, as anyone's must."""

from distillkit.registry import registry
from distillkit.testing import parametrize_with_checks
from distillkit.testing.select import methods_of

FIRST_PARTY = methods_of("distillkit")


@parametrize_with_checks(*FIRST_PARTY)
def test_first_party_methods_conform(check):
    check()


def test_all_first_party_methods_are_among_them():
    assert {method.name for method in FIRST_PARTY} == {
        "consistency",
        "dmd",
        "dmd2",
        "ect",
        "f-distill",
        "kd",
        "ladd",
        "meanflow",
        "progressive",
        "reflow",
        "scm",
        "sid",
        "sida",
        "tcm",
    }
    assert set(registry().named("methods")) >= {method.name for method in FIRST_PARTY}
