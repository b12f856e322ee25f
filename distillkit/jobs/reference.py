"""`distillkit reference`: reference statistics of images or from other programs, with their hash."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from distillkit.contracts.source import SourceJob
from distillkit.data.config import DataConfig
from distillkit.data.reader import ImageReader, open_files, pixels_in_order
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import Interrupted, UsageError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.features import Kept, moments_of
from distillkit.evaluation.pipeline import alone, extract
from distillkit.evaluation.presets import is_torchscript, load_extractor
from distillkit.evaluation.protocol import ImagePreparation
from distillkit.evaluation.reference import SUFFIX, Making, Reference, load_reference, save_reference
from distillkit.files import cache_folder, canonical_json
from distillkit.progress import Reporter

MOST_KEPT = 50_000
"""Features of more images are not kept: neighbours among them would take too long."""


def make_reference(
    data: DataConfig,
    extractor: FeatureExtractor | str,
    output: Path,
    reporter: Reporter,
    stop: StopRequest,
    *,
    device: torch.device,
    name: str = "",
    batch: int = 256,
    keep_features: bool = False,
    prompts: tuple[str, ...] = (),
) -> Reference:
    """Extract the features of all images, in order, and write their moments; resumes after an interruption.

    Args:
        extractor: an object, a name, or a TorchScript file. Named ones are written into the file, which is then a
            protocol by itself: `--protocol FILE`.
        prompts: of which the samples are made that are compared with it; part of that protocol.

    Raises:
        UsageError: without images, for a single one, or for too many to keep.
        DistillkitError: when an image cannot be read, or they are of several sizes.
        Interrupted: after a signal; features so far are kept.
    """
    if data.path is None:
        raise UsageError("--data: which images? A zip file, a folder, a parquet file or hf:ORG/NAME")
    reader = ImageReader(data, open_files(data, SourceJob(device, say=reporter.say, task=reporter.task)))
    files = reader.files
    reporter.say(f"data: {reader.summary}")
    if len(files) < 2:
        raise UsageError(f"--data {data.path}: a covariance is of two images or more, and this is 1")
    if keep_features and len(files) > MOST_KEPT:
        raise UsageError(f"--keep-features is for at most {MOST_KEPT:,} images, and these are {len(files):,}")
    making, prepared = None, None
    if data.resolution is not None:
        prepared = ImagePreparation(resolution=data.resolution, filter=data.filter)
    if isinstance(extractor, str):
        named, extractor = extractor, load_extractor(extractor, reader.shape)
        named = str(Path(named).expanduser().resolve()) if is_torchscript(named) else named
        making = Making(extractor=named, spec=extractor.spec, images=prepared)
    dim = extractor.spec.dim
    identity = {
        "images": files.fingerprint,
        "extractor": extractor.spec.model_dump(mode="json"),
        "resolution": data.resolution,
        "filter": data.filter,
        "background": data.background,
        "shape": list(reader.shape),
    }
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
    folder = cache_folder() / "evaluations" / f"reference-{key}"
    with alone(folder.with_suffix(".lock"), reporter, lambda: stop.signum or 0):
        kept = Kept(folder, dim, dim)
        _keep(kept, reader, extractor.to(device), batch, device, reporter, stop)
        moments = moments_of(kept.rows, dim)
        reference = Reference(
            name or Path(data.path).stem, moments.count, moments.mean, moments.covariance,
            kept.features if keep_features else None, making, prompts,
        )  # fmt: skip
        save_reference(output, reference)
        shutil.rmtree(folder, ignore_errors=True)
    return reference


def _keep(
    kept: Kept, reader: ImageReader, extractor: FeatureExtractor, batch: int, device: torch.device, reporter: Reporter,
    stop: StopRequest,
) -> None:  # fmt: skip
    """Extract the features of the images behind those that are kept.

    Raises:
        DistillkitError: when an image cannot be read.
        Interrupted: after a signal.
    """
    count = len(reader)
    if kept.damaged:
        reporter.say(f"what was extracted before is damaged in {kept.folder}, so it is extracted anew")
    if len(kept):
        reporter.say(f"continuing with {len(kept):,} of {count:,} images")
    batches = (range(k, min(k + batch, count)) for k in range(len(kept), count, batch))
    on_device = (pixels.to(device) for pixels in pixels_in_order(reader, batches))
    with reporter.task("extracting features", count, "images", len(kept)) as task:
        for _ in extract(extractor, on_device, kept, task.advance):
            for line in reader.said():
                reporter.say(line)
            kept.seal({})
            if stop:
                raise Interrupted("stopped; the same command resumes", stop.signum or 2)


def convert_reference(source: Path, extractor: str, output: Path, *, count: int = 0, name: str = "") -> Reference:
    """Make statistics of another program a file that says how they were made, and so is a protocol.

    Args:
        source: `.npz` with mu and sigma, or EDM2's `.pkl`, which is interpreted and never executed.
        extractor: the name of the one that made them, which has to be here; nothing in the file proves it but the
            number of features.
        count: of images, where the file does not say.
        name: of the data set; the file's by default.

    Raises:
        UsageError: for files that say it already, an extractor of another number of features, or a contradiction.
        DistillkitError: when the file is damaged or does not say of how many images it is.
    """
    if source.suffix == SUFFIX:
        raise UsageError(f"{source} is a file of distillkit's already; it is a protocol by itself")
    if is_torchscript(extractor):
        raise UsageError(f"--extractor {extractor}: an extractor by name is needed; `reference make` takes your own")
    network = load_extractor(extractor)
    key = "fd_dinov2" if extractor == "dinov2" else "fid"
    found = load_reference(source, name=name, count=count, key=key)
    if count and found.count != count:
        raise UsageError(f"--count {count}: {source} says that it is of {found.count:,} images")
    if len(found.mean) != network.spec.dim:
        raise UsageError(
            f"{source} has {len(found.mean):,} features and {extractor} {network.spec.dim:,}: another extractor made it"
        )
    reference = replace(found, making=Making(extractor=extractor, spec=network.spec))
    save_reference(output, reference)
    return reference
