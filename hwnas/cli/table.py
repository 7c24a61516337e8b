"""Latency tables: looked at, compared, checked, exported to spreadsheets and scripts, imported from other tools."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli.console import big, ms, percent, print_facts, print_json, print_table, progress_bar, say, stdout
from hwnas.cli.refused import warn_of_refused
from hwnas.errors import InputError, VerificationError

if TYPE_CHECKING:
    from hwnas.latency.compare import TableDifference
    from hwnas.latency.table import LatencyTable

_File = Annotated[Path, typer.Argument(help="Table file.", metavar="FILE")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file that is written.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SETTING = "setting."


def table_show_command(
    file: _File,
    top: Annotated[int, typer.Option(help="How many of the dearest blocks are listed.", min=0)] = 8,
    plot: Annotated[Path | None, typer.Option(help="Draw it: a .png, .svg, .pdf or .html file.")] = None,
    overwrite: _Overwrite = False,
    json: _Json = False,
) -> None:
    """What a table holds, how good it is, and where in a network the time goes."""
    from hwnas.latency.summary import block_costs
    from hwnas.latency.table import load_table

    if plot is not None:
        from hwnas.report.ranking import check_picture_path

        check_picture_path(plot)
        _check_new(plot, overwrite, file)
    table = load_table(file)
    warn_of_refused(table)
    if plot is not None:
        from hwnas.report.table import draw_table

        say(f"Drawn in {draw_table(table, plot)}.")
    blocks = sorted(block_costs(table), key=lambda row: -(row.latency_ms or 0.0))
    document = _document(file, table) | {"costliest": [vars(row) for row in blocks[:top]]}
    if json:
        print_json(document)
        return
    print_facts(f"Latency table of {table.space}", _facts(document))
    if blocks[:top]:
        stdout.print()
        print_table(f"The dearest of {len(blocks)} blocks", ("block", "input", "in a network, ms", "alone, ms", "± %", "label"), [
            (row.block, row.input_shape, "" if row.latency_ms is None else ms(row.latency_ms), ms(row.isolated_ms),
             "" if row.relative_ci is None else f"{100 * row.relative_ci:.1f}", row.label) for row in blocks[:top]])
    _print_refused(document["refused"])
    if document["refused_networks"]:
        stdout.print()
        print_table(f"{len(document['refused_networks'])} whole network(s) refused, though each of their blocks runs",
                    ("network", "why"), [tuple(row.values()) for row in document["refused_networks"]])


def table_diff_command(
    first: Annotated[Path, typer.Argument(help="Table file.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="The table that it is compared with.", metavar="SECOND")],
    top: Annotated[int, typer.Option(help="How many of the largest changes are listed.", min=0)] = 20,
    json: _Json = False,
) -> None:
    """How two tables differ: their environments, their blocks, and the costs that changed beyond both intervals."""
    from hwnas.latency.compare import compare_tables
    from hwnas.latency.table import load_table
    from hwnas.profiling.environment import compare_environments

    tables = load_table(first), load_table(second)
    found = compare_tables(*tables)
    environment = compare_environments(tables[0].environment, tables[1].environment)
    same_space = tables[0].search_space.hash == tables[1].search_space.hash
    if json:
        print_json({
            "first": str(first), "second": str(second), "same_space": same_space, "unit": found.unit,
            "environment": [{"key": key, "first": a, "second": b} for key, a, b in environment],
            "only_in_first": found.only_in_first, "only_in_second": found.only_in_second, "common": len(found.common),
            "changed": [vars(change) | {"relative": change.relative} for change in found.changed],
            "unknown_intervals": sum(change.beyond_intervals is None for change in found.common),
            "median_change": found.median_change, "spearman": found.spearman})
        return
    print_facts(f"{first} and {second}", _difference(found, same_space))
    if environment:
        stdout.print()
        print_table("Environments", ("key", "first", "second"),
                    [(key, *("" if value is None else value for value in values)) for key, *values in environment])
    if found.changed[:top]:
        stdout.print()
        print_table(f"Changed beyond both 95 % intervals: {len(found.changed)} of {len(found.common)}",
                    ("block", f"first, {found.unit}", f"second, {found.unit}", "change, %"),
                    [(change.workload, ms(change.before), ms(change.after), f"{100 * change.relative:+.1f}")
                     for change in found.changed[:top]])


def table_check_command(
    file: _File,
    space: Annotated[str | None, typer.Option(help="Space that it has to be of; its own when left out.")] = None,
    device: Annotated[str | None, typer.Option(help="Compare its environment with this target's, here and now.")] = None,
    json: _Json = False,
) -> None:
    """Whether a table is whole and complete (exit 4 when not), and what to know before trusting it."""
    from hwnas.latency.compare import is_additive, require_complete, table_warnings
    from hwnas.latency.seams import cost_model
    from hwnas.latency.summary import held_out_document, refused_blocks
    from hwnas.latency.table import load_table
    from hwnas.spaces.load import load_space

    wanted = None if space is None else load_space(space)
    with open(file, "rb"):
        pass  # a file that is not there is no damaged table
    try:
        table = load_table(file)
    except InputError as error:
        raise VerificationError(str(error)) from None
    require_complete(table, wanted)
    warn_of_refused(table)
    refused = _refused(refused_blocks(table))
    warnings = [*table_warnings(table), *(_foreign_environment(table, device) if device is not None else ())]
    additive, held_out = is_additive(cost_model(table).held_out), held_out_document(table)
    if json:
        print_json({"table": str(file), "space": table.space, "entries": len(table.entries), "refused": refused,
                    "complete": table.effort is None or table.effort.complete,
                    "additive": additive, "held_out": held_out, "warnings": warnings})
        return
    but = f" but {len(refused)} that are refused" if refused else ""
    print_facts(f"{file} is whole, and has every block of {table.space}{but}", [
        ("additive", _additive(additive)), *_held_out_facts(held_out), *(("warning", warning) for warning in warnings)])
    _print_refused(refused)


def table_judge_command(
    file: _File,
    device: Annotated[str | None, typer.Option(help="Target, if it is not the table's runtime on this machine.")] = None,
    networks: Annotated[int, typer.Option(help="How many, of those that the table has not seen.", min=1)] = 20,
    sessions: Annotated[int, typer.Option(help="Fresh sessions of each.", min=1)] = 5,
    seed: Annotated[int | None, typer.Option(help="Chooses them; others for every sitting that is kept, when left out.",
                                             min=0)] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop measuring after this long.", min=0.0)] = 10.0,
    keep: Annotated[bool, typer.Option("--keep", help="Add them to the table: its interval takes them into account.")] = False,
    json: _Json = False,
) -> None:
    """Whether a table's predictions still hold, here and now, for networks that it has not seen (exit 4 when not)."""
    from hwnas.latency.seams import cost_model
    from hwnas.latency.table import load_table
    from hwnas.pipeline.measure import target_of_table
    from hwnas.profiling.judging import JUDGING, judge_table

    target = target_of_table(load_table(file), device)
    with progress_bar("judge") as bar, target.open() as opened:
        found = judge_table(file, opened, networks=networks, seed=seed, keep=keep, progress=bar,
                            plan=replace(JUDGING, min_sessions=sessions, max_sessions=sessions, max_minutes=max_minutes))
    for key, reason in found.refused.items():
        say(f"Warning: {key} is refused: {reason}")
    before, errors = cost_model(found.table).held_out, [abs(error) for error in found.errors.tolist()]
    after = cost_model(found.table.with_sitting(found.sitting)).held_out
    shares = {f"within_{limit}_percent": sum(error <= limit / 100 for error in errors) / len(errors) for limit in (2, 5, 10)}
    document = {"table": str(file), "device": target.device, "networks": len(errors), "median_error": found.departure,
                "mean_error": sum(errors) / len(errors), "max_error": max(errors), **shares, "spearman": found.spearman,
                "interval": before.interval, "covered": found.covered, "holds": found.holds, "interval_with_it": after.interval,
                "kept": keep, "anchor_ms": found.sitting.anchor_ms, "refused": found.refused}
    if json:
        print_json(document)
    else:
        print_facts(f"{file}, judged on {target.device} now", [
            ("judged on", f"{len(errors)} network(s), {sessions} session(s) each"),
            ("median error", f"{100 * found.departure:+.1f} %: measured over predicted"),
            ("mean error", f"{percent(document['mean_error'])}, largest {percent(document['max_error'])}"),
            ("within 2, 5, 10 %", ", ".join(f"{100 * share:.0f} %" for share in shares.values()) + " of them"),
            ("rank correlation", "unknown" if found.spearman is None else f"{found.spearman:.3f}"),
            ("anchor", f"{ms(found.sitting.anchor_ms)} ms, {ms(found.table.anchor_ms)} ms in the table"),
            ("95 % interval", f"± {percent(before.interval)}, which held for {found.covered} of {len(errors)}"),
            ("interval with these", f"± {percent(after.interval)}, {'kept' if keep else 'not kept: --keep adds them'}")])
    if not found.holds and not keep:
        raise VerificationError(
            f"A table's 95 % interval must hold on its device, but ± {percent(before.interval)} held for {found.covered} of "
            f"{len(errors)} networks just now (median error {100 * found.departure:+.1f} %): repeat with --keep, which widens "
            "the interval, or profile again with --restart.")


def table_export_command(
    file: _File,
    format: Annotated[str, typer.Option(help="csv or json.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    overwrite: _Overwrite = False,
    json: _Json = False,
) -> None:
    """Writes a table's entries, one row each, for spreadsheets (CSV) and scripts (JSON)."""
    from hwnas.files import write_atomic, write_json
    from hwnas.latency.interchange import to_csv, to_json
    from hwnas.latency.table import load_table

    if format not in ("csv", "json"):
        raise InputError(f"A table is exported as csv or json, but --format is {format!r}: choose one.")
    _check_new(output, overwrite, file)
    table = load_table(file)
    if format == "csv":
        write_atomic(output, to_csv(table))
    else:
        write_json(output, to_json(table))
    if json:
        print_json({"table": str(file), "output": str(output), "format": format, "entries": len(table.entries),
                    "constant_ms": table.constant})
        return
    print_facts(f"{table.space}, exported as {format}", [
        ("file", output), ("entries", len(table.entries)),
        ("a network takes", f"{ms(table.constant)} ms, and the sum of latency_ms over its blocks")])


def table_import_command(
    file: Annotated[Path, typer.Argument(help="Another tool's table.", metavar="FILE")],
    format: Annotated[str, typer.Option(help="ofa-yaml, fbnet-jsonl or hwnasbench-csv.")],
    unit: Annotated[str, typer.Option(help="What its latencies count: us, ms or s.")],
    space: Annotated[str, typer.Option(help="Name, file.py:attribute or file.yaml.")],
    device: Annotated[str, typer.Option(help="What was measured, in words.")],
    output: Annotated[Path, typer.Option(help="Table file to write.")],
    column: Annotated[str | None, typer.Option(help="Of a CSV: the column of latencies, when not 'latency'.")] = None,
    overwrite: _Overwrite = False,
    json: _Json = False,
) -> None:
    """Makes a table of another tool's: once-for-all's YAML, FBNet's JSON lines, or CSV."""
    from hwnas.latency.interchange import import_table
    from hwnas.spaces.load import load_space

    _check_new(output, overwrite, file)
    found = import_table(file, format=format, unit=unit, space=load_space(space), device=device, column=column)
    found.table.save(output)
    if found.unused:
        say(f"{len(found.unused)} of {found.names} names are of no block of {found.table.space}; the first is {found.unused[0]}.")
    if json:
        print_json({"table": str(output), "entries": len(found.table.entries), "names": found.names, "unused": len(found.unused),
                    "first_unused": found.unused[0] if found.unused else None})
        return
    print_facts(f"Latency table of {found.table.space} on {device}, imported", [
        ("file", output), ("blocks", len(found.table.entries)),
        ("names in the file", f"{found.names - len(found.unused)} used, {len(found.unused)} of no block"),
        ("interval", "unknown: what it was measured with, and how well its sum predicts networks, is not in the file")])


def _check_new(output: Path, overwrite: bool, source: Path) -> None:
    """Refuses to replace what is there unasked, and the source always."""
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"Nothing is written over the table that it is made from, but both are {output}: choose another name.")
    if output.exists() and (output.is_dir() or not overwrite):
        remedy = "choose another name" if output.is_dir() else "pass --overwrite to replace it"
        raise InputError(f"A new file is written, but {output} exists: {remedy}.")


def _document(file: Path, table: "LatencyTable") -> dict[str, Any]:
    """What `show --json` prints, but for the dearest blocks."""
    from hwnas.latency.compare import is_additive
    from hwnas.latency.seams import cost_model
    from hwnas.latency.summary import (
        block_costs,
        block_counts,
        estimate_error,
        excluded_options,
        held_out_document,
        refused_blocks,
        refused_networks,
    )

    stored = table.to_dict()
    known = [(row.relative_ci, row.workload) for row in block_costs(table) if row.relative_ci is not None]
    relative_ci, workload = max(known, default=(None, None))
    refused = refused_blocks(table)
    return {
        "file": str(file), "bytes": file.stat().st_size, **{key: stored[key] for key in ("schema", "space", "space_hash")},
        "size": table.search_space.size, "environment": stored["environment"],
        "anchor": {"name": table.anchor.name, "sha256": table.anchor.sha256, "latency_ms": table.anchor_ms,
                   "sessions": len(table.anchor.sessions_ms), "spread_ms": table.anchor.spread_ms,
                   "clock_mhz": table.anchor.clock_mhz},
        "entries": {"count": len(table.entries), **block_counts(table), "widest_relative_ci": relative_ci, "widest": workload,
                    "estimate_error": estimate_error(table)},
        "refused": _refused(refused), "excluded_options": [one._asdict() for one in excluded_options(table)],
        "refused_networks": [{"network": name, "reason": reason} for name, reason in refused_networks(table).items()],
        "effort": None if table.effort is None else stored["effort"] | {"complete": table.effort.complete},
        "networks": {role: sum(record.role == role for record in table.networks) for role in ("fit", "held_out", "exported")}
        | {"other_hour": sum(len(sitting.networks) for sitting in table.sittings)},
        "calibration": stored["calibration"], "constant_ms": table.constant, "held_out": held_out_document(table),
        "additive": is_additive(cost_model(table).held_out)}


def _facts(document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The document in words."""
    there, anchor, entries = document["environment"], document["anchor"], document["entries"]
    settings = ", ".join(f"{key.removeprefix(_SETTING)} {value}" for key, value in there.items() if key.startswith(_SETTING))
    counts = ", ".join(f"{entries[label]} {label}" for label in ("ok", "noisy", "imported", "estimated", "refused",
                                                                      "missing") if entries[label])
    runtime = [there.get("runtime"), there.get("runtime_version"), there.get("precision")]
    facts = [("file", f"{document['file']}, {document['bytes'] / 1024:.0f} KiB"),
             ("space", f"{document['space']} ({document['space_hash'][:12]}), {big(document['size'])} networks"),
             ("device", " ".join(str(there[key]) for key in ("device", "device_id", "architecture") if key in there)),
             ("runtime", " ".join(str(word) for word in runtime if word) + _optional(there, "threads", ", {} thread(s)")
              + _optional(there, "batch_size", ", batch of {}"))]
    if settings:
        facts.append(("settings", settings))
    if "source_file" in there:
        facts += [("imported from", f"{there['source_file']}, SHA-256 {str(there.get('source_sha256'))[:12]}"),
                  ("read as", f"{there.get('source_format')}, in {there.get('source_unit')}, on {there.get('imported_utc')}")]
    else:
        facts += [("measured", there.get("measured_utc", "at a time that is not recorded")),
                  ("anchor", f"{ms(anchor['latency_ms'])} ms ({anchor['name']}), median of {anchor['sessions']} sessions; "
                   f"5th to 95th percentile {' to '.join(map(ms, anchor['spread_ms']))} ms")]
    if anchor["clock_mhz"] is not None:
        low, middle, high = anchor["clock_mhz"]
        facts.append(("clock", f"{middle} MHz in the median, {low} to {high} MHz, read before and after every session"))
    if document["effort"] is not None:
        facts.append(("effort", _effort(document["effort"])))
    if entries["missing"] or (document["effort"] is not None and not document["effort"]["complete"]):
        facts.append(("incomplete", "not everything is measured yet: the same 'hwnas profile' command completes the table"))
    facts.append(("blocks", f"{entries['count']} ({counts})"))
    if entries["widest"] is not None:
        facts.append(("widest interval", f"± {percent(entries['widest_relative_ci'])}, {entries['widest']}"))
    if entries["estimate_error"] is not None:
        facts.append(("estimates", f"off by {percent(entries['estimate_error'])} in the median, as measured blocks show that are "
                      "left out"))
    if document["networks"]["fit"] or document["networks"]["exported"]:
        facts.append(("calibration", _calibration(document["calibration"])))
    return [*facts, *_held_out_facts(document["held_out"]), ("additive", _additive(document["additive"]))]


def _effort(fields: Mapping[str, Any]) -> str:
    """Sessions, and the pace at which they came."""
    sessions, minutes = fields["sessions"], fields["minutes"]
    words = f"{sessions} of {fields['planned_sessions']} sessions in {minutes:.1f} min"
    if not minutes:
        return words
    return f"{words}, {100 * fields['timing_minutes'] / minutes:.0f} % of it timing, {sessions / minutes:.0f} sessions a minute"


def _refused(blocks: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"workload": workload, "reason": reason} for workload, reason in blocks.items()]


def _print_refused(refused: Iterable[Mapping[str, str]]) -> None:
    """Every refused block and why, if there are any."""
    rows = [(*one["workload"].rsplit(" @ ", 1), one["reason"]) for one in refused]
    if rows:
        stdout.print()
        title = f"{len(rows)} refused: no network with one of these is predicted or searched"
        print_table(title, ("block", "input", "why"), rows)


def _optional(there: Mapping[str, Any], key: str, words: str) -> str:
    return words.format(there[key]) if key in there else ""


def _calibration(fields: Mapping[str, Any]) -> str:
    """Every term of a calibration, whatever it is made of."""
    words = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            words += [f"{len(value)} {name.replace('_', ' ')}"] if value else []
        elif isinstance(value, int | float):
            words.append(f"{name.replace('_', ' ')} {value:.4g}")
    return ", ".join(words)


def _held_out_facts(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if not found["networks"]:
        return [("judged on", "no network"), ("95 % interval", f"± {percent(found['interval'])}, a guess")]
    shares = ", ".join(f"{100 * found[f'within_{limit}_percent']:.0f} %" for limit in (2, 5, 10))
    return [("judged on", f"{found['networks']} network(s) that no fit has seen"),
            ("mean error", f"{percent(found['mean_error'])}, largest {percent(found['max_error'])}"),
            ("within 2, 5, 10 %", f"{shares} of them"),
            ("rank correlation", f"{found['spearman']:.3f}" if found["networks"] > 2 else "unknown"),
            ("95 % interval", f"± {percent(found['interval'])}"),
            ("of that", f"± {percent(found['same_hour_interval'])} in the hour of these networks, and another hour adds "
             f"± {percent(found['other_hour_interval'])}, "
             + (f"measured in {found['sittings']}" if found["sittings"] else "as is typical: 'hwnas table judge' measures it"))]


def _additive(verdict: bool | None) -> str:
    return {True: "yes: blocks add up to networks", False: "no: blocks do not add up to networks",
            None: "unknown: too few networks were measured to say"}[verdict]


def _difference(found: "TableDifference", same_space: bool) -> list[tuple[str, Any]]:
    unknown = sum(change.beyond_intervals is None for change in found.common)
    facts = [("space", "the same" if same_space else "different"),
             ("blocks", f"{len(found.common)} in both, {len(found.only_in_first)} only in the first, "
                        f"{len(found.only_in_second)} only in the second"),
             ("compared", "ratios to the same anchor" if found.unit == "ratio" else
              "milliseconds, since the anchors differ; these move with the clock")]
    if found.median_change is not None:
        facts.append(("median change", f"{100 * found.median_change:+.1f} %"))
    if found.spearman is not None:
        facts.append(("rank correlation", f"{found.spearman:.3f}"))
    changed = f"{len(found.changed)} of {len(found.common)}"
    return [*facts, ("changed beyond both intervals", f"{changed}, {unknown} unknown" if unknown else changed)]


def _foreign_environment(table: "LatencyTable", device: str) -> list[str]:
    """One sentence about what differs between a device and the table's, if anything."""
    from hwnas.profiling.anchor import anchor_name
    from hwnas.profiling.device import open_device
    from hwnas.profiling.environment import compare_environments
    from hwnas.runtimes.base import RuntimeConfig

    there = table.environment
    threads, batch_size = (value if isinstance(value := there.get(key), int) else 1 for key in ("threads", "batch_size"))
    config = RuntimeConfig(threads, str(there.get("precision", "fp32")))
    with open_device(device, config, anchor=anchor_name(there.get("anchor"))) as opened:
        here = opened.environment(batch_size)
    found = compare_environments(there, here)
    if there.get("runtime") != here["runtime"]:  # another runtime's settings are always others
        found = [row for row in found if not row[0].startswith(_SETTING)]
    listed = "; ".join(f"{key} is {a!r} there and {b!r} here" for key, a, b in found)
    return [f"It was measured in another environment: {listed}."] if found else []
