"""How well tables predict networks that no fit has seen, runtime by runtime and scheme by scheme, from how many minutes.

    python tools/bench_latency_prediction.py --runtimes onnxruntime-cpu openvino-cpu --spaces mobile-cpu spos

Each table is profiled into --folder (and continued there); then the schemes are compared on the same measurements:

- sum: isolated blocks, added up
- line: intercept + scale * sum + per_block * blocks, fitted on whole networks
- corrected: the line, and a correction of every block, drawn towards its isolated measurement (the default)
- networks only: the same without isolated measurements: every block is expected to cost the same

Run it on a quiet machine: nothing else may compute meanwhile.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from hwnas.files import write_json
from hwnas.latency.calibration import Calibration, fit_calibration
from hwnas.latency.table import LatencyTable, conformal_interval, load_table
from hwnas.profiling.profiler import ProfilePlan, profile_space
from hwnas.profiling.rounds import measurement_folder
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.spaces.load import load_space

SCHEMES = ("sum", "line", "corrected", "networks only")


def profile(runtime: str, space: str, folder: Path, plan: ProfilePlan, progress: Progress) -> tuple[LatencyTable, float | None]:
    """The table, and the minutes that it took where it was measured now in one go."""
    device, config = load_runtime(runtime), RuntimeConfig(threads=1)
    path = folder / measurement_folder(device, config) / f"{space}.json"
    fresh = not path.exists() and not path.with_name(path.name + ".journal").exists()
    task = progress.add_task(f"{runtime} {space}")
    start = time.perf_counter()
    table = profile_space(load_space(space), device, config, path, plan=plan,
                          progress=lambda done, total, what: progress.update(task, completed=done, total=total))
    minutes = (time.perf_counter() - start) / 60
    timed = path.with_suffix(".minutes")
    if fresh:
        timed.write_text(json.dumps(minutes))
    return load_table(path) if path.exists() else table, json.loads(timed.read_text()) if timed.exists() else None


def fitted(table: LatencyTable, scheme: str, networks: int | None = None) -> Calibration:
    """A scheme's calibration from the first of the networks that calibrate."""
    records = [record for record in table.networks if record.role == "fit"]
    order = np.random.default_rng(0).permutation(len(records))[:networks]
    counts, ratios = features(table, [records[index] for index in order])
    measured = np.array([records[index].ratio for index in order])
    if scheme == "sum":
        return Calibration()
    if scheme == "networks only":
        return fit_calibration(counts, dict.fromkeys(ratios, 1.0 / counts.sum(axis=1).mean()), measured)
    return fit_calibration(counts, ratios, measured, corrections=scheme == "corrected")


def features(table: LatencyTable, records: list) -> tuple[np.ndarray, dict[str, float]]:
    """Block counts of networks, and the blocks' isolated ratios."""
    space = table.search_space
    paths = [[part.workload for edge in space.path(space.architecture(record.choices)) for part in edge.parts
              if not part.block.is_free] for record in records]
    ratios = {workload: entry.ratio for workload, entry in table.entries.items()}
    columns = {workload: column for column, workload in enumerate(ratios)}
    counts = np.zeros((len(records), len(columns)), np.int64)
    for row, path in zip(counts, paths, strict=True):
        np.add.at(row, [columns[workload] for workload in path], 1)
    return counts, ratios


def judge(table: LatencyTable, calibration: Calibration, scheme: str) -> dict[str, float]:
    """Errors on the networks that no fit has seen."""
    records = [record for record in table.networks if record.role == "held_out"]
    counts, ratios = features(table, records)
    if scheme == "networks only":
        ratios = dict.fromkeys(ratios, 1.0 / counts.sum(axis=1).mean())
    measured = np.array([record.ratio for record in records])
    costs = np.array([calibration.cost(workload, ratio) for workload, ratio in ratios.items()])
    predicted = calibration.intercept + counts @ costs
    errors = np.abs(measured / predicted - 1)
    covered = []
    for seed in range(50):  # the interval from one half of the networks, judged on the other
        halves = np.random.default_rng(seed).permutation(len(errors))
        judges, judged = errors[halves[::2]], errors[halves[1::2]]
        covered.append(float((judged <= conformal_interval(judges)).mean()))
    return {"networks": len(records), "mean_error": float(errors.mean()), "max_error": float(errors.max()),
            **{f"within_{percent}_percent": float((errors <= percent / 100).mean()) for percent in (2, 5, 10)},
            "spearman": float(stats.spearmanr(predicted, measured).statistic), "interval": conformal_interval(errors),
            "interval_coverage": float(np.mean(covered))}


def session_scatter(table: LatencyTable) -> float:
    """Relative standard deviation of a network's ratio from session to session: no table can do better in one session."""
    scatter = []
    for record in table.networks:
        ratios = [median(session) for session in record.sessions]
        if len(ratios) > 2:
            scatter.append(np.std(ratios, ddof=1) / np.mean(ratios))
    return float(np.median(scatter))


def markdown(rows: list[dict]) -> str:
    """The figures as docs/latency.md shows them."""
    columns = ("runtime", "space", "scheme", "mean error", "largest", "within 2 %", "within 5 %", "Spearman", "interval",
               "coverage", "minutes")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        for scheme in ("line", "corrected"):
            found = row["schemes"][scheme]
            cells = (row["runtime"], row["space"], scheme, f"{100 * found['mean_error']:.1f} %",
                     f"{100 * found['max_error']:.1f} %", f"{100 * found['within_2_percent']:.0f} %",
                     f"{100 * found['within_5_percent']:.0f} %", f"{found['spearman']:.3f}", f"± {100 * found['interval']:.1f} %",
                     f"{100 * found['interval_coverage']:.0f} %", f"{row['minutes']:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime-cpu", "openvino-cpu"])
    parser.add_argument("--spaces", nargs="+", default=["mobile-cpu"])
    parser.add_argument("--folder", type=Path, default=Path("runs/latency-prediction"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit-networks", type=int, default=96)
    parser.add_argument("--fit-sessions", type=int, default=2)
    parser.add_argument("--held-out-networks", type=int, default=40)
    parser.add_argument("--max-minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    plan = ProfilePlan(fit_networks=arguments.fit_networks, fit_sessions=arguments.fit_sessions, held_out_sessions=5,
                       held_out_networks=arguments.held_out_networks, max_minutes=arguments.max_minutes)
    console = Console(width=150)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for runtime in arguments.runtimes:
            for space in arguments.spaces:
                table, minutes = profile(runtime, space, arguments.folder, plan, progress)
                row = {"runtime": runtime, "version": table.environment["runtime_version"], "space": space, "minutes": minutes,
                       "blocks": len(table.entries), "sessions": len(table.anchor.sessions_ms),
                       "session_scatter": session_scatter(table),
                       "schemes": {scheme: judge(table, fitted(table, scheme), scheme) for scheme in SCHEMES},
                       "corrected_from": {count: judge(table, fitted(table, "corrected", count), "corrected")["mean_error"]
                                          for count in (16, 24, 32, 48, 64, 96) if count <= arguments.fit_networks}}
                rows.append(row)
    for row in rows:
        minutes = f"{row['minutes']:.1f} minutes" if row["minutes"] else "continued"
        view = Table(title=f"{row['runtime']} {row['version']}, {row['space']}: {row['blocks']} blocks, {row['sessions']} "
                           f"sessions, {minutes}; scatter between sessions {100 * row['session_scatter']:.1f} %",
                     title_justify="left")
        for column in ("scheme", "mean error", "max", "within 2 %", "5 %", "10 %", "Spearman", "95 % interval", "coverage"):
            view.add_column(column, justify="left" if column == "scheme" else "right")
        for scheme, found in row["schemes"].items():
            view.add_row(scheme, f"{100 * found['mean_error']:.2f} %", f"{100 * found['max_error']:.1f} %",
                         *(f"{100 * found[f'within_{percent}_percent']:.0f} %" for percent in (2, 5, 10)),
                         f"{found['spearman']:.3f}", f"± {100 * found['interval']:.1f} %",
                         f"{100 * found['interval_coverage']:.0f} %")
        console.print(view)
        learned = ", ".join(f"{count}: {100 * error:.2f} %" for count, error in row["corrected_from"].items())
        console.print(f"mean error of corrected from so many fitted networks: {learned}\n")
    if arguments.output:
        write_json(arguments.output, {"schema": "hwnas.latency-prediction/1", "rows": rows})
        print(markdown(rows))


if __name__ == "__main__":
    main()
