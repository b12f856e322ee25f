"""Score estimators in the checkpoints of runs, for trainings that go on from the students beside them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from distillkit.contracts.denoiser import Denoiser
from distillkit.models.store.folder import check_fit
from distillkit.pieces import held_in
from distillkit.reading import read_json
from distillkit.students.artifact import DESCRIPTION
from distillkit.students.checkpoints import (
    PREFIX,
    STATE,
    groups_of,
    images_seen,
    kept_checkpoints,
    read_state,
    verify,
)

STUDENT, OPTIMIZER = "student", "optimizer-"


def initial_score(folder: Path, name: str, like: Denoiser) -> tuple[dict[str, Tensor], str] | None:
    """The weights of a score estimator that was trained beside a student, by the names of its denoiser, and where they
    come from; None where there is no checkpoint, or none that holds the same network.

    Args:
        folder: a checkpoint, or the student of a run, whose checkpoint of the same age is taken.
        name: of the learner that they are for, which goes before another one's.
        like: its network.

    Raises:
        DistillkitError: when the checkpoint is damaged.
    """
    if not (folder / STATE).is_file():
        seen = read_json(folder / DESCRIPTION).get("images_seen")
        beside = (path for path, state in kept_checkpoints(folder.parent) if images_seen(state) == seen)
        if (found := next(beside, None)) is None:
            return None
        folder = found
    state, wanted = read_state(folder / STATE), {key: tuple(value.shape) for key, value in like.state_dict().items()}
    groups = groups_of(state)
    trained = [group for group in groups if group != STUDENT and f"{OPTIMIZER}{group}" in groups]
    for group in sorted(trained, key=lambda group: group != name):
        held = held_in([folder / file for file in groups[group]])
        own = {key.removeprefix(PREFIX): value for key, value in held.items() if key.startswith(PREFIX)}
        if {key: tuple(value.shape) for key, value in own.items()} == wanted:
            for file in groups[group]:
                verify(folder, file, state)
            weights = {key: value.read() for key, value in own.items()}
            origin = f"the {group} of step {state.step:,} in {folder}"
            check_fit(like.state_dict(), weights, origin)
            return weights, origin
    return None
