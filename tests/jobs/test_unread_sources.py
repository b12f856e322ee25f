"""Settings of data that a method does not read are not passed over in silence."""

import pytest

from distillkit.jobs.planned import planned


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"data": "nowhere"}, True), ({"pairs_count": 64}, False), ({"regression_weight": 0.0}, False), ({}, False)],
)
def test_settings_of_data_that_is_not_read_are_named(capsys, tmp_path, settings, said):
    with planned("dmd", "digits", output_dir=tmp_path / "run", device="cpu", **settings) as plan:
        plan.job()
    assert ("warning: dmd" in (shown := capsys.readouterr().out)) is said
    assert ("sources.data.path" in shown) is said
