"""What a run made: the closing table, one row a generator, and how rows are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit.evaluation.record import Record
from distillkit.reading import Unreadable, read_mapping


@dataclass(frozen=True)
class Row:
    """One generator in the closing table; `record` is None where there is no protocol."""

    name: str
    nfe: float
    images_per_second: float
    record: Record | None

    @classmethod
    def measured(cls, name: str, record: Record) -> Row:
        """The row of what a record measured."""
        return cls(name, record.nfe or 0.0, record.images_per_second or 0.0, record)


@dataclass(frozen=True)
class Result:
    """What a run made."""

    folder: Path
    rows: list[Row]
    health: dict[str, str]
    selection: dict[str, Any]
    seconds: float
    cost: dict[str, float]


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str | float]]]:
    """Columns and lines of the closing table."""
    label = next((row.record.label for row in rows if row.record), "figure")
    lines: list[list[str | float]] = [
        [row.name, row.record.figures[row.record.label].value if row.record else "-", row.nfe, row.images_per_second]
        for row in rows
    ]
    return ["generator", label, "NFE", "samples/s"], lines


def row_json(row: Row) -> dict[str, Any]:
    """A row as it is kept in record.json."""
    return {
        "name": row.name,
        "nfe": row.nfe,
        "images_per_second": row.images_per_second,
        "record": None if row.record is None else row.record.model_dump(mode="json"),
    }


def row_of(value: Mapping[str, Any]) -> Row:
    """The inverse of `row_json`.

    Raises:
        ValueError, KeyError, TypeError: when it is something else.
    """
    record = None if value["record"] is None else Record.model_validate(value["record"])
    return Row(str(value["name"]), float(value["nfe"]), float(value["images_per_second"]), record)


def read_row(path: Path) -> Row | None:
    """A row that was kept; None where it cannot be read and must be measured anew."""
    try:
        return row_of(read_mapping(path))
    except (Unreadable, ValueError, KeyError, TypeError):
        return None
