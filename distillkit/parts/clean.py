"""Clean samples to put noise on, for methods that train on data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from distillkit.contracts.source import Images, Pairs

CleanSource = Literal["images", "pairs"]

CLEAN: Mapping[CleanSource, type[Images] | type[Pairs]] = {"images": Images, "pairs": Pairs}
"""Real data, or the teacher's own samples where none are at hand: what an objective names in `needs` and reads as
`step[CLEAN[source]]`; both batches have `sample` and `condition`."""
