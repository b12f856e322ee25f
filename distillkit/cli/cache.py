"""`distillkit cache`: what lies in the cache, and the removal of what nothing reads."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distillkit.jobs.cache import Contents, Entry, Foreign

UNITS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def cache(
    kind: Annotated[str | None, typer.Argument(help="List one kind entry by entry, such as pairs or teachers.")] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove what nothing reads: half downloads, temporary files, and what other versions have made.",
        ),
    ] = False,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --prune: also what was not used for so long, such as 30d, and is made again when it is needed. "
            "Teachers, networks and statistics stay.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --prune: only say what would be removed.")] = False,
) -> None:
    """List what the cache holds, and remove what nothing reads.

    The cache is DISTILLKIT_CACHE, or the user's. Nothing outside of it is changed, and what another process is at work
    on stays.
    """
    from distillkit.errors import UsageError
    from distillkit.jobs.cache import TITLES, contents

    if kind is not None and kind not in TITLES:
        raise UsageError(f"there is nothing of the kind {kind}: {', '.join(TITLES)}")
    if prune:
        if kind is not None:
            raise UsageError("--prune goes through the whole cache: leave the kind out")
        _prune(_seconds(older_than), dry_run=dry_run)
        return
    if older_than is not None or dry_run:
        raise UsageError(f"{'--older-than' if older_than is not None else '--dry-run'} goes with --prune")
    found = contents()
    if kind is None:
        _show_kinds(found)
        _show_foreign(found.foreign)
    else:
        _show_entries(found, kind)
        folder = found.root / kind
        _show_foreign(strange for strange in found.foreign if folder in (strange.path, *strange.path.parents))


def _seconds(text: str | None) -> float | None:
    """'30d' -> 2,592,000.

    Raises:
        UsageError: for another form.
    """
    from distillkit.errors import UsageError

    if text is None:
        return None
    if (found := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([hdw])", text.strip())) is None:
        raise UsageError(f"--older-than {text}: write hours, days or weeks, such as 12h, 30d or 8w")
    return float(found[1]) * UNITS[found[2]]


def _show_kinds(found: Contents) -> None:
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.data.files import size_text
    from distillkit.jobs.cache import TITLES

    out = console()
    if not found.entries:
        empty = "nothing of distillkit's is in" if found.foreign else "the cache is empty:"
        out.print(f"{empty} {found.root}", highlight=False, soft_wrap=True, markup=False)
        return
    table = Table()
    for title, right in (("kind", False), ("what", False), ("number", True), ("size", True), ("last use", False)):
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "what")
    for kind, what in TITLES.items():
        if kept := [entry for entry in found.of(kind) if not entry.spare]:
            table.add_row(kind, what, f"{len(kept):,}", size_text(_size(kept)), _day(max(e.used for e in kept)))
    spare = [entry for entry in found.entries if entry.spare]
    if spare:
        table.add_row("", "read by nothing: --prune", f"{len(spare):,}", size_text(_size(spare)), "")
    out.print(table)
    out.print(f"{size_text(_size(found.entries))} in {found.root}", highlight=False, soft_wrap=True, markup=False)
    out.print(
        "next: distillkit cache KIND lists its entries; distillkit cache --prune --dry-run", highlight=False,
        soft_wrap=True,
    )  # fmt: skip


def _show_entries(found: Contents, kind: str) -> None:
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.data.files import size_text

    out, entries = console(), found.of(kind)
    if not entries:
        out.print(f"no {kind} in {found.root}", highlight=False, soft_wrap=True, markup=False)
        return
    table = Table()
    for title, right in (("name", False), ("what", False), ("size", True), ("last use", False)):
        table.add_column(title, justify="right" if right else "left", no_wrap=title in ("size", "last use"),
                         overflow="fold")  # fmt: skip
    for entry in sorted(entries, key=lambda entry: -entry.bytes):
        what = "; ".join(part for part in (entry.about, entry.spare) if part)
        table.add_row(entry.path.name, what, size_text(entry.bytes), _day(entry.used))
    out.print(table)
    where = found.root / kind if (found.root / kind).is_dir() else found.root
    out.print(f"{size_text(_size(entries))} in {where}", highlight=False, soft_wrap=True, markup=False)


def _prune(older_than: float | None, *, dry_run: bool) -> None:
    from distillkit.cli.closing import console
    from distillkit.data.files import size_text
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import Interrupted
    from distillkit.jobs.prune import prune

    out = console()
    with stop_on_signal() as stop:
        done = prune(older_than, dry_run=dry_run, stop=lambda: stop.signum or 0)
    root = done.contents.root

    def say(text: str) -> None:
        out.print(text, highlight=False, soft_wrap=True, markup=False)

    verb = "would remove" if dry_run else "removed"
    for entry, reason in done.removed:
        say(f"{verb} {entry.path.relative_to(root)} ({size_text(entry.bytes)}): {reason}")
    for entry, reason in done.kept:
        say(f"left {entry.path.relative_to(root)} ({entry.spare or 'old'}): {reason}")
    _show_foreign(done.contents.foreign)
    if stop:
        raise Interrupted("stopped; the same command goes on with the rest", stop.signum or 2)
    if done.removed:
        say(f"{size_text(done.bytes)} {'would be free' if dry_run else 'freed'} in {root}")
    else:
        say(f"nothing to remove in {root}")


def _show_foreign(found: Iterable[Foreign]) -> None:
    from distillkit.cli.closing import console

    for strange in found:
        console().print(f"left alone: {strange.path}: {strange.reason}", highlight=False,
                        soft_wrap=True, markup=False)  # fmt: skip


def _size(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().date().isoformat()
