"""An average of any width, made after the training out of those that were kept (post-hoc EMA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from distillkit.contracts.codec import Pixels
from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import require_new, write_bytes
from distillkit.jobs.ema_files import averages_in_files, is_average
from distillkit.jobs.train_teacher import TEACHER, write_trained
from distillkit.models.store.prompts import own_prompts
from distillkit.names import name_from
from distillkit.power_ema import LARGEST, Mixture, Profile, mixture
from distillkit.progress import Reporter, reporter_for
from distillkit.reading import validated
from distillkit.registry import registry
from distillkit.students.artifact import write_student
from distillkit.students.card import CARD, card
from distillkit.students.description import read_description
from distillkit.students.snapshots import FOLDER, KeptAverage, KeptAverages, kept_averages
from distillkit.tensors import Stored

FAR = 0.05
"""Share of a profile that may be missed without a word of doubt."""


@dataclass(frozen=True)
class MadeAverage:
    """What `make_average` made.

    Args:
        folder: of a teacher or a student.
        profile: that was asked for. images: of the training at its time.
        mixture: how it is made of the kept averages.
    """

    folder: Path
    profile: Profile
    images: int
    mixture: Mixture


def make_average(
    sources: str | Path | Sequence[str | Path],
    sigma_rel: float,
    output_dir: str | Path | None = None,
    *,
    at: int | None = None,
    like: str | None = None,
    name: str | None = None,
    licence: str = "",
    reporter: Reporter | None = None,
) -> MadeAverage:
    """A network whose weights are the average of relative width `sigma_rel` over a training, out of the averages that
    the training has kept (Karras et al. 2024, arXiv 2312.02696, section 3.2); what `distillkit ema` does.

    One tensor is in memory at a time.

    Args:
        sources: a run that was trained with `ema_sigmas`, whether of a student or a teacher, finished or not; a folder
            of networks that are named by thousands of images and width as EDM2's are, such as
            network-snapshot-0008388-0.050.pkl; or several such files.
        output_dir: folder to make, of a student or a teacher as the run's; beside the run or the files by default.
        at: images of the training at whose time it is taken: those of a snapshot; the last one's by default.
        like: whose network the files hold, where they do not say.
        name: of a teacher; as it was trained by default.
        licence: of a teacher's weights, recorded with it.
        reporter: hears what is done; standard output by default.

    Raises:
        UsageError: for a width that cannot be, a source without averages, or a time at which none was kept.
        DistillkitError: when a file is missing, damaged or of another network.
    """
    if not 0 < sigma_rel < LARGEST:
        raise UsageError(f"--sigma-rel {sigma_rel:g}: between 0 and {LARGEST:.3f}, such as 0.1")
    reporter = reporter or reporter_for()
    paths = [Path(source).expanduser() for source in ([sources] if isinstance(sources, str | Path) else sources)]
    folder = Path(output_dir).expanduser() if output_dir else _beside(paths, sigma_rel)
    require_new(folder)
    run = paths[0] if len(paths) == 1 and (paths[0] / FOLDER).is_dir() else None
    if run is None and len(paths) == 1 and paths[0].is_dir() and (paths[0] / "checkpoints").is_dir():
        raise UsageError(
            f"{paths[0]} has kept no averages: a training keeps them with --ema-sigmas 0.05,0.10; its own moving "
            "average is the student or the teacher that it wrote"
        )
    if run is not None and like:
        raise UsageError(f"--like {like} is for files of weights, and {run} says what its networks are")
    # On the same disk as the folder, whose parents are made with it.
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir():
        raise UsageError(f"--output-dir {folder}: {place} is a file, and a folder is due there")
    with TemporaryDirectory(prefix=".ema-", dir=place) as aside:
        if run is not None:
            found = kept_averages(run / FOLDER, at)
        else:
            found = averages_in_files(paths, Path(aside), like=like, at=at, say=reporter.say)
        made = Path(aside) / "made"
        made.mkdir()
        kept = _of_one_training(found.averages)
        wanted = Profile(kept[-1].profile.time, sigma_rel)
        how = mixture([one.profile for one in kept], wanted)
        what = _said(kept, wanted, how, reporter.say)
        _write(made, found, _mixed(kept, how), kept[-1].images, what, run=run, name=name, licence=licence)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return MadeAverage(folder, wanted, kept[-1].images, how)


def _beside(paths: Sequence[Path], sigma_rel: float) -> Path:
    first = paths[0]
    place = first.parent if is_average(first) else first
    return place.with_name(f"{place.resolve().name}-ema-{sigma_rel:g}")


def _of_one_training(averages: Sequence[KeptAverage]) -> list[KeptAverage]:
    """Those that began with the last one, the last at the end.

    Raises:
        UsageError: for one that is there twice.
    """
    ordered = sorted(averages, key=lambda one: (one.images, one.profile.sigma_rel))
    kept = [one for one in ordered if one.since == ordered[-1].since]
    for one, other in pairwise(kept):
        if one.profile == other.profile:
            raise UsageError(f"{one.origin} and {other.origin} are of one time and width: leave one of them out")
    return kept


def _said(kept: Sequence[KeptAverage], wanted: Profile, how: Mixture, say: Callable[[str], None]) -> str:
    """What is made, for people; said with how well it is met."""
    widths = ", ".join(f"{width:g}" for width in sorted({one.profile.sigma_rel for one in kept}))
    what = (
        f"the average of sigma_rel {wanted.sigma_rel:g} at {kept[-1].images:,} images, of {len(kept):,} that were kept "
        f"with sigma_rel {widths}"
    )
    say(f"{what}; its profile over time is met to {how.error:.2%}")
    if how.error > FAR:
        say(
            "warning: that is far off; more snapshots (--snapshot-every), or widths on both sides of it "
            "(--ema-sigmas), come closer"
        )
    return what


@dataclass(frozen=True)
class _Mixed:
    """A tensor that is made of those of several averages when it is read."""

    parts: Sequence[Tensor | Stored]
    coefficients: Sequence[float]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[-1].shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[-1].dtype

    def read(self) -> Tensor:
        """Added up in float64, so that what is the same in all stays so: tables that are no weights."""
        last = _whole(self.parts[-1])
        if not last.is_floating_point():
            return last
        total = torch.zeros(last.shape, dtype=torch.float64)
        for part, coefficient in zip(self.parts, self.coefficients, strict=True):
            total.add_(_whole(part).double(), alpha=coefficient)
        return total.to(last.dtype)


def _whole(part: Tensor | Stored) -> Tensor:
    return part if isinstance(part, Tensor) else part.read()


def _mixed(kept: Sequence[KeptAverage], how: Mixture) -> dict[str, _Mixed]:
    """The weights by name.

    Raises:
        DistillkitError: where averages have other tensors than the last.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in one.weights.items()} for one in kept]
    for one, found in zip(kept, shapes, strict=True):
        if strange := sorted(name for name in {*found, *shapes[-1]} if found.get(name) != shapes[-1].get(name)):
            raise DistillkitError(
                f"{one.origin} is of another network than {kept[-1].origin}: {strange[0]} is "
                f"{found.get(strange[0], 'missing')} there, not {shapes[-1].get(strange[0], 'missing')}"
            )
    return {name: _Mixed([one.weights[name] for one in kept], how.coefficients) for name in shapes[-1]}


def _write(
    folder: Path, found: KeptAverages, weights: Mapping[str, Stored], images: int, what: str, *, run: Path | None,
    name: str | None, licence: str,
) -> None:  # fmt: skip
    """The student or the teacher with these weights.

    Raises:
        UsageError: for a name or a licence of a student.
    """
    if found.student is not None:
        if name or licence:
            raise UsageError("--name and --licence are of teachers, and this run trained a student")
        described = read_description(found.student, f"the student in {run}")
        remarks = (*described.remarks, f"its weights are {what}")
        described = described.model_copy(update={"images_seen": images, "remarks": remarks})
        write_bytes(folder / CARD, card(write_student(folder, described, weights)).encode())
        return
    if found.teacher is None:
        raise DistillkitError(f"{run} does not say of what its averages are")
    spec = validated(TeacherSpec, found.teacher, f"the teacher in {run}" if run else "the teacher")
    changes = {
        "name": name_from(name) if name else spec.name, "licence": licence or spec.licence,
        "source": f"{spec.source}; {what}".removeprefix("; "),
    }  # fmt: skip
    codec = registry().build("codecs", spec.codec) if spec.codec else Pixels()
    prompts = own_prompts(run / TEACHER) if run else None
    write_trained(folder, weights, spec.model_copy(update=changes), codec, prompts.texts if prompts else None)
