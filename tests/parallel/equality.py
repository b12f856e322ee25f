"""Trainings of several processes end where those of one do, in losses, norms and weights. A program of tests: the ways
to spread networks, then a number of steps."""

import sys

from distillkit_consistency.method import Consistency
from distillkit_dmd.method import DMD
from distillkit_dmd2.method import DMD2
from tests.parallel.small import RANK, compared

parallels, steps = sys.argv[1].split(","), int(sys.argv[2])
judged = {"gan_weight": 0.1, "critic_gan_weight": 0.1}
if "hybrid" not in parallels:
    # Differences show in the first step, in float64; long enough for them to grow, if there were any.
    compared(DMD, {"distance": "l2"}, parallels[:1], 16, passes=2)
    compared(Consistency, {"target_decay": 0.9}, parallels, steps)
    # Heads on the frozen teacher, accumulated.
    compared(
        DMD2, {**judged, "gan_features": "teacher", "gan_level_min": 0.2, "updates": 1}, parallels[:1], 4, passes=2
    )
compared(DMD2, {**judged, "updates": 2, "r1_weight": 0.1}, parallels, steps)
sys.stdout.write(f"done:{RANK}\n")
