"""Records side by side: comparable ones in one table with errors and paired differences, others refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distillkit.errors import UsageError
from distillkit.evaluation.record import Quoted, Record, paired_difference


@dataclass(frozen=True)
class Line:
    """A measured record in a table, and how far it is from the best one.

    Args:
        difference: the record's value minus the best one's.
        difference_error: standard error of that, where both were measured on the same groups of seeds.
    """

    record: Record
    difference: float
    difference_error: float | None


@dataclass(frozen=True)
class Table:
    """Records of one protocol, by network evaluations and then by value."""

    protocol_id: str
    label: str
    lines: list[Line]


def compare(records: Sequence[Record | Quoted], *, group: bool = False) -> tuple[list[Table], list[Quoted]]:
    """One table of measured records, and the quoted ones apart.

    Args:
        group: make a table for every protocol instead of refusing several.

    Raises:
        UsageError: for records of several protocols, with the fields that differ.
    """
    measured = [record for record in records if isinstance(record, Record)]
    quoted = [record for record in records if isinstance(record, Quoted)]
    by_protocol: dict[str, list[Record]] = {}
    for record in measured:
        by_protocol.setdefault(record.protocol_id, []).append(record)
    if len(by_protocol) > 1 and not group:
        first, *others = by_protocol.values()
        lines = []
        for other in others:
            differences = other[0].protocol.differences(first[0].protocol)
            lines.append(f"{other[0].subject.name} ({other[0].protocol_id}) against {first[0].subject.name}:")
            lines += [f"  {line}" for line in differences]
        raise UsageError(
            "these records were measured under different protocols, so their figures cannot be compared:\n"
            + "\n".join(lines)
            + "\nMeasure them under one protocol, or use --group for a table of each."
        )
    return [_table(found) for found in by_protocol.values()], quoted


def _table(records: list[Record]) -> Table:
    label = records[0].label
    sign = -1 if records[0].protocol.more_is_better else 1
    best = min(records, key=lambda r: sign * r.figures[label].value)
    lines = []
    for record in sorted(records, key=lambda r: (r.nfe or 0, sign * r.figures[label].value)):
        difference, error = paired_difference(record.figures[label], best.figures[label])
        # Given images share no seeds with anything, so their groups are not pairs.
        paired = record is not best and record.protocol.samples.rng != "given images"
        lines.append(Line(record, difference, error if paired else None))
    return Table(records[0].protocol_id, label, lines)
