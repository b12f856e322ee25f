"""`distillkit teachers`: the catalogue, one teacher in full, fetching and converting."""

from __future__ import annotations

import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from distillkit.cli.choices import EmbeddedGuidanceOption, ResolutionOption
from distillkit.cli.sample import sample

if TYPE_CHECKING:
    from distillkit.models.store.card import Card
    from distillkit.models.store.reference import Reference


class TeachersGroup(TyperGroup):
    """`train` has options made from the configuration, so it is made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), "train"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name != "train":
            return super().get_command(ctx, cmd_name)
        from distillkit.cli.train_teacher import train_command

        return train_command()


app = typer.Typer(
    cls=TeachersGroup,
    rich_markup_mode=None,
    help="List the teachers. `show` explains one, `sample` draws with one, `fetch` downloads one, `convert` reads a "
    "file, `train` makes one, `remove` frees the disk of one.",
    invoke_without_command=True,
)
app.command()(sample)


@app.callback()
def teachers(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand:
        return
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.models.store.resolve import card_of, resolve
    from distillkit.registry import registry

    out = console()
    table = Table()
    for title in ("teacher", "what it makes", "published", "licence", "where"):
        table.add_column(title, no_wrap=title == "teacher")
    variants: list[str] = []
    for name, offer in registry().named("teachers").items():
        card = card_of(offer)
        if card is None:
            table.add_row(name, "", "-", "-", offer.origin)
            continue
        if card.variant_of:
            variants.append(card.variant_of)
            continue
        licence = card.spec.licence.partition(" (")[0]
        published = card.published.partition(" at")[0] or "-"
        table.add_row(name, card.title, published, licence or "-", whereabouts(resolve(name)))
    out.print(table)
    if variants:
        out.print(
            f"and {len(variants)} other averages of the same trainings, such as those that distillkit teachers show "
            f"{variants[0]} lists",
            highlight=False,
            soft_wrap=True,
        )
    for (kind, _), reason in registry().refused.items():
        if kind == "teachers":
            out.print(f"refused: {reason}", markup=False)
    _show_local()
    out.print(
        "Published figures are the papers', under their own protocols. --teacher also takes a folder, an EDM .pkl, a "
        "diffusers model, or hf:ORG/REPO.\nnext: distillkit teachers show edm-cifar10-cond",
        highlight=False,
    )


def whereabouts(reference: Reference) -> str:
    """Where a teacher is: with its package, in the cache, or to be downloaded, and how large."""
    if not reference.available:
        size = reference.download_bytes
        return "to fetch" if size is None else f"to fetch: {size / 1e9:.1f} GB"
    return "cache" if reference.card and reference.card.url else "package"


def _show_local() -> None:
    """The teachers that take room on this machine."""
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.data.files import size_text
    from distillkit.jobs.local_teachers import local_teachers

    out, (found, strange) = console(), local_teachers()
    if found:
        table = Table(title="On this machine", title_justify="left")
        table.add_column("teacher", overflow="fold", ratio=2)
        table.add_column("size", justify="right", no_wrap=True)
        # One below the other: three columns have room for addresses in 80 columns.
        table.add_column("what, licence, from where", overflow="fold", ratio=3)
        for teacher in found:
            licence = teacher.licence.partition(" (")[0] or "licence not recorded"
            about = "\n".join((teacher.what, licence, teacher.origin))
            table.add_row(teacher.name, size_text(teacher.bytes), about)
        out.print(table)
    for one in strange:
        out.print(f"left alone: {one.path}: {one.reason}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name, folder, file or hf:ORG/REPO.")],
    resolution: ResolutionOption = None,
    embedded_guidance: EmbeddedGuidanceOption = None,
) -> None:
    """A teacher's shape, noise levels, sampler, licence and figure; downloads nothing."""
    import torch
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.data.files import size_text
    from distillkit.diffusion.solvers import solver_evaluations
    from distillkit.evaluation.presets import default_protocol, load_measure
    from distillkit.evaluation.teacher_record import teacher_record
    from distillkit.files import disk_bytes
    from distillkit.models.diffusers.options import PipelineConfig
    from distillkit.models.diffusers.parts import parts_in
    from distillkit.models.store.fetch import lock_file
    from distillkit.models.store.resolve import resolve
    from distillkit.models.weightless import without_weights
    from distillkit.progress import reporter_for

    out, reference = console(), resolve(name, PipelineConfig.of(resolution, embedded_guidance))
    here = reference.available
    # What is not here is only described: the largest would fill the memory with random weights.
    with nullcontext() if here else without_weights():
        teacher = reference.skeleton(reporter_for())
    spec, schedule, card = teacher.spec, teacher.schedule, reference.card
    parameters = sum(p.numel() for p in teacher.denoiser.parameters()) or (card.parameters if card else 0)
    decoded = " x ".join(map(str, teacher.codec.decoded_shape(spec.shape)))
    low, high = (
        float(schedule.ratio(torch.tensor([t], dtype=torch.float64))) for t in (schedule.t_min, schedule.t_max)
    )
    rows = {
        "samples": f"{' x '.join(map(str, spec.shape))}, decoded to {teacher.codec.content} {decoded}",
        "autoencoder": ", ".join(parts.source for parts in parts_in(spec.codec)),
        "conditions": teacher.conditioner.summary(),
        "guidance": "yes" if teacher.guidable else "with another network alone (--guide-with NAME)",
        "network": f"{type(teacher.denoiser).__name__}, {parameters:,} parameters",
        "schedule": f"{type(schedule).__name__}, t {schedule.t_min:g} to {schedule.t_max:g} "
        f"(sigma / alpha {low:.3g} to {high:.3g})",
        "sampler": f"{spec.solver}, {spec.solver_steps} steps, "
        f"NFE {solver_evaluations(spec.solver, spec.solver_steps)}",
        "licence": spec.licence or "not recorded",
        "source": spec.source or "not recorded",
    }
    if card and card.url:
        rows |= {
            "published (quoted)": f"{card.published}, by the paper's own protocol",
            "reference statistics": card.reference,
            "other names": ", ".join(card.aliases),
            "other averages": "\n".join(_variants(card)),
            "where": whereabouts(reference) + (f"; hash recorded in {lock_file()}" if here else ""),
        }
    if place := reference.place:
        rows["on this disk"] = f"{size_text(disk_bytes(place))} in {place}"
    if spec.weights_sha256:
        rows["weights sha256"] = spec.weights_sha256
    if here and (protocol := default_protocol(teacher)):
        rows["protocol"] = protocol
    table = Table(show_header=False, title=spec.name, title_justify="left")
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    if here and card and not card.url and (protocol := default_protocol(teacher)):
        record = teacher_record(teacher, load_measure(protocol), device=torch.device("cpu"), reporter=reporter_for())
        table.add_row(record.label, f"{record.figures[record.label].text} ({record.protocol_id})")
    out.print(table)
    if not here:
        out.print(f"next: distillkit teachers fetch {shlex.quote(spec.name)}", highlight=False)


def _variants(card: Card) -> list[str]:
    """Other averages of a teacher's training, and guiding networks of its size, with the figures they are for."""
    from distillkit.models.store.resolve import cards

    main = card.variant_of or card.name
    found = [other for other in cards().values() if main in (other.name, other.variant_of) and other is not card]
    return [f"{other.name} ({other.published})" for other in found]


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="Catalogue name.")]) -> None:
    """Download a published teacher, record its sha256, and convert it to safetensors without executing it.

    The cache is DISTILLKIT_CACHE or the user's; DISTILLKIT_MIRROR (an address or a folder) stands in for the host.
    """
    from distillkit.cli.closing import console, suggest_run
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import UsageError
    from distillkit.models.store.fetch import fetch as fetch_teacher
    from distillkit.models.store.resolve import cards, resolve
    from distillkit.progress import reporter_for
    from distillkit.registry import unknown

    published = {known: card for known, card in cards().items() if card.url}
    card = resolve(name).card
    if card is None or not card.url:
        raise UsageError(unknown("published teacher", name, published, "distillkit teachers"))
    with stop_on_signal() as stop:
        folder = fetch_teacher(card, reporter_for(), lambda: stop.signum or 0)
    out = console()
    out.print(f"{card.name} is in {folder}", highlight=False, soft_wrap=True, markup=False)
    suggest_run(out, card.name)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="EDM .pkl, torch.save file or .safetensors.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder to make.  [default: the file's name]")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Whose network the weights are for, where the file does not say: name or folder.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the teacher.  [default: the file's name]")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, recorded with every student.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="What weights do not say: num_heads=4, vae=FOLDER."),
    ] = None,
) -> None:
    """Turn a file of weights into a teacher folder (safetensors and JSON). Nothing in the file is executed."""
    from distillkit.cli.closing import console, suggest_run
    from distillkit.errors import UsageError
    from distillkit.files import require_new
    from distillkit.models.store.convert import convert as convert_file
    from distillkit.models.store.resolve import card_of, known_spec, offered

    folder = output_dir or Path(file.stem)
    require_new(folder)
    known = offered(file.stem)
    card = card_of(known) if known else None
    asked: dict[str, str] = {}
    for one in set_ or ():
        if not re.fullmatch(r"\w+=.+", one):
            raise UsageError(f"--set {one}: write it as NAME=VALUE, such as num_heads=4")
        setting, value = one.split("=", 1)
        if asked.setdefault(setting, value) != value:
            raise UsageError(f"--set {setting} is given as {asked[setting]} and as {value}: leave one of them out")
    out = console()
    spec = convert_file(
        file, folder, name=name or (card.name if card else file.stem),
        like=known_spec(like, "--like") if like else None, by_name=card.spec if card else None,
        licence=licence or (card.spec.licence if card else ""),
        asked=asked,
        say=lambda line: out.print(line, highlight=False, soft_wrap=True, markup=False),
    )  # fmt: skip
    shape = " x ".join(map(str, spec.shape))
    # A folder that is called like a published teacher is told from it by its path.
    found = f"./{folder}" if offered(str(folder)) else str(folder)
    out.print(f"{spec.network['kind']} for samples {shape}\nteacher in {found}", highlight=False, soft_wrap=True,
              markup=False)  # fmt: skip
    suggest_run(out, found)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A teacher in the cache, as `distillkit teachers` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a fetched or converted teacher from the cache.

    The recorded sha256 of a published file stays, so that another file is refused when it is fetched again.
    """
    import sys

    from distillkit.cli.closing import console
    from distillkit.data.files import size_text
    from distillkit.errors import UsageError
    from distillkit.jobs.local_teachers import removable, remove_teacher

    entries, found = removable(name)
    size, out = size_text(sum(entry.bytes for entry in entries)), console()
    for entry in entries:
        out.print(f"{entry.path}: {entry.about or entry.spare}", highlight=False, soft_wrap=True, markup=False)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"nobody is there to confirm that {size} are removed: give --yes")
        if not typer.confirm(f"Remove {size}?"):
            out.print("nothing was removed")
            return
    remove_teacher(entries, found)
    out.print(f"removed; {size} freed", highlight=False)
