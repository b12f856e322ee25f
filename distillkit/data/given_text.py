"""Text embeddings that the data bring: checked against the teacher's text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.teacher import Teacher
from distillkit.data.config import DataConfig
from distillkit.data.files import ImageFiles
from distillkit.data.labels import shown
from distillkit.data.stream_files import StreamedFiles
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.prompts import FEW


class Embeddings:
    """Text conditions that the samples bring, by the names of the encoder's fields.

    Args:
        columns: of the arrays, by field.
        conditioner: makes the conditions of the empty prompt, whose shapes they must have.

    Raises:
        UsageError: for fields that the encoder does not have, or lacks here; for other widths or numbers of tokens.
    """

    def __init__(self, files: StreamedFiles, columns: Mapping[str, str], teacher: Teacher) -> None:
        self.files, self.columns = files, dict(columns)
        name, conditioner = teacher.spec.name, teacher.conditioner
        if not conditioner.takes_text:
            raise UsageError(f"--data-embedding-columns: the teacher {name} takes no text ({conditioner.summary()})")
        plain = conditioner.encode(conditioner.parse([""]))
        self._plain = {field: value[0].cpu() for field, value in plain.items()}
        there = ", ".join(f"{field} {tuple(value.shape)}" for field, value in self._plain.items())
        if strange := [field for field in columns if field not in self._plain]:
            raise UsageError(f"--data-embedding-columns {shown(strange[0])}: the encoder of {name} gives {there}")
        large = [field for field, value in self._plain.items() if value.numel() >= FEW and field not in columns]
        if large:
            raise UsageError(
                f"--data-embedding-columns: {', '.join(large)} of {name}'s encoder is missing; it gives {there}"
            )
        rows = self._row(0)
        sizes = ", ".join(f"{field} {' x '.join(map(str, value.shape))}" for field, value in rows.items())
        rest = [field for field in self._plain if field not in columns]
        self.summary = (
            f"text embeddings of the data: {sizes}, {str(rows[next(iter(rows))].dtype).removeprefix('torch.')}"
        )
        if rest:
            self.summary += f"; {', '.join(rest)} as of the empty prompt"

    def __call__(self, numbers: Sequence[int]) -> Condition:
        """The conditions of samples (B,), float32."""
        rows = [self._row(number) for number in numbers]
        made = {field: torch.stack([row[field] for row in rows]) for field in rows[0]}
        made = {field: value.float() if value.is_floating_point() else value for field, value in made.items()}
        rest = {k: v.expand(len(rows), *v.shape) for k, v in self._plain.items() if k not in made}
        return Condition(**made, **rest)

    def _row(self, number: int) -> dict[str, Tensor]:
        arrays, where = self.files.sample(number).arrays()[0], self.files.where(number)
        row: dict[str, Tensor] = {}
        for field, column in self.columns.items():
            if column.lower() not in arrays:
                held = ", ".join(shown(name, 40) for name in arrays) or "none"
                raise UsageError(f"--data-embedding-columns: {where} has no array {shown(column)} (arrays: {held})")
            value, like = arrays[column.lower()], self._plain[field]
            if value.shape[:1] == (1,) and value.ndim == like.ndim + 1:
                value = value[0]
            if value.shape != like.shape:
                raise UsageError(
                    f"the embedding {shown(column)} of {where} is {tuple(value.shape)} and the encoder's {field} is "
                    f"{tuple(like.shape)} (tokens, width): it is of another encoder or another length"
                )
            if value.is_floating_point() != like.is_floating_point():
                value = value.to(like.dtype)
            if value.is_floating_point() and not value.isfinite().all():
                raise DistillkitError(f"the embedding {shown(column)} of {where} is not finite; encode it again")
            row[field] = value
        return row


def embeddings_of(files: ImageFiles, config: DataConfig, teacher: Teacher) -> Embeddings | None:
    """The text conditions that the data bring, where they are asked for.

    Raises:
        UsageError: as `Embeddings`, and for data that are no stream.
    """
    if not config.embedding_columns:
        return None
    if not isinstance(files, StreamedFiles):
        raise UsageError(
            f"--data-embedding-columns is for streams of tar or parquet files, and {config.path} is none: name the "
            "files by a pattern such as 'folder/*.tar'"
        )
    pairs = [part.strip().partition("=") for part in config.embedding_columns.split(",")]
    return Embeddings(files, {field: column or field for field, _, column in pairs}, teacher)
