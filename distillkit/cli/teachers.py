"""`distillkit teachers`: the catalogue, one teacher in full, fetching and converting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from distillkit.models.edm.catalog import CatalogEntry


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
    help="List the teachers. `show` explains one, `fetch` downloads one, `convert` reads a file, `train` makes one.",
    invoke_without_command=True,
)


@app.callback()
def teachers(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand:
        return
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.registry import registry
    from distillkit.models.edm.catalog import CATALOG

    out = console()
    table = Table()
    for title in ("teacher", "what it makes", "published", "licence", "where"):
        table.add_column(title, no_wrap=title == "teacher")
    for entry in CATALOG.values():
        licence = entry.spec.licence.partition(" (")[0]
        published = entry.published.partition(" at")[0] or "-"
        table.add_row(entry.name, entry.title, published, licence, whereabouts(entry))
    for name, installed in registry().teachers.items():
        table.add_row(name, "", "-", "-", installed.origin)
    out.print(table)
    out.print(
        "Published figures are the papers', under their own protocols. --teacher also takes a folder, an EDM .pkl, a "
        "diffusers model, or hf:ORG/REPO.\nnext: distillkit teachers show edm-cifar10-cond",
        highlight=False,
    )


def whereabouts(entry: CatalogEntry) -> str:
    """Where a teacher is: in the package, in the cache, or to be downloaded, and how large."""
    from distillkit.models.store.fetch import fetched

    if not entry.url:
        return "package"
    return "cache" if fetched(entry) else f"to fetch: {entry.parameters * 4 / 1e9:.1f} GB"


@app.command()
def show(name: Annotated[str, typer.Argument(help="Catalogue name, folder, file or hf:ORG/REPO.")]) -> None:
    """A teacher's shape, noise levels, sampler, licence and score; downloads nothing."""
    import torch
    from rich.markup import escape
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.progress import reporter_for
    from distillkit.jobs.scores import ruler_for, teacher_score
    from distillkit.models.edm.catalog import CATALOG, catalog_name
    from distillkit.models.store.fetch import fetched, lock_file
    from distillkit.models.store.resolve import load_teacher

    out = console()
    entry = CATALOG.get(catalog_name(name) or "")
    here = entry is None or not entry.url or fetched(entry) is not None
    teacher = load_teacher(name) if here else None
    spec = teacher.spec if teacher else entry.spec  # type: ignore[union-attr]  # one of the two is there
    parameters = sum(p.numel() for p in teacher.denoiser.parameters()) if teacher else entry.parameters  # type: ignore[union-attr]
    rows = {
        "samples": f"{spec.shape[1]} x {spec.shape[2]}, {spec.shape[0]} channel(s) in [-1, 1]",
        "conditions": f"{spec.num_classes:,} classes" if spec.num_classes else "none",
        "guidance": "yes" if spec.num_classes and spec.null_label else "no (never trained without labels)"
        if spec.num_classes else "no (unconditional)",
        "network": f"{spec.network['class']}, {parameters:,} parameters",
        "noise levels": f"sigma {spec.sigma_min:g} to {spec.sigma_max:g}, sigma_data {spec.sigma_data:g}",
        "sampler": f"Heun, {spec.solver_steps} steps, NFE {2 * spec.solver_steps - 1}",
        "licence": spec.licence or "not recorded",
        "source": spec.source,
    }  # fmt: skip
    if entry and entry.url:
        rows |= {
            "published (quoted)": f"{entry.published}, by EDM's own protocol (best of 3 x 50,000)",
            "reference statistics": entry.reference,
            "other names": ", ".join(entry.aliases),
            "where": whereabouts(entry) + (f"; hash recorded in {lock_file()}" if here else ""),
        }
    if spec.weights_sha256:
        rows["weights sha256"] = spec.weights_sha256
    table = Table(show_header=False, title=spec.name, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    if teacher and (ruler := ruler_for(spec, 5000)):
        result = teacher_score(teacher, ruler, torch.device("cpu"), reporter_for())
        table.add_row(escape(result.label), f"{result.value:.5f} ({result.count:,} samples, {result.protocol_id})")
        table.add_row("speed here", f"{result.images_per_second:,.0f} images/s")
    out.print(table)
    if not here:
        out.print(f"next: distillkit teachers fetch {spec.name}", highlight=False)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="Catalogue name.")]) -> None:
    """Download a published teacher, record its sha256, and convert it to safetensors without executing it.

    The cache is DISTILLKIT_CACHE or the user's; DISTILLKIT_MIRROR (an address or a folder) stands in for the host.
    """
    from distillkit.cli.closing import console, suggest_run
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import UsageError
    from distillkit.progress import reporter_for
    from distillkit.registry import unknown
    from distillkit.teachers import fetch as fetching
    from distillkit.models.edm.catalog import CATALOG, catalog_name

    known = catalog_name(name)
    published = {key: entry for key, entry in CATALOG.items() if entry.url}
    if known not in published:
        raise UsageError(unknown("published teacher", name, published, "distillkit teachers"))
    with stop_on_signal() as stop:
        folder = fetching.fetch(published[known], reporter_for(), lambda: stop.signum or 0)
    out = console()
    out.print(f"{known} lies in {folder}", highlight=False, soft_wrap=True)
    suggest_run(out, known)


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
) -> None:
    """Turn a file of weights into a teacher folder (safetensors and JSON). Nothing in the file is executed."""
    from distillkit.cli.closing import console, suggest_run
    from distillkit.errors import UsageError
    from distillkit.models.edm.catalog import CATALOG, catalog_name
    from distillkit.models.store.convert import convert as convert_file
    from distillkit.models.store.resolve import spec_of

    folder = output_dir or Path(file.stem)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; choose another --output-dir")
    known = catalog_name(file.stem)
    spec = convert_file(
        file, folder, name=name or known or file.stem, like=spec_of(like) if like else None,
        licence=licence or (CATALOG[known].spec.licence if known else ""),
    )  # fmt: skip
    out = console()
    shape = " x ".join(map(str, spec.shape))
    out.print(
        f"{spec.network['class']} for samples {shape}, {spec.num_classes or 'no'} classes\nteacher in {folder}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    suggest_run(out, str(folder))
