"""What every verb prints with: tables and JSON on stdout, progress and notes on stderr."""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

_LINE_SECONDS = 10.0  # how often a log that is no terminal gets a line
_NOTE_WIDTH = 44
_SIGNIFICANT = 4  # digits of a latency: its interval is a percent at best
_EXACT_BELOW = 100_000
_FIGURE = re.compile(r"[-±]?\d[\d.,e+-]*( (%|ms|M))?( to [\d.]+)?")  # the whole cell: a version or a date is no figure
_SHORT_FIELDS = {"out_channels": "", "classes": "", "kernel": "k", "expansion": "e", "stride": "s"}


def _console(to_stderr: bool) -> Console:
    """A console that takes the terminal's width (or COLUMNS); a pipe or a log has none: let the reader fold."""
    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)  # a path may hold [brackets] and :colons:
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200
    return console


stdout = _console(to_stderr=False)
stderr = _console(to_stderr=True)


def _is_first() -> bool:
    """Whether this process speaks: under `torchrun` the first one does for all. Errors are told by each."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A note for people, on stderr, so that stdout holds results and nothing else."""
    if not _is_first():
        return
    stderr.print(text, soft_wrap=True)


def print_json(document: Any) -> None:
    """The one JSON document of a `--json` call."""
    if not _is_first():
        return
    stdout.file.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


_LONGEST_NAME = 40  # a first column up to this wide is one to copy from, and never folded


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people under its title; columns of figures are set flush right."""
    texts = [[str(cell) for cell in row] for row in rows]
    table = _table(show_header=True)
    for index, column in enumerate(columns):
        filled = [row[index] for row in texts if row[index]]
        figures = index > 0 and bool(filled) and all(_FIGURE.fullmatch(text) for text in filled)
        is_name = index == 0 and max(map(len, filled), default=0) <= _LONGEST_NAME
        table.add_column(column, justify="right" if figures else "left", overflow="fold", no_wrap=figures or is_name)
    for row in texts:
        table.add_row(*row)
    _print_titled(title, table)


def print_facts(title: str, facts: Iterable[tuple[str, Any]]) -> None:
    """What there is to say about one thing: a name and a value a line."""
    if not _is_first():
        return
    table = _table(show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, str(value))
    _print_titled(title, table)


def _table(show_header: bool) -> Table:
    return Table(show_header=show_header, header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
                 padding=(0, 1, 0, 0))


def _print_titled(title: str, table: Table) -> None:
    if title:
        stdout.print(title, style="bold", soft_wrap=True)
    if table.row_count:
        stdout.print(table)


class ProgressBar:
    """Call it with (done, total, note): on a terminal it draws bar, share, time left and note; elsewhere it writes lines."""

    def __init__(self, title: str, bar: Progress | None) -> None:
        self._title = title
        self._bar = bar
        self._task = bar.add_task(title, total=None, note="") if bar else None
        self._began = self._part_began = self._last_line = time.monotonic()
        self._first_done: int | None = None
        self._latest: tuple[int, int, str] | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        note = _shortened(note)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if self._latest is not None and done < self._latest[0]:  # a part of the stage begins that has a pace of its own
            self._first_done, self._part_began = None, now
        self._latest = done, total, note
        if self._first_done is None:
            self._first_done = done - 1  # the rest was there before: it says nothing about the pace
        if now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        pace = (done - self._first_done) / max(now - self._part_began, 1e-9)
        left = f"{_duration((total - done) / pace)} left" if pace > 0 else ""
        self._line(f"{done}/{total} ({100 * done / max(total, 1):.0f} %)", left, note)

    def finish(self) -> None:
        """Says in a log that the stage is over, and how long it took; a terminal's bar just vanishes."""
        if self._latest is not None:
            done, total, note = self._latest
            self._line(f"{done}/{total} in {_duration(time.monotonic() - self._began)}", note)

    def _line(self, *parts: str) -> None:
        say(f"{self._title}: {', '.join(part for part in parts if part)}")


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressBar]:
    """A bar on a terminal; elsewhere a line every ten seconds and one at the end."""
    if not stderr.is_terminal:
        lines = ProgressBar(title, None)
        yield lines
        lines.finish()
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TaskProgressColumn(),
               TextColumn("ETA"), TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}", style="dim", markup=False))
    # Drawn seldom: the drawing thread takes time from what is being timed.
    with Progress(*columns, console=stderr, transient=True, refresh_per_second=2) as bar:
        yield ProgressBar(title, bar)


def _shortened(note: str) -> str:
    """A note that fits beside a bar; of a workload's text, what tells it from its neighbours: `mbconv 24 k5 e3 s2 @ 12x8x8`."""
    kind, opened, rest = note.partition("(")
    fields, found, shape = rest.rpartition(") @ ")
    if opened and found:
        pairs = dict(pair.partition("=")[::2] for pair in fields.split(", "))
        words = [prefix + pairs[name].removesuffix(".0") for name, prefix in _SHORT_FIELDS.items() if name in pairs]
        note = " ".join([kind, *words, "@", shape])
    return note if len(note) <= _NOTE_WIDTH else note[:_NOTE_WIDTH - 1] + "…"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ms(latency_ms: float) -> str:
    """A latency in milliseconds, without the unit: four digits, whatever its size."""
    return _fixed(latency_ms, round)


def ms_range(low_ms: float, high_ms: float) -> str:
    """`0.7213 to 4.1250 ms`, rounded up, so that both ends are budgets that work when they are typed."""
    return f"{_fixed(low_ms, math.ceil)} to {_fixed(high_ms, math.ceil)} ms"


def _fixed(value: float, rounded: Any) -> str:
    if not 0 < abs(value) < 1e9:
        return f"{value:g}"
    decimals = max(0, _SIGNIFICANT - 1 - math.floor(math.log10(abs(value))))
    return f"{rounded(value * 10**decimals) / 10**decimals:.{decimals}f}"


def quantity(number: float) -> str:
    """MACs or parameters: exact while short, then in millions."""
    return f"{number:,.0f}" if abs(number) < _EXACT_BELOW else f"{number / 1e6:,.2f} M"


def big(number: int) -> str:
    """A number of networks: exact while it can be read, else in powers of ten."""
    return f"{number:,}" if number < 10**12 else f"{Decimal(number):.3e}"  # beyond 1e308 there is no float


def block_words(counts: Mapping[str, int]) -> str:
    """How many blocks a table has, and how many of what kind; see `latency.summary.block_counts`."""
    entries = sum(counts[label] for label in ("ok", "noisy", "imported", "estimated"))
    estimated = f"{counts['estimated']} estimated, " if counts["estimated"] else ""
    return f"{entries} ({estimated}{counts['noisy']} noisy, {counts['refused']} refused, {counts['missing']} missing)"


def percent(share: float) -> str:
    """A share, for people: `12.5 %`, and what is small but not nothing in powers of ten."""
    return f"{100 * share:.1f} %" if share == 0 or share >= 0.001 else f"{100 * share:.1e} %"
