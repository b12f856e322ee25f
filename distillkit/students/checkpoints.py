"""Students inside runs: what a selector such as `runs/x@best` names, and weights read from a checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.files import canonical_json
from distillkit.pieces import Held, held_in
from distillkit.reading import Unreadable, read_json, regular_file, validated
from distillkit.students.description import StudentDescription, read_description
from distillkit.weight_files import hash_of_files

STATE, PREFIX, SUFFIX = "state.json", "denoiser.", ".safetensors"
_NUMBERED = re.compile(r"(?P<group>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})\.safetensors")
WORDS = ("latest", "best", "average", "student")
"""Selectors beside the number of a step."""


LARGEST_STATE, LARGEST_TENSORS = 64 * 2**20, 2**40


class State(BaseModel):
    """state.json of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0, le=2**53)
    values: dict[str, Any]
    sha256: dict[
        Annotated[str, Field(pattern=r"^[^./\\][^/\\]*\.safetensors$")], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    ] = Field(description="of its files, which are beside it")
    seal: str | None = Field(None, alias="self", description="sha256 of the rest")


def read_state(path: Path) -> State:
    """The state.json of a checkpoint, whose seal is checked where it has one.

    Raises:
        DistillkitError: when it is missing, damaged or was edited; names the field.
    """
    body = read_json(path, most=LARGEST_STATE)
    state = validated(State, body, str(path))
    body.pop("self", None)
    if state.seal is not None and hashlib.sha256(canonical_json(body).encode()).hexdigest() != state.seal:
        raise Unreadable(f"{path} does not match its recorded hash")
    return state


def file_name(group: str, number: int = 1, of: int = 1) -> str:
    """The name of a file with a group of tensors, or of one of several that hold their pieces."""
    return f"{group}.safetensors" if of == 1 else f"{group}-{number:05d}-of-{of:05d}.safetensors"


def groups_of(state: State) -> dict[str, list[str]]:
    """The files of a checkpoint by the group of tensors in them, such as "student".

    Raises:
        Unreadable: naming a file that is not in the list of which it is a part.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(state.sha256):
        found = _NUMBERED.fullmatch(name)
        groups.setdefault(found["group"] if found else name.removesuffix(SUFFIX), []).append(name)
    for group, names in groups.items():
        found = _NUMBERED.fullmatch(names[0])
        of = int(found["of"]) if found else 0
        due = [file_name(group, k + 1, of) for k in range(of)] if found else names
        if names != due:
            absent = next((name for name in due if name not in names), names[-1])
            raise Unreadable(f"a checkpoint's list of files does not fit together at {absent}")
    return groups


def verify(folder: Path, name: str, state: State) -> None:
    """Compare a file of a checkpoint with its recorded hash.

    Raises:
        Missing, Unreadable: when it is missing, damaged or altered; names it.
    """
    with regular_file(folder / name) as (file, size):
        if size > LARGEST_TENSORS:
            raise Unreadable(
                f"cannot read {folder / name}: it has {size:,} bytes; at most {LARGEST_TENSORS:,} are read"
            )
        handle: Any = file
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != state.sha256[name]:
        raise Unreadable(f"{folder / name} does not match its recorded sha256")


def images_seen(state: State) -> int | None:
    """Of the student in a checkpoint; None where it does not say."""
    student = state.values.get("student")
    seen = student.get("images_seen") if isinstance(student, dict) else None
    return seen if isinstance(seen, int) else None


def kept_checkpoints(run: Path) -> Iterator[tuple[Path, State]]:
    """The folders of a run's checkpoints whose description can be read, the newest first."""
    for path in sorted(run.glob(f"checkpoints/step-*/{STATE}"), reverse=True):
        try:
            yield path.parent, read_state(path)
        except DistillkitError:
            continue


@dataclass(frozen=True)
class Weights:
    """A student's weights by the names of its denoiser, what it is, and where they come from, for people."""

    state: dict[str, Tensor]
    description: StudentDescription
    folder: Path
    origin: str


def split_selector(path: str | Path) -> tuple[Path, str]:
    """("runs/x", "best") of "runs/x@best"; no selector where a file or folder of the whole name exists."""
    whole = Path(path).expanduser()
    name, _, selector = str(whole).rpartition("@")
    if not name or whole.exists() or "/" in selector:
        return whole, ""
    if selector not in WORDS and not selector.isdecimal():
        raise UsageError(f"{path}: unknown selector @{selector}; known: @{', @'.join(WORDS)} and @STEP, such as @12000")
    return Path(name), selector


def from_run(run: Path, selector: str, say: Callable[[str], None]) -> Weights:
    """The weights that a selector names in a run: "latest" and a step are their moving averages.

    Args:
        selector: "latest", "best", "average", "student" (the raw weights of the newest checkpoint) or a step.
        say: hears of damaged checkpoints that were passed over.

    Raises:
        UsageError: where the run has no such checkpoint; names those that it has.
        DistillkitError: where it is damaged.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UsageError(f"{run} has no checkpoints, so @{selector} names nothing there")
    if selector == "best":
        if not (folder / "best" / STATE).is_file():
            raise UsageError(
                f"{run} keeps no best checkpoint: none was measured; train with --evaluate-every and a --protocol, "
                "or take @latest"
            )
        return read_checkpoint(folder / "best")
    steps = {step: path for path in folder.glob("step-*") if (step := _step(path)) is not None}
    if not steps:
        raise UsageError(f"{run} has no checkpoint yet")
    if selector.isdecimal():
        wanted = int(selector)
        if wanted not in steps:
            near = sorted(sorted(steps, key=lambda step: abs(step - wanted))[:5])
            raise UsageError(f"{run} has no checkpoint of step {wanted}; the nearest: {', '.join(map(str, near))}")
        return read_checkpoint(steps[wanted])
    return _newest(run, steps, "student" if selector == "student" else "average", say)


def _newest(run: Path, steps: Mapping[int, Path], role: str, say: Callable[[str], None]) -> Weights:
    damaged: list[str] = []
    for step in sorted(steps, reverse=True):
        try:
            found = read_checkpoint(steps[step], role)
        except UsageError:
            raise
        except DistillkitError as error:
            damaged.append(str(error))
            continue
        if damaged:
            say(f"passed over damaged checkpoints of {run}: {'; '.join(damaged)}")
        return found
    raise DistillkitError(f"every checkpoint of {run} is damaged: {'; '.join(damaged)}")


def read_checkpoint(folder: Path, role: str = "average") -> Weights:
    """The student in a checkpoint's folder; every hash is verified and nothing is unpickled.

    Args:
        role: "average", the moving average of the weights, or "student", the weights themselves.

    Raises:
        DistillkitError: when it is damaged, or holds no student.
    """
    state = read_state(folder / STATE)
    held, found = held_weights(folder, role, state)
    if "student" not in state.values:
        raise DistillkitError(f"{folder} holds no description of its student; it was not written by `distillkit run`")
    description = read_description(state.values["student"], f"the student in {folder / STATE}")
    kind = "moving average" if role == "average" else "raw weights"
    description = description.model_copy(update={"weights_sha256": found})
    weights = {name: value.read() for name, value in held.items()}
    return Weights(weights, description, folder, f"the {kind} of step {state.step:,} in {folder}")


def held_weights(folder: Path, role: str, state: State) -> tuple[dict[str, Held], str]:
    """A student's weights in a checkpoint by the names of its denoiser, not read yet, and a hash of the files with
    them, which must be the recorded ones.

    Raises:
        DistillkitError: when a file is missing, damaged or altered.
    """
    names = groups_of(state).get(role)
    if names is None:
        raise Unreadable(f"{folder}: its state.json lists no {file_name(role)}")
    for name in names:
        verify(folder, name, state)
    held = held_in([folder / name for name in names])
    weights = {key.removeprefix(PREFIX): value for key, value in held.items() if key.startswith(PREFIX)}
    return weights, hash_of_files({name: state.sha256[name] for name in names})


def _step(path: Path) -> int | None:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() and (path / STATE).is_file() else None
