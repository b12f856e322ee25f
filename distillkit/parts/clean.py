"""Clean samples to put noise on, for methods that train on data, with or without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from distillkit.contracts.source import Images, Pairs

CleanSource = Literal["images", "pairs"]

CLEAN: Mapping[CleanSource, type[Images] | type[Pairs]] = {"images": Images, "pairs": Pairs}
"""Real data, or the teacher's own samples where none are at hand: what an objective names in `needs` and reads as
`step[CLEAN[source]]`; both batches have `sample` and `condition`."""


def require_teacher_for_guidance(guidance: float, *, teacher_free: bool) -> None:
    """For the validators of settings: guidance is the teacher's, and training on data alone has none.

    Raises:
        ValueError: for another weight than 1 where the teacher is left out.
    """
    if teacher_free and guidance != 1:
        raise ValueError(
            f"guidance {guidance:g} is the teacher's, which teacher_free leaves out: set teacher_free to false "
            "(--no-teacher-free), or guidance to 1"
        )
