"""The one place that knows what a teacher's name means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import UsageError
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.fetch import teachers_folder
from distillkit.models.store.folder import is_teacher_folder
from distillkit.models.store.guided import Guided
from distillkit.models.store.reference import File, Folder, Offered, Reference, Repository
from distillkit.progress import Reporter, reporter_for
from distillkit.registry import BUILT_IN, Installed, registry, unknown


def resolve(name: str, asked: PipelineConfig = PLAIN) -> Reference:
    """What a teacher's name refers to: one that is offered, by name or alias in any case; `hf:ORG/REPO[@REVISION]`; a
    folder; a file of weights; or what was converted into the cache, by its folder's name there. Nothing is loaded or
    downloaded.

    Args:
        asked: what is asked of it beside its files, and which other teacher guides it; that one is used alike.

    Raises:
        UsageError: for a name that is none of these, says why where it was refused to those who offer it; or one of
            which this cannot be asked.
    """
    reference = _resolved(name).with_options(asked.unguided)
    if asked.guide_with is None:
        return reference
    try:
        return Guided(reference, _resolved(asked.guide_with).with_options(asked.unguided))
    except UsageError as error:
        raise UsageError(f"--guide-with {asked.guide_with}: {error}") from error


def known_spec(name: str, option: str) -> TeacherSpec:
    """The facts of a teacher that are known without its weights.

    Args:
        option: that names it, for messages.

    Raises:
        UsageError: for an unknown name, or a file, whose network is known only when it is read.
    """
    if (spec := resolve(name).spec) is None:
        raise UsageError(
            f"{option} {name}: what it is made of is known only when it is loaded; name a teacher folder, which "
            "`distillkit teachers convert` makes of a file"
        )
    return spec


def _resolved(name: str) -> Reference:
    if not name.strip():
        # As a path it would be the working folder.
        raise UsageError("a teacher's name is empty: give one that `distillkit teachers` lists, a folder or a file")
    if offer := offered(name):
        return Offered(offer.name, offer)
    if name.startswith(hub.PREFIX):
        hub.parts(name)
        return Repository(name)
    path = Path(name).expanduser()
    if path.is_file():
        known = offered(path.stem)
        return File(name, path, card_of(known) if known else None)
    if path.is_dir():
        return Folder(name, path)
    if kept := in_cache(name):
        return Folder(name, kept)
    if reason := registry().refused.get(("teachers", name)):
        raise UsageError(reason)
    if path.is_absolute() or "/" in name or name.startswith((".", "~")):
        is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
        on_hub = f"; a repository of the hub is called {hub.PREFIX}{name}" if is_repository else ""
        raise UsageError(f"no teacher at {name}: there is no such file or folder{on_hub}")
    raise UsageError(
        unknown("teacher", name, _listed(), "distillkit teachers", registry().named("teachers"))
        + " A folder, a file or hf:ORG/REPO works too."
    )


def _listed() -> list[str]:
    """The teachers that are listed by name: without other averages of their trainings."""
    named = registry().named("teachers").items()
    return [name for name, offer in named if not ((card := card_of(offer)) and card.variant_of)]


def in_cache(name: str) -> Path | None:
    """The teacher folder of that name in the cache, as `distillkit teachers` lists what was converted."""
    folder = teachers_folder() / name
    return folder if name == Path(name).name and is_teacher_folder(folder) else None


def found_again(name: str) -> str:
    """The name by which a teacher is found from any folder: the whole path of a folder or a file."""
    path = Path(name).expanduser()
    return str(path.absolute()) if offered(name) is None and path.exists() else name


def load_teacher(
    name: str,
    reporter: Reporter | None = None,
    should_stop: Callable[[], int] = lambda: 0,
    dtype: torch.dtype = torch.float32,
    *,
    resolution: int | str | tuple[int, int] | None = None,
    embedded_guidance: float | None = None,
    guide_with: str | None = None,
) -> Teacher:
    """A teacher by name or alias, `hf:ORG/REPO[@REVISION]`, folder or file.

    Folders hold `teacher.json` and `model.safetensors`, or a diffusers model; files are EDM pickles and `torch.save`
    files, which are converted once and never executed.

    Args:
        name: what to load.
        reporter: where downloads are reported; standard output by default.
        should_stop: a signal's number once one has come, else 0.
        dtype: of the weights of its network and text encoders; those of diffusers take float32, bfloat16, float16.
        resolution: side, "WIDTHxHEIGHT" or (width, height) in pixels of the pictures of a pipeline of latents; its own
            by default.
        embedded_guidance: weight that is an input of the network (FLUX.1-dev); the pipeline's default by default.
        guide_with: another teacher that guidance leads away from, by the same kinds of names (`Teacher.guided_by`); the
            teacher's own prediction without a condition by default.

    Raises:
        UsageError: for a name that is none of these, a network that takes no other `dtype`, or options that it does not
            follow.
        DistillkitError: when a file is damaged, refused or cannot be had.
        Interrupted: after a signal during a download.
    """
    asked = PipelineConfig.of(resolution, embedded_guidance, guide_with)
    return resolve(name, asked).load(reporter or reporter_for(), should_stop, dtype)


def offered(name: str) -> Installed | None:
    """The offer of that name or alias, in any case and distillkit's own first; None where there is none."""
    offers = registry().named("teachers")
    if found := offers.get(name) or offers.get(name.lower()):
        return found
    for offer in sorted(offers.values(), key=lambda offer: offer.package != BUILT_IN):
        if (card := card_of(offer)) and name.lower() in card.aliases:
            return offer
    return None


def card_of(offer: Installed) -> Card | None:
    """The card that comes with an offered teacher, where one does."""
    return offer.value.card if isinstance(offer.value, TeacherOffer) else None


def cards() -> dict[str, Card]:
    """The cards of all offered teachers that have one, by the teachers' names."""
    return {name: card for name, offer in registry().named("teachers").items() if (card := card_of(offer))}


def default_teacher() -> str:
    """The name of the teacher of commands that name none.

    Raises:
        UsageError: where distillkit's own offers are broken.
    """
    for name, offer in registry().named("teachers").items():
        if offer.package == BUILT_IN and (card := card_of(offer)) and card.default:
            return name
    raise UsageError("name a teacher: --teacher NAME (`distillkit teachers` lists them)")


def preset_name(name: str) -> str:
    """The name under which presets know a teacher; a name that refers to nothing is its own.

    Raises:
        DistillkitError: when a folder's description is damaged.
    """
    try:
        return resolve(name).preset_name
    except UsageError:
        return name
