"""How well tables predict networks that no fit has seen, runtime by runtime and scheme by scheme, from how many minutes.

    python tools/bench_latency_prediction.py --runtimes onnxruntime-cpu openvino-cpu --spaces mobile-cpu spos --hosts --goal
    python tools/bench_latency_prediction.py --tables latency_tables/*/*/mobile-cpu.json --goal

Each table is profiled into --folder (and continued there), or read; then the schemes are compared on the same measurements:

- sum: isolated blocks, added up
- line: intercept + scale * sum + per_block * blocks, fitted on whole networks
- corrected: the line, and a correction of every block, drawn towards its isolated measurement
- boundaries: the line, and costs of neighbouring pairs, of kinds at a tensor and of blocks; with or without corrections
- shared: corrections with a part in common for blocks of the same shape, kernel, expansion and so on
- shared + weighed: and sessions count the less, the farther they are from what other networks make of theirs (the default)
- networks only: corrections without isolated measurements: every block is expected to cost the same
- hosts (with --hosts): the same on blocks measured between two 1x1 convolutions, less the convolutions; counted apart

How often intervals hold is judged by the networks of other hours, which `hwnas table judge --keep` adds to a table. With --blocks
so many blocks are measured and the others estimated; of tables of many blocks, all measured, --output also says what that costs.

Run it on a quiet machine: nothing else may compute meanwhile.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from hwnas.files import read_json, write_json
from hwnas.latency.estimates import LEAST_BLOCKS
from hwnas.latency.summary import refused_blocks
from hwnas.latency.table import LatencyTable, conformal_interval, load_table
from hwnas.lower.onnx import to_onnx
from hwnas.profiling.anchor import ANCHORS, anchor_for
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import ProfilePlan, plan_blocks, profile_space, with_estimates
from hwnas.profiling.rounds import RoundsPlan, measure_rounds, measurement_folder, open_journal, without_disturbed
from hwnas.runtimes import RuntimeConfig
from hwnas.spaces.load import load_space

sys.path.append(str(Path(__file__).parent))  # tools are scripts; tests load this one by its path
from schemes import HOST_SCHEMES, SCHEMES, Floats, Networks, Rows, Scheme, host_costs, host_networks, read_networks

DEFAULT = "shared + weighed"
DOCUMENTED = ("sum", "line", "corrected", "boundaries", "corrected + boundaries", "shared", "shared + weighed",
              "networks only", "hosts, sum", "hosts, line", "hosts, shared + weighed")
LEARNING = (16, 24, 32, 48, 64, 96)
SCHEMA = "hwnas.latency-prediction/3"
MANY_BLOCKS = 60  # of a table that shows how far fewer would do
MEASURED_SHARES = (0.5, 0.25)
ESTIMATE_SEEDS = 8
HOSTS_SCHEMA = "hwnas.host-journal/1"

GOAL: dict[str, tuple[str, str, Callable[[float], bool]]] = {
    "networks": ("networks", "at least 40", lambda value: value >= 40),
    "sessions": ("sessions", "at least 5 each", lambda value: value >= 5),
    "within_2_percent": ("within 2 %", "at least 85 %", lambda value: value >= 0.85),
    "within_5_percent": ("within 5 %", "at least 99 %", lambda value: value >= 0.99),
    "within_10_percent": ("within 10 %", "all", lambda value: value == 1),
    "spearman": ("Spearman", "at least 0.99", lambda value: value >= 0.99),
    "coverage": ("coverage", "92 to 98 %", lambda value: 0.92 <= value <= 0.98),
    "minutes": ("minutes", "at most 10", lambda value: value <= 10),
}
"""What a table is to reach, by figure: its name, what is wanted of it, and whether a value is that."""


def profile(runtime: str, space: str, folder: Path, plan: ProfilePlan, anchor: str | None, hosts: bool,
            progress: Progress) -> tuple[LatencyTable, dict[str, Any] | None]:
    """The table, and with `hosts` what blocks cost in hosts."""
    loaded = load_space(space)
    with open_device(runtime, RuntimeConfig(threads=1), anchor=anchor or anchor_for(loaded.input_shape)) as device:
        environment = device.environment(1)
        path = folder / measurement_folder(environment) / f"{space}.json"

        def bar(what: str) -> Callable[[int, int, str], None]:
            task = progress.add_task(f"{runtime} {space} {what}")
            return lambda done, total, key: progress.update(task, completed=done, total=total)

        table = profile_space(loaded, device, path, plan=plan, progress=bar("table"))
        if not hosts:
            return table, None
        journal = path.with_name(path.name + ".hosts")
        refused: dict[str, str] = {}
        header = {"schema": HOSTS_SCHEMA, "space_hash": loaded.hash, "environment": environment}
        measured = open_journal(journal, header, refused=refused)
        models = {key: lambda network=network: to_onnx(network).SerializeToString()
                  for key, network in host_networks(loaded).items()}
        rounds = RoundsPlan(max_minutes=plan.max_minutes)
        measure_rounds(models, measured, journal, device, rounds, progress=bar("hosts"), refused=refused)
    counted = without_disturbed(measured, rounds, lambda key: rounds.min_sessions)
    ratios = {key: median(median(session.ratios) for session in sessions) for key, sessions in counted.items()}
    seconds = sum(session.total_s for sessions in measured.values() for session in sessions)
    return table, {"minutes": seconds / 60, "sessions": sum(map(len, measured.values())), "refused": len(refused),
                   "costs": host_costs(loaded, ratios)}


def compare(table: LatencyTable, hosts: dict[str, Any] | None, resplits: int) -> dict[str, Any]:
    """Everything that the benchmark says of a table."""
    networks = read_networks(table)
    schemes = {name: (scheme, networks) for name, scheme in SCHEMES.items()}
    if hosts is not None and all(workload in hosts["costs"] for workload in networks.workloads):
        inside = replace(networks, isolated=np.array([max(hosts["costs"][workload], 0.0) for workload in networks.workloads]))
        schemes |= {name: (scheme, inside) for name, scheme in HOST_SCHEMES.items()}
    fit, held_out = networks.rows("fit"), networks.rows("held_out")
    predicted = {name: predict(scheme, on, fit) for name, (scheme, on) in schemes.items()}
    row = {"device": device_of(table), "runtime": table.environment["runtime"], "version": table.environment["runtime_version"],
           "space": table.space, "minutes": None if table.effort is None else table.effort.minutes,
           "blocks": measured_blocks(table), "estimated": len(table.entries) - measured_blocks(table),
           "refused": len(refused_blocks(table)), "sessions": len(table.anchor.sessions_ms), "effort": effort(table),
           "held_out_sessions": min(len(networks.sessions[row]) for row in held_out),
           "hosts": hosts,
           "session_scatter": session_scatter(networks.sessions), "interval": table.held_out.interval,
           "hours": other_hours(table),
           "schemes": {name: judge(networks, held_out, prediction) | cross_validate(*schemes[name], resplits)
                       for name, prediction in predicted.items()},
           "default_from": {str(count): judge(networks, held_out, predict(SCHEMES[DEFAULT], networks, shuffled(fit)[:count]))[
               "mean_error"] for count in LEARNING if count <= len(fit)},
           "noise": noise(networks, held_out, predicted[DEFAULT]),
           "misses": misses(table, networks, held_out, predicted[DEFAULT])}
    return row


def device_of(table: LatencyTable) -> str:
    """As the folder of its tables says it."""
    return measurement_folder(table.environment).parts[0]


def measured_blocks(table: LatencyTable) -> int:
    """How many entries are not estimated."""
    return sum(entry.label != "estimated" for entry in table.entries.values())


def runtime_of(row: dict[str, Any]) -> tuple[str, str]:
    """What spaces have in common whose coverage is one figure: device and runtime."""
    return row["device"], row["runtime"]


def with_goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with each part of the goal. Coverage is a runtime's on a device, over its spaces: of 40 networks, one that covers
    exactly 95 % would be outside of 92 to 98 % in a third of all cases."""
    found = []
    for row in rows:
        hours = [hour for other in rows if runtime_of(other) == runtime_of(row) for hour in other["hours"]]
        pooled = row | {"coverage": coverage(hours)}
        found.append(pooled | {"goal": goal(pooled)})
    return found


def predict(scheme: Scheme, networks: Networks, rows: Rows) -> Floats:
    """Predictions of all networks from a fit on some."""
    return scheme(networks, rows, [networks.sessions[row] for row in rows])


def shuffled(rows: Rows) -> Rows:
    return np.random.default_rng(0).permutation(rows)


def measured_ratios(networks: Networks, rows: Rows) -> Floats:
    return np.array([np.median(networks.sessions[row]) for row in rows])


def judge(networks: Networks, rows: Rows, predicted: Floats) -> dict[str, Any]:
    """Errors on networks that no fit has seen."""
    measured, predicted = measured_ratios(networks, rows), predicted[rows]
    signed = measured / predicted - 1
    errors = np.abs(signed)
    return {"networks": len(rows), "mean_error": float(errors.mean()), "max_error": float(errors.max()),
            "bias": float(signed.mean()),
            **{f"within_{percent}_percent": float((errors <= percent / 100).mean()) for percent in (2, 5, 10)},
            "spearman": float(stats.spearmanr(predicted, measured).statistic), "interval": conformal_interval(errors)}


def other_hours(table: LatencyTable) -> list[dict[str, Any]]:
    """How the table did in each later sitting, by the interval that it had before: networks that nothing had seen.

    (Halving the networks that the interval comes from would say nothing: how often a maximum of some covers others is arithmetic,
    whatever the errors.)
    """
    found = []
    for count, sitting in enumerate(table.sittings):
        interval = replace(table, sittings=table.sittings[:count]).held_out.interval
        errors = table.errors(sitting.networks)
        within = {f"within_{percent}_percent": float((np.abs(errors) <= percent / 100).mean()) for percent in (2, 5, 10)}
        found.append({"measured_utc": sitting.measured_utc, "networks": len(errors),
                      "sessions": min(len(record.sessions) for record in sitting.networks), "interval": interval,
                      "covered": int((np.abs(errors) <= interval).sum()), "median_error": float(np.median(errors)),
                      "mean_error": float(np.abs(errors).mean()), "max_error": float(np.abs(errors).max()), **within,
                      "spearman": float(stats.spearmanr(table.predicted_ratios(sitting.networks),
                                                        [record.ratio for record in sitting.networks]).statistic),
                      "mean_square": float(np.mean(errors**2) - np.mean(table.errors(table.judging_networks)**2))})
    return found


def transfers(tables: Sequence[LatencyTable]) -> list[dict[str, Any]]:
    """What a table says of another device's networks: every two tables of one space and runtime from two devices, both ways.

    Errors are in ratios to the anchor, as if nothing but the anchor had been measured there; `factor` is the one number that
    would mend them best (a median), and `scaled_mean_error` what it would leave.
    """
    found = []
    for ours, theirs in permutations(tables, 2):
        same = all(a == b for a, b in ((ours.space, theirs.space), *((ours.environment[key], theirs.environment[key])
                                                                    for key in ("runtime", "runtime_version", "anchor"))))
        if same and device_of(ours) != device_of(theirs):
            records = theirs.judging_networks
            measured, predicted = np.array([record.ratio for record in records]), ours.predicted_ratios(records)
            factor = float(np.median(measured / predicted))
            found.append({"runtime": ours.environment["runtime"], "space": ours.space, "from": device_of(ours),
                          "to": device_of(theirs), "networks": len(records), "anchor_ms": [ours.anchor_ms, theirs.anchor_ms],
                          "mean_error": float(np.abs(measured / predicted - 1).mean()), "factor": factor,
                          "scaled_mean_error": float(np.abs(measured / (factor * predicted) - 1).mean()),
                          "own_mean_error": theirs.held_out.mean_error,
                          "spearman": float(stats.spearmanr(predicted, measured).statistic)})
    return found


def estimates(tables: Sequence[LatencyTable]) -> list[dict[str, Any]]:
    """How good a table were if fewer of its blocks had been measured, and the others estimated from them.

    Of every table of many blocks, all measured: the median error of the estimated blocks and the mean error on networks that no
    fit has seen, each the mean over several choices of the blocks that are kept.
    """
    found = []
    for table in tables:
        space, blocks = table.search_space, measured_blocks(table)
        if blocks < len(table.entries) or blocks < MANY_BLOCKS:
            continue
        shares = {}
        for share in MEASURED_SHARES:
            errors = []
            for seed in range(ESTIMATE_SEEDS):
                chosen = plan_blocks(space, 1, max(round(share * blocks), LEAST_BLOCKS), seed)
                keys = {one.key for one in chosen if one.key in table.entries}
                entries = with_estimates(space, {key: table.entries[key] for key in keys}, table.refused)
                off = [abs(entry.ratio / table.entries[key].ratio - 1) for key, entry in entries.items() if key not in keys]
                errors.append((median(off), replace(table, entries=entries).held_out.mean_error))
            shares[str(share)] = dict(zip(("block_error", "mean_error"), np.mean(errors, axis=0).tolist(), strict=True))
        found.append({"device": device_of(table), "runtime": table.environment["runtime"], "space": table.space, "blocks": blocks,
                      "mean_error": table.held_out.mean_error, "shares": shares})
    return found


def coverage(hours: Sequence[dict[str, Any]]) -> float | None:
    """Of all networks of other hours, the share for which the interval of before held."""
    networks = sum(hour["networks"] for hour in hours)
    return sum(hour["covered"] for hour in hours) / networks if networks else None


def cross_validate(scheme: Scheme, networks: Networks, resplits: int) -> dict[str, float]:
    """Errors over other divisions of all networks into those that are fitted and those that judge: less luck of the draw.

    Every network is fitted with as few sessions as those that calibrate have, and judged with all of its own.
    """
    fit, held_out = networks.rows("fit"), networks.rows("held_out")
    rows, sessions = np.concatenate([fit, held_out]), min(len(networks.sessions[row]) for row in fit)
    errors = []
    for seed in range(resplits):
        order = np.random.default_rng(seed).permutation(rows)
        used, left = order[:len(fit)], order[len(fit):]
        predicted = scheme(networks, used, [networks.sessions[row][:sessions] for row in used])
        errors.append(np.abs(measured_ratios(networks, left) / predicted[left] - 1))
    if not errors:
        return {}
    return {"resplit_mean_error": float(np.mean(errors)),
            "resplit_within_2_percent": float(np.mean(np.array(errors) <= 0.02)),
            "resplit_within_5_percent": float(np.mean(np.array(errors) <= 0.05))}


def effort(table: LatencyTable) -> dict[str, float] | None:
    """What the table took, as far as it says so."""
    found = getattr(table, "effort", None)
    if found is None:
        return None
    return {"minutes": found.minutes, "timing_minutes": found.timing_minutes, "sessions": found.sessions,
            "planned_sessions": found.planned_sessions, "blocks_per_minute": measured_blocks(table) / max(found.minutes, 1e-9),
            "timing_share": found.timing_minutes / max(found.minutes, 1e-9)}


def session_scatter(sessions: Sequence[Floats]) -> float | None:
    """Relative standard deviation of a network's ratio from session to session: no table can do better in one session."""
    scatter = [np.std(ratios, ddof=1) / np.mean(ratios) for ratios in sessions if len(ratios) > 2]
    return float(np.median(scatter)) if scatter else None


def noise(networks: Networks, held_out: Rows, predicted: Floats) -> dict[str, float | None]:
    """How much of the error on networks that judge is their own scatter, by resampling their sessions.

    Returns:
        `scatter` from session to session; `error`, the mean one that it makes of a median; `error_share` of the mean square
        error; `within_2_percent`, how many of these medians are near the true one; and `between_rounds`, see there.
    """
    resampled = [np.median(np.random.default_rng(0).choice(networks.sessions[row], (400, len(networks.sessions[row]))), axis=1)
                 / np.median(networks.sessions[row]) - 1 for row in held_out]
    errors = measured_ratios(networks, held_out) / predicted[held_out] - 1
    return {"scatter": session_scatter([networks.sessions[row] for row in held_out]),
            "error": float(np.mean(np.abs(resampled))),
            "error_share": min(float(np.mean(np.square(resampled)) / np.mean(errors**2)), 1.0),
            "within_2_percent": float(np.mean(np.abs(resampled) <= 0.02)),
            "between_rounds": between_rounds([networks.sessions[row] for row in held_out])}


def between_rounds(sessions: Sequence[Floats]) -> float | None:
    """Standard deviation between rounds of all networks together, which no number of networks averages away.

    Args:
        sessions: Ratios in the order in which they were measured, one array for each network, one session of it a round.
    """
    count = min(len(one) for one in sessions)
    if count < 2:
        return None
    logs = np.log([one[:count] for one in sessions])
    return float((logs - logs.mean(axis=1, keepdims=True)).mean(axis=0).std(ddof=1))


def misses(table: LatencyTable, networks: Networks, rows: Rows, predicted: Floats, count: int = 5) -> list[dict[str, Any]]:
    """The networks that were predicted worst."""
    errors = measured_ratios(networks, rows) / predicted[rows] - 1
    worst = [(rows[index], errors[index]) for index in np.argsort(-np.abs(errors))[:count]]
    return [{"network": str(table.search_space.architecture(networks.records[row].choices)), "error": float(error),
             "predicted": float(predicted[row]), "sessions": networks.sessions[row].tolist()} for row, error in worst]


def goal(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each part of the goal: the default scheme's figure, and whether it is met; what is not known is not met."""
    figures: dict[str, Any] = row["schemes"][DEFAULT] | {"minutes": row["minutes"], "sessions": row["held_out_sessions"],
                                                         "coverage": row["coverage"]}
    return {part: {"figure": figures.get(part), "met": figures.get(part) is not None and bool(reaches(figures[part]))}
            for part, (_, _, reaches) in GOAL.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The figures of the default scheme, one line for every table, as docs/latency.md shows them."""
    columns = ("device", "runtime", "space", "blocks", "goal", "mean error", "scatter", "rounds", "largest", "within 2 %",
               "within 5 %", "Spearman", "interval", "coverage", "minutes", "timing", "blocks a minute")
    lines = []
    for row in rows:
        found = row["schemes"][DEFAULT]
        missed = [GOAL[part][0] for part, part_found in row["goal"].items() if not part_found["met"]]
        lines.append((*runtime_of(row), row["space"], say_blocks(row), "met" if not missed else f"missed: {', '.join(missed)}",
                      f"{100 * found['mean_error']:.1f} %", f"{100 * row['noise']['error_share']:.0f} %",
                      say_share(row["noise"]["between_rounds"]), f"{100 * found['max_error']:.1f} %",
                      *(f"{100 * found[f'within_{percent}_percent']:.0f} %" for percent in (2, 5)),
                      f"{found['spearman']:.3f}", f"± {100 * row['interval']:.1f} %", say_coverage(row["hours"]),
                      *(["unknown"] * 3 if row["effort"] is None else [
                          f"{row['minutes']:.1f}", f"{100 * row['effort']['timing_share']:.0f} %",
                          f"{row['effort']['blocks_per_minute']:.0f}"])))
    return markdown_table(columns, lines)


def schemes_markdown(rows: list[dict[str, Any]]) -> str:
    """The mean error of every scheme, averaged over other divisions into fitted and judging networks too."""
    schemes = [name for name in DOCUMENTED if any(name in row["schemes"] for row in rows)]
    return markdown_table(("device", "runtime", "space", "networks over sums", *schemes), [(
        *runtime_of(row), row["space"], f"{100 * row['schemes']['sum']['bias']:+.1f} %", *(
            f"{100 * row['schemes'][name]['resplit_mean_error']:.2f} %" if name in row["schemes"] else "" for name in schemes))
        for row in rows])


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))


def say_coverage(hours: Sequence[dict[str, Any]]) -> str:
    """As counts: a share of some tens says less than it seems to."""
    covered, networks = (sum(hour[key] for hour in hours) for key in ("covered", "networks"))
    return f"{covered} of {networks}" if networks else "unknown"


def hours_markdown(rows: list[dict[str, Any]]) -> str:
    """Every sitting in another hour, one line for each, and all together."""
    columns = ("device", "runtime", "space", "measured", "networks", "interval", "held for", "median error", "mean error",
               "within 5 %", "Spearman", "the hour added")
    lines: list[tuple[str, ...]] = [(
        *runtime_of(row), row["space"], hour["measured_utc"][:16].replace("T", " "), f"{hour['networks']}",
        f"± {100 * hour['interval']:.1f} %", f"{hour['covered']}", f"{100 * hour['median_error']:+.1f} %",
        f"{100 * hour['mean_error']:.1f} %", f"{100 * hour['within_5_percent']:.0f} %", f"{hour['spearman']:.3f}",
        say_added([hour])) for row in rows for hour in row["hours"]]
    for runtime in [*dict.fromkeys(map(runtime_of, rows)), ("all", "all")]:
        hours = [hour for row in rows if runtime in (runtime_of(row), ("all", "all")) for hour in row["hours"]]
        if hours:
            covered, networks = (sum(hour[key] for hour in hours) for key in ("covered", "networks"))
            held_for = f"{covered} ({100 * covered / networks:.1f} %)"
            lines.append((*runtime, "all", f"{len(hours)} sittings", f"{networks}", "", held_for, *[""] * 4, say_added(hours)))
    return markdown_table(columns, lines)


def transfers_markdown(found: Sequence[dict[str, Any]]) -> str:
    """One line for each table and each other device that it is asked about."""
    columns = ("runtime", "space", "table of", "networks on", "anchor there", "mean error", "one factor", "mean error left",
               "of its own table", "Spearman")
    return markdown_table(columns, [(
        one["runtime"], one["space"], one["from"], one["to"], f"{100 * (one['anchor_ms'][1] / one['anchor_ms'][0] - 1):+.0f} %",
        say_share(one["mean_error"]), f"{one['factor']:.2f}", say_share(one["scaled_mean_error"]),
        say_share(one["own_mean_error"]), f"{one['spearman']:.3f}") for one in found])


def estimates_markdown(found: Sequence[dict[str, Any]]) -> str:
    """One line for each table of many blocks."""
    columns = ("device", "runtime", "space", "blocks", "error on networks, all measured",
               *(f"{100 * share:.0f} % measured: {what}" for share in MEASURED_SHARES for what in ("a block", "networks")))
    return markdown_table(columns, [(*runtime_of(one), one["space"], str(one["blocks"]), f"{100 * one['mean_error']:.2f} %", *(
        figure for share in one["shares"].values() for figure in (say_share(share["block_error"]),
                                                                  f"{100 * share['mean_error']:.2f} %"))) for one in found])


def say_added(hours: Sequence[dict[str, Any]]) -> str:
    """What the hours added to the error, in root mean square; nothing where they took from it."""
    return f"{100 * max(float(np.mean([hour['mean_square'] for hour in hours])), 0.0) ** 0.5:.1f} %"


def say_figure(part: str, figure: float | None) -> str:
    """A figure of the goal in words."""
    if figure is None:
        return "unknown"
    decimals = {"networks": 0, "sessions": 0, "spearman": 3, "minutes": 1}
    return f"{figure:.{decimals[part]}f}" if part in decimals else say_share(figure)


def say_blocks(row: dict[str, Any]) -> str:
    """How many were measured, of how many where others are estimated."""
    return f"{row['blocks']:,}" + (f" of {row['blocks'] + row['estimated']:,}" if row["estimated"] else "")


def say_share(figure: float | None) -> str:
    """A share with one decimal."""
    return "unknown" if figure is None else f"{100 * figure:.1f} %"


def show(console: Console, row: dict[str, Any], with_goal: bool) -> None:
    """Prints what was found of a table."""
    minutes = "" if row["minutes"] is None else f", {row['minutes']:.1f} minutes"
    view = Table(title=f"{row['device']}, {row['runtime']} {row['version']}, {row['space']}: {say_blocks(row)} blocks, "
                       f"{row['sessions']} sessions{minutes}; scatter between sessions {say_share(row['session_scatter'])}",
                 title_justify="left")
    resplit = "resplit_mean_error" in row["schemes"][DEFAULT]
    for column in ("scheme", "mean error", "max", "bias", "within 2 %", "5 %", "10 %", "Spearman", "in the hour",
                   *["resplit mean", "2 %", "5 %"] * resplit):
        view.add_column(column, justify="left" if column == "scheme" else "right")
    for scheme, found in row["schemes"].items():
        again = [f"{100 * found['resplit_mean_error']:.2f} %", *(f"{100 * found[f'resplit_within_{percent}_percent']:.1f} %"
                 for percent in (2, 5))] if resplit else []
        view.add_row(scheme, f"{100 * found['mean_error']:.2f} %", f"{100 * found['max_error']:.1f} %",
                     f"{100 * found['bias']:+.1f} %",
                     *(f"{100 * found[f'within_{percent}_percent']:.0f} %" for percent in (2, 5, 10)),
                     f"{found['spearman']:.3f}", f"± {100 * found['interval']:.1f} %", *again)
    console.print(view)
    for line in diagnostics(row):
        console.print(line, soft_wrap=True)
    if with_goal:
        verdict = Table(title=f"{row['device']}, {row['runtime']}, {row['space']}: the goal", title_justify="left")
        for column in ("part", "goal", "figure", "verdict"):
            verdict.add_column(column)
        for part, found in row["goal"].items():
            verdict.add_row(*GOAL[part][:2], say_figure(part, found["figure"]), "met" if found["met"] else "not met")
        console.print(verdict)
    console.print()


def diagnostics(row: dict[str, Any]) -> Iterator[str]:
    """What explains the figures, a line each."""
    learned = ", ".join(f"{count}: {100 * error:.2f} %" for count, error in row["default_from"].items())
    yield f"mean error of {DEFAULT} from so many fitted networks: {learned}"
    found = row["noise"]
    yield (f"networks that judge scatter by {say_share(found['scatter'])} between sessions, which alone makes an error of "
           f"{100 * found['error']:.1f} % ({100 * found['error_share']:.0f} % of the mean square) and leaves "
           f"{100 * found['within_2_percent']:.0f} % within 2 %; rounds of all of them differ by "
           f"{say_share(found['between_rounds'])}")
    for miss in row["misses"]:
        sessions = " ".join(f"{ratio:.3f}" for ratio in miss["sessions"])
        yield f"{100 * miss['error']:+.1f} %: predicted {miss['predicted']:.3f}, measured {sessions}: {miss['network']}"
    if row["hours"]:
        yield (f"95 % interval ± {say_share(row['interval'])}; before, it held for {say_coverage(row['hours'])} networks of "
               f"{len(row['hours'])} other hour(s); another hour adds {say_added(row['hours'])} (root mean square)")
    else:
        yield f"95 % interval ± {say_share(row['interval'])}; not judged in another hour yet: 'hwnas table judge --keep' does"
    if row["effort"]:
        yield (f"{row['effort']['blocks_per_minute']:.1f} blocks a minute; {100 * row['effort']['timing_share']:.0f} % of the "
               f"time spent measuring; {row['effort']['sessions']} of {row['effort']['planned_sessions']} sessions")
    if row["hosts"]:
        yield (f"hosts: {row['hosts']['sessions']} sessions in {row['hosts']['minutes']:.1f} minutes; {row['hosts']['refused']} "
               "refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime-cpu", "openvino-cpu"])
    parser.add_argument("--spaces", nargs="+", default=["mobile-cpu"])
    parser.add_argument("--tables", nargs="+", type=Path, help="judge these files instead; nothing is measured")
    parser.add_argument("--anchor", choices=tuple(ANCHORS), help="another one than the space's; give it a --folder of its own")
    parser.add_argument("--folder", type=Path, default=Path("runs/latency-prediction"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--hosts", action="store_true", help="also measure every block in a host, in as many minutes at most")
    parser.add_argument("--hosts-of", type=Path, help="with --tables: take what hosts cost from this earlier --output")
    parser.add_argument("--goal", action="store_true", help="print each part of the goal, met or not")
    parser.add_argument("--resplits", type=int, default=10, help="other divisions into fitted and judging networks")
    parser.add_argument("--blocks", type=int, help="measure so many and estimate the others; all when left out")
    parser.add_argument("--fit-networks", type=int, default=96)
    parser.add_argument("--fit-sessions", type=int, default=2)
    parser.add_argument("--held-out-networks", type=int, default=40)
    parser.add_argument("--held-out-sessions", type=int, default=5, help="the goal asks for five; more scatter less")
    parser.add_argument("--max-minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    plan = ProfilePlan(fit_networks=arguments.fit_networks, fit_sessions=arguments.fit_sessions,
                       held_out_networks=arguments.held_out_networks, held_out_sessions=arguments.held_out_sessions,
                       blocks=arguments.blocks, max_minutes=arguments.max_minutes)
    console = Console(width=170)
    with Progress(console=Console(stderr=True)) as progress:
        found: list[tuple[LatencyTable, dict[str, Any] | None]]
        if arguments.tables:
            known = {} if arguments.hosts_of is None else {
                (*runtime_of(row), row["space"]): row["hosts"] for row in read_json(arguments.hosts_of, "benchmark")["rows"]}
            tables = [load_table(path) for path in arguments.tables]
            found = [(table, known.get((device_of(table), table.environment["runtime"], table.space))) for table in tables]
        else:
            found = [profile(runtime, space, arguments.folder, plan, arguments.anchor, arguments.hosts, progress)
                     for runtime in arguments.runtimes for space in arguments.spaces]
    rows = []
    for table, hosts in found:
        if table.missing_workloads() or {"fit", "held_out"} - {record.role for record in table.usable_networks}:
            console.print(f"{table.environment['runtime']}, {table.space}: not measured to the end; the same command goes on")
            continue
        rows.append(compare(table, hosts, arguments.resplits))
    rows = with_goals(rows)
    for row in rows:
        show(console, row, arguments.goal)
    if arguments.output:
        moved, fewer = (figures([table for table, _ in found]) for figures in (transfers, estimates))
        write_json(arguments.output, {"schema": SCHEMA, "rows": rows, "transfers": moved, "estimates": fewer})
        print(markdown(rows), hours_markdown(rows), *([schemes_markdown(rows)] if arguments.resplits else []),
              *([transfers_markdown(moved)] if moved else []), *([estimates_markdown(fewer)] if fewer else []), sep="\n\n")


if __name__ == "__main__":
    main()
