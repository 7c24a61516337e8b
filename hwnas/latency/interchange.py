"""Other tools' latency tables read, and ours written for spreadsheets and scripts.

For every block of the space the importer spells what the other tool would call it and looks that up, as the tool itself does (see
`foreign_names`); names that no block asked for are counted. Read are:

- `ofa-yaml`: once-for-all's and ProxylessNAS's tables, name to `{mean: ...}`.
- `fbnet-jsonl`: FBNet's and ChamNet's table, one operator a line. A block costs the sum of its operators. As in the authors' own
  look-up, the median time of a record counts, and several records of one operator are averaged.
- `hwnasbench-csv`: columns `block` and `input_shape` as in our own export, or `name` as in HW-NAS-Bench's table of FBNet's space,
  which is released as a pickle and has to be written as CSV where it is trusted.

An imported table has no anchor and no sessions: an entry's ratio is to one millisecond, its interval is unknown, and no network
has judged the sum.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from hwnas.errors import InputError
from hwnas.ir.block import Part
from hwnas.ir.steps import Space
from hwnas.latency.foreign_names import Recipe, hw_nas_bench_names, ofa_names, operator_name, operators
from hwnas.latency.summary import BlockCost, block_costs, refused_blocks
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable

IMPORTED = "imported"
EXPORT_SCHEMA = "hwnas.latency-export/2"  # 1: 2026-11, first; 2: 2026-11, `refused`
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds in each unit."""

_MOST_BYTES = 64 << 20
_MOST_YAML_BYTES = 4 << 20  # its reader takes seconds a megabyte; the published tables have 15 kilobytes
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pth", ".pt")
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # the last: PyTorch's archives of pickles
_MOST_DEVICE = 200


@dataclass(frozen=True)
class ImportedTable:
    """What came out of another tool's file.

    Attributes:
        table: The table; every entry is labelled `imported`.
        names: How many names the file has.
        unused: Those that no block of the space asked for, in the file's order.
    """

    table: LatencyTable
    names: int
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        read: Text, path, unit and column to latencies by name, in the file's unit; raises InputError.
        recipes: The names that a block may have there, alternatives in the order in which they are tried.
        most_bytes: Larger files are refused.
    """

    read: Callable[[str, str, str, str | None], dict[str, float]]
    recipes: Callable[[Part], Iterator[Recipe]]
    most_bytes: int = _MOST_BYTES


def import_table(path: str | os.PathLike[str], *, format: str, unit: str, space: Space, device: str,
                 column: str | None = None) -> ImportedTable:
    """Makes a table of another tool's file.

    Args:
        path: The file.
        format: One of `FORMATS`.
        unit: What the file counts in, one of `UNITS`; never guessed.
        space: What the table is to be of.
        device: What was measured, for people.
        column: Of a CSV: which column holds the latencies; `latency` when None.

    Raises:
        InputError: The file cannot be read, is not of the format, or lacks a block of the space.
    """
    if format not in FORMATS:
        raise InputError(f"A table is imported from one of {', '.join(FORMATS)}, but the format is {format!r}: choose one.")
    if unit not in UNITS:
        raise InputError(f"A table's unit is one of {', '.join(UNITS)}, but is {unit!r}: look it up where the table comes from.")
    if not device.strip() or len(device) > _MOST_DEVICE or not device.isprintable():
        raise InputError(f"A device's name is 1 to {_MOST_DEVICE} printable characters, but is {device[:40]!r}: say what was "
                         "measured.")
    reader = FORMATS[format]
    content = _read_bytes(Path(path), reader.most_bytes)
    try:
        latencies = reader.read(content.decode("utf-8-sig"), os.fspath(path), unit, column)
    except UnicodeDecodeError:
        raise InputError(f"A table to import is a text file, but {path} is not: choose the file and --format that belong "
                         "together.") from None
    found = _find_blocks(space.measured_parts, reader, latencies, os.fspath(path), space.name)
    entries = {workload: EntryRecord(sessions=((_block_ms(recipe, latencies, unit, workload),),), label="imported")
               for workload, recipe in found.items()}
    used = {name for recipe in found.values() for name in recipe}
    environment = {"device": device, "runtime": IMPORTED, "anchor": "none", "source_file": Path(path).name,
                   "source_format": format, "source_unit": unit, "source_sha256": sha256(content).hexdigest(),
                   "imported_utc": datetime.now(UTC).isoformat(timespec="seconds")}
    table = LatencyTable(space, environment, AnchorRecord(name=IMPORTED, sha256="none", sessions_ms=(1.0,)), entries, ())
    return ImportedTable(table, len(latencies), tuple(name for name in latencies if name not in used))


def _read_bytes(path: Path, most: int) -> bytes:
    pickled = path.suffix.lower() in _PICKLE_SUFFIXES
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"The table {path} cannot be read ({error.strerror}): check the path.") from None
    if pickled or content.startswith(_PICKLE_STARTS):
        raise InputError(f"Pickles run code when they are read, so {path} is refused: write its numbers as CSV where it is "
                         "trusted.")
    if len(content) > most:
        raise InputError(f"A table of this format has at most {most >> 20} MiB, but {path} has more: keep what the space "
                         "needs.")
    return content


def _find_blocks(parts: Mapping[str, Part], reader: Format, latencies: Mapping[str, float], path: str,
                 space: str) -> dict[str, Recipe]:
    """The names of every block, by workload."""
    found, missing = {}, []
    for workload, part in parts.items():
        recipes = list(reader.recipes(part))
        recipe = next((one for one in recipes if all(name in latencies for name in one)), None)
        if recipe is None:
            missing.append((workload, next((name for name in (recipes or [()])[0] if name not in latencies), None)))
        else:
            found[workload] = recipe
    if missing:
        workload, name = missing[0]
        there = f"would be {name!r} there" if name is not None else "has no name there"
        raise InputError(f"A table must have every block of its space, but {path} lacks {len(missing)} of {len(parts)} of "
                         f"{space!r}, the first being {workload}, which {there}: import a table of this space.")
    return found


def _block_ms(recipe: Recipe, latencies: Mapping[str, float], unit: str, workload: str) -> float:
    latency_ms = sum(latencies[name] for name in recipe) * UNITS[unit]
    if not 0 < latency_ms < math.inf:
        raise InputError(f"A block takes more than no time, but {workload} would take {latency_ms:g} ms: correct "
                         f"{' and '.join(recipe) or 'the table'}.")
    return latency_ms


# Reading

def _read_ofa(text: str, path: str, unit: str, column: str | None) -> dict[str, float]:
    if "&" in text:
        raise InputError(f"A look-up table has no YAML anchors, which can stand for any amount of data, but {path} has a '&': "
                         "write it out.")
    try:
        document = yaml.safe_load(text)
    except Exception as error:  # of malformed scalars, PyYAML lets ValueError, KeyError and others through
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())[:200]}): correct it.") from None
    if not isinstance(document, dict) or not document or not all(isinstance(name, str) for name in document):
        raise InputError(f"A look-up table in YAML maps names to latencies, but {path} does not: choose another --format.")
    return {name: _latency(value.get("mean") if isinstance(value, dict) else value, f"{name[:200]!r} in {path}")
            for name, value in document.items()}


def _read_fbnet(text: str, path: str, unit: str, column: str | None) -> dict[str, float]:
    if unit != "us":
        raise InputError(f"A table of FBNet's operators counts in microseconds (its field is 'runtime_us_p50'), but --unit is "
                         f"{unit}: use --unit us.")
    found: dict[str, list[float]] = {}
    devices: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"A table of FBNet's operators has one JSON record a line, but {where} is none: correct or remove "
                             "it.") from None
        if not isinstance(record, dict) or not isinstance(record.get("op_type"), str):
            raise InputError(f"An operator's record has 'op_type', 'op_args', 'input_shapes' and 'runtime_us_p50', but {where} "
                             "does not: choose another --format.")
        devices.add(record["device"] if isinstance(record.get("device"), str) else "")
        if len(devices) > 1:
            raise InputError(f"A table is of one device, but {path} has records of {' and '.join(map(repr, sorted(devices)))}: "
                             "keep the lines of one.")
        found.setdefault(operator_name(record) or f"{record['op_type'][:50]} of line {number}", []).append(
            _latency(record.get("runtime_us_p50"), f"'runtime_us_p50' of {where}"))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _read_csv(text: str, path: str, unit: str, column: str | None) -> dict[str, float]:
    column = column or "latency"
    found: dict[str, float] = {}
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        header = reader.fieldnames or ()
        if column not in header or not ("name" in header or {"block", "input_shape"} <= set(header)):
            raise InputError(f"A table in CSV has the columns 'name', or 'block' and 'input_shape', and {column!r}, but {path} "
                             f"has {', '.join(repr(one[:40]) for one in header[:20]) or 'none'}: rename them, or use --column.")
        for row in reader:
            name = row["name"] if "name" in header else f"{row['block']} @ {row['input_shape']}"
            where = f"line {reader.line_num} of {path}"
            if not name or name in found:
                raise InputError(f"Every row of a table has a name of its own, but {where} has {str(name)[:100]!r}: correct or "
                                 "remove it.")
            found[name] = _latency(row[column], f"{column!r} in {where}")
    except csv.Error as error:
        raise InputError(f"{path} is not valid CSV ({error}): correct it.") from None
    return found


def _latency(value: Any, where: str) -> float:
    """A latency as a number; 0 is allowed, since other tools count what takes no time."""
    try:
        latency = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        latency = math.nan
    if not 0 <= latency < math.inf:
        shown = repr(value)[:40] if isinstance(value, float | str | None) else f"a {type(value).__name__} that is none"
        raise InputError(f"A latency must be a number of at least 0, but {where} has {shown}: correct or remove it.")
    return latency


def _csv_names(part: Part) -> Iterator[Recipe]:
    yield (part.workload,)
    yield from hw_nas_bench_names(part)


FORMATS: dict[str, Format] = {
    "ofa-yaml": Format(_read_ofa, ofa_names, _MOST_YAML_BYTES),
    "fbnet-jsonl": Format(_read_fbnet, operators),
    "hwnasbench-csv": Format(_read_csv, _csv_names),
}


# Writing

def to_csv(table: LatencyTable) -> str:
    """One row for every entry; none for a block that is refused.

    `isolated_ms` is the block timed alone, with its 95 % interval over sessions; `latency_ms` what it adds to a network. The
    latency of a network is the sum of `latency_ms` over its blocks and `constant_ms`, which is the same in every row.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = _documents(_usable_costs(table))
    columns = [field.name for field in fields(BlockCost)]
    writer.writerow([*columns, "constant_ms"])
    writer.writerows([*(row[key] for key in columns), table.constant] for row in rows)
    return text.getvalue()


def to_json(table: LatencyTable) -> dict[str, Any]:
    """The same as one document, with what the table was measured on, and what is refused."""
    return {"schema": EXPORT_SCHEMA, "space": table.space, "space_hash": table.search_space.hash,
            "environment": dict(table.environment), "anchor_ms": table.anchor_ms, "constant_ms": table.constant,
            "interval": table.held_out.interval, "refused": refused_blocks(table),
            "entries": _documents(_usable_costs(table))}


def _usable_costs(table: LatencyTable) -> list[BlockCost]:
    return [row for row in block_costs(table) if row.workload not in table.refused]


def _documents(rows: Sequence[BlockCost]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
