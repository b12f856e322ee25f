"""`distillkit reference`: statistics of images, made or taken over from other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillkit.cli.choices import DeviceOption

if TYPE_CHECKING:
    from distillkit.evaluation.presets import ProtocolPreset
    from distillkit.evaluation.reference import Reference

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Reference statistics, which samples are compared with. `make` computes them from images, `convert` takes "
    "over those of another program.",
)


@app.callback()
def _reference() -> None: ...


@app.command()
def make(
    data: Annotated[str, typer.Option(help="Zip file, folder, parquet file or hf:ORG/NAME[:SPLIT].")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .safetensors, or .npz (mu, sigma) for EDM's, ADM's and clean-fid's programs.  "
            "[default: where --protocol looks for it]",
        ),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Protocol whose extractor and preparation are used.")] = None,
    extractor: Annotated[
        str | None, typer.Option(help="Extractor by name, such as rgb32cnn, or a TorchScript file.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Prompts of the samples to compare, a file or hf:ORG/NAME[:COLUMN]: part of the protocol."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the data set.  [default: the data's]")] = "",
    data_resolution: Annotated[
        int | None, typer.Option("--data-resolution", min=1, help="Crop to the centred square and resize to this.")
    ] = None,
    data_filter: Annotated[str, typer.Option("--data-filter", help="box, bilinear, bicubic or lanczos.")] = "lanczos",
    data_background: Annotated[
        str | None, typer.Option("--data-background", help="Colour behind transparent images.")
    ] = None,
    data_grey: Annotated[bool, typer.Option("--data-grey", help="Convert the images to grey.")] = False,
    data_image_column: Annotated[
        str | None, typer.Option("--data-image-column", help="Column of the images, where there are several.")
    ] = None,
    data_max_pixels: Annotated[
        str | None, typer.Option("--data-max-pixels", help="Refuse images with more pixels.  [default: 67M]")
    ] = None,
    skip_damaged: Annotated[
        int, typer.Option("--skip-damaged", min=0, help="Replace up to so many damaged images by others.")
    ] = 0,
    keep_features: Annotated[
        bool, typer.Option("--keep-features", help="Also keep the features, for kid, prdc and memorisation.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 256,
    device: DeviceOption = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Extract the features of all images and write their moments, with the hash that protocols name."""
    from distillkit.cli.closing import console
    from distillkit.data.config import DataConfig
    from distillkit.data.prompts import PromptsConfig, open_prompts
    from distillkit.errors import UsageError
    from distillkit.evaluation.presets import OwnMeasure, preset
    from distillkit.evaluation.reference import NPZ, SUFFIX
    from distillkit.jobs.context import job_context
    from distillkit.jobs.reference import make_reference
    from distillkit.runs.validation import validated

    if (protocol is None) == (extractor is None):
        raise UsageError("name either --protocol or --extractor")
    chosen = preset(protocol) if protocol else None
    if chosen and prompts:
        raise UsageError(f"the protocol {protocol} has its own prompts or none: leave --prompts out")
    if isinstance(chosen, OwnMeasure):
        raise UsageError(f"--protocol {protocol}: it has no reference statistics to make")
    target = _target(output, chosen)
    if target.suffix == NPZ and (keep_features or prompts):
        raise UsageError(f"--output {target}: {NPZ} files hold no features or prompts; write a {SUFFIX} file")
    if chosen and chosen.images:
        data_resolution, data_filter = chosen.images.resolution, chosen.images.filter
    asked = {
        "path": data, "resolution": data_resolution, "filter": data_filter, "background": data_background,
        "grey": data_grey, "image_column": data_image_column, "max_pixels": data_max_pixels,
        "skip_damaged": skip_damaged,
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    config = validated(DataConfig, asked, None, {"data": asked}, ("data",))
    network = chosen.extractor if chosen else str(extractor)
    with job_context(device=device, quiet=quiet) as context:
        reference = make_reference(
            config, network, target, context.reporter, context.stop, device=context.device,
            name=name or (chosen.reference.id if chosen else ""), batch=batch, keep_features=keep_features,
            prompts=tuple(open_prompts(PromptsConfig(path=prompts)).prompts.texts) if prompts else (),
        )  # fmt: skip
    out = console()
    _say_written(reference, target)
    if chosen and reference.count != chosen.reference.count:
        whole = f"{chosen.name} is of {chosen.reference.count:,} images ({chosen.reference.id})"
        out.print(f"note: {whole}, and these are {reference.count:,}", highlight=False)
    if chosen and chosen.reference.file:
        out.print(f"next: distillkit protocols pin {chosen.name} --sha256 {reference.spec.sha256}", highlight=False)
    elif target.suffix == SUFFIX:
        _say_protocol(target)
    else:
        out.print(
            f"for other programs; next: distillkit reference convert {shlex.quote(str(target))} --extractor NAME "
            f"--output FILE{SUFFIX} makes it a protocol", highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help=".npz with mu and sigma (EDM, ADM, clean-fid), or EDM2's .pkl.")],
    extractor: Annotated[str, typer.Option(help="Name of the extractor that made them, such as inception.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.safetensors).")],
    count: Annotated[
        int, typer.Option(min=0, help="Number of their images, where the file does not say.", show_default=False)
    ] = 0,
    name: Annotated[str, typer.Option(help="Name of the data set.  [default: the file's]")] = "",
) -> None:
    """Make statistics of another program a protocol. Nothing in the file is executed."""
    from distillkit.errors import UsageError
    from distillkit.evaluation.reference import SUFFIX
    from distillkit.jobs.reference import convert_reference

    if output.suffix != SUFFIX:
        raise UsageError(f"--output {output}: a protocol is a {SUFFIX} file")
    reference = convert_reference(file, extractor, output, count=count, name=name)
    _say_written(reference, output)
    _say_protocol(output)


def _say_written(reference: Reference, file: Path) -> None:
    from distillkit.cli.closing import console

    out = console()
    out.print(
        f"{reference.count:,} images, {len(reference.mean):,} features, in {file}", highlight=False, soft_wrap=True,
        markup=False,
    )  # fmt: skip
    out.print(f"sha256 of the numbers {reference.spec.sha256}", highlight=False)


def _target(output: Path | None, chosen: ProtocolPreset | None) -> Path:
    """The file to write: the one that was named, or where the protocol looks for it.

    Raises:
        UsageError: where nothing was named and there is no such place, or a file is there.
    """
    from distillkit.errors import UsageError
    from distillkit.evaluation.extractor import evaluation_folder
    from distillkit.evaluation.reference import NPZ, SUFFIX

    if output is not None:
        if output.suffix not in (SUFFIX, NPZ):
            raise UsageError(f"--output {output}: reference statistics are written as {SUFFIX} or {NPZ}")
        return output
    if chosen is None or not chosen.reference.file:
        raise UsageError("name the file to write: --output FILE.safetensors")
    path = evaluation_folder() / chosen.reference.file
    if path.exists():
        raise UsageError(f"{chosen.name} has its statistics already, in {path}: remove them, or name another --output")
    return path


def _say_protocol(path: Path) -> None:
    from distillkit.cli.closing import console

    console().print(
        "the file is a protocol; run and bench take it too\n"
        f"next: distillkit evaluate SUBJECT --protocol {shlex.quote(str(path))}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
