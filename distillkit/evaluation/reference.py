"""Reference statistics: what samples are compared with, from this project's files and from EDM's, ADM's and EDM2's."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.frechet import matrix_sqrt
from distillkit.evaluation.protocol import ExtractorSpec, ImagePreparation, ReferenceSpec
from distillkit.files import write_bytes, write_tensors
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Array
from distillkit.names import name_from
from distillkit.npy import read_header
from distillkit.reading import Unreadable, parse_json, unlike, validated
from distillkit.tensors import head_of, read_with_metadata

LARGEST_ARRAY = 2**30
"""Bytes of a covariance; that of 8,192 features takes half."""
MOST_IMAGES = 10**12

SUFFIX = ".safetensors"
"""Of the statistics that `distillkit reference make` writes. They say how they were made, so a file is a protocol."""


NPZ = ".npz"
"""Of statistics that other programs read too."""


class Making(BaseModel):
    """How reference statistics were made, as their file says: enough to measure samples in the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    extractor: str = Field(min_length=1, max_length=4096, description="its name, or the path of a TorchScript file")
    spec: ExtractorSpec = Field(description="what it was")
    images: ImagePreparation | None = Field(None, description="cropping and resizing; none if images were left alone")


@dataclass(frozen=True)
class Reference:
    """Moments of a data set's features, and perhaps the features themselves.

    Args:
        id: of the data set.
        count: images.
        mean: (d,) float64. covariance: (d, d) float64.
        features: (n, d) float32 where kept; what kernel distance and neighbours need.
        making: how it was made, where that is known.
        prompts: of which samples are made to be compared with it; none where the file does not say.
    """

    id: str
    count: int
    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None
    making: Making | None = None
    prompts: tuple[str, ...] = ()

    @cached_property
    def root(self) -> Tensor:
        """Square root of the covariance, taken once."""
        return matrix_sqrt(self.covariance)

    @cached_property
    def spec(self) -> ReferenceSpec:
        return ReferenceSpec(
            id=self.id, sha256=numbers_sha256(self.count, self.mean, self.covariance), count=self.count
        )


def numbers_sha256(count: int, mean: Tensor, covariance: Tensor) -> str:
    """sha256 of n, mean and covariance as little-endian float64, independent of any file format."""
    digest = hashlib.sha256()
    for value in (torch.tensor([float(count)], dtype=torch.float64), mean, covariance):
        digest.update(value.to(torch.float64).contiguous().numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference: as safetensors with all that is known of it, or as `.npz` with `mu` and `sigma`, which EDM's,
    ADM's and clean-fid's programs read, and `count`.

    Raises:
        UsageError: for features or prompts, which an `.npz` does not hold.
        WriteError: when it cannot be written.
    """
    if path.suffix == NPZ:
        if reference.features is not None or reference.prompts:
            what = "features" if reference.features is not None else "prompts"
            raise UsageError(f"{path}: {NPZ} files hold no {what}; name a file that ends in {SUFFIX}")
        packed = io.BytesIO()
        np.savez(packed, mu=reference.mean.numpy(), sigma=reference.covariance.numpy(), count=reference.count)
        write_bytes(path, packed.getvalue())
        return
    tensors = {"mean": reference.mean.contiguous(), "covariance": reference.covariance.contiguous()}
    if reference.features is not None:
        tensors["features"] = reference.features.contiguous()
    if reference.prompts:
        listed = "\0".join(reference.prompts).encode()
        tensors["prompts"] = torch.frombuffer(bytearray(listed), dtype=torch.uint8)
    metadata = {"id": reference.id, "count": str(reference.count)}
    if reference.making is not None:
        metadata["making"] = reference.making.model_dump_json()
    write_tensors(path, tensors, metadata)


def load_reference(path: Path, *, name: str = "", count: int = 0, key: str = "fid") -> Reference:
    """Read reference statistics: this project's safetensors, `.npz` with mu and sigma (EDM, ADM, clean-fid), or EDM2's
    `.pkl`, which is interpreted and never executed.

    Args:
        name: id of the data set, where the file does not say.
        count: number of its images, where the file does not say.
        key: which statistics of an EDM2 file.

    Raises:
        UsageError: when there is no such file.
        DistillkitError: when it is damaged or its numbers make no sense.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there are no reference statistics there")
    making, prompts = None, tuple[str, ...]()
    try:
        if path.suffix == SUFFIX:
            tensors, metadata = read_with_metadata(path)
            mean, covariance, features = tensors["mean"], tensors["covariance"], tensors.get("features")
            name, count = name_from(metadata.get("id", name or path.stem)), int(metadata.get("count", count))
            where = f"how {path} was made"
            said = parse_json(metadata["making"].encode(), where) if "making" in metadata else None
            prompts = _prompts_in(tensors.get("prompts"))
            making = None if said is None else validated(Making, said, where)
        else:
            mu, sigma, of = _moments(path, key)
            mean, covariance = (torch.from_numpy(np.array(v, dtype=np.float64)) for v in (mu, sigma))
            features, count = None, of or count
    except DistillkitError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for what damaged files hold
        reason = str(error)[:200] or type(error).__name__
        raise DistillkitError(f"{path} is damaged or holds no reference statistics: {reason}") from error
    return checked(
        Reference(name or path.stem, count, mean.double(), covariance.double(), features, making, prompts), path
    )


def _prompts_in(data: Tensor | None) -> tuple[str, ...]:
    return () if data is None else tuple(bytes(data.to(torch.uint8).tolist()).decode().split("\0"))


def _moments(path: Path, key: str) -> tuple[Any, Any, int]:
    """Mean, covariance, and the number of images where the file says it, else 0."""
    if what := unlike(head_of(path)):
        raise Unreadable(f"cannot read {path}: {what}")
    if path.suffix == NPZ:
        with zipfile.ZipFile(path) as archive:
            count = _array(archive, "count") if _member(archive, "count.npy") else 0
            return _array(archive, "mu"), _array(archive, "sigma"), int(count)
    value = read_foreign(path).value
    for place in (key, "fid"):
        if isinstance(value, dict) and isinstance(value.get(place), dict):
            value = value[place]
            break
    if not isinstance(value, dict) or not all(isinstance(value.get(k), Array) for k in ("mu", "sigma")):
        raise KeyError("no mu and sigma")
    return value["mu"].value, value["sigma"].value, 0


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    """An array of an .npz archive, whose claims are checked before memory is taken for it."""
    member = next((found for place in (f"{name}.npy", name) if (found := _member(archive, place))), None)
    if member is None:
        raise KeyError(f"no {name}")
    if member.file_size > LARGEST_ARRAY:
        raise ValueError(f"{name} claims {member.file_size:,} bytes; at most {LARGEST_ARRAY:,} are read")
    with archive.open(member) as file:
        shape, fortran, kind = read_header(file)
        size = math.prod(shape) * kind.itemsize
        if kind.kind not in "fiu" or size > member.file_size:
            raise ValueError(f"{name} is no array of numbers of the size that it claims")
        return np.frombuffer(file.read(size), kind).reshape(shape, order="F" if fortran else "C")


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    return archive.getinfo(name) if name in archive.namelist() else None


def checked(reference: Reference, path: Path) -> Reference:
    """Refuse numbers that cannot be moments.

    Raises:
        DistillkitError: saying which.
    """
    mean, covariance = reference.mean, reference.covariance
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
        raise DistillkitError(
            f"{path}: a mean {tuple(mean.shape)} and a covariance {tuple(covariance.shape)} do not fit"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise DistillkitError(f"{path}: the reference statistics hold NaN or infinity")
    if (covariance - covariance.T).abs().max() > 1e-6 * covariance.abs().max() or (covariance.diagonal() < 0).any():
        raise DistillkitError(f"{path}: the covariance is not symmetric and positive")
    if reference.count > MOST_IMAGES:
        raise DistillkitError(f"{path} says that it is of more than {MOST_IMAGES:,} images")
    if reference.count < 2:
        raise DistillkitError(
            f"{path} does not say of how many images it is: `distillkit reference convert` takes their number"
        )
    return reference
