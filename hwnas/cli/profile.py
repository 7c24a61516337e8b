"""Builds, or completes, the latency table of a space on a device of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import ms, percent, print_facts, print_json, progress_bar, say


def profile_command(
    device: Annotated[str, typer.Option(help="Target; see 'hwnas devices'.")],
    space: Annotated[str, typer.Option(help="Name, file.py:attribute or file.yaml.")],
    output: Annotated[Path | None, typer.Option(help="Table file; by default under latency_tables/.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    precision: Annotated[str, typer.Option(help="What the runtime computes in.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images a call.", min=1, max=4096)] = 1,
    max_minutes: Annotated[float, typer.Option(help="Stop measuring after this long.", min=0.0)] = 30.0,
    fit_networks: Annotated[int, typer.Option(help="Whole networks that calibrate the blocks.", min=0)] = 48,
    held_out_networks: Annotated[int, typer.Option(help="Whole networks that judge the table; 19 or more for an interval.",
                                                   min=0)] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the whole networks that calibrate and judge.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what is there and measure again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.profiling.profiler import ProfilePlan, default_table_path, profile_space
    from hwnas.runtimes import load_runtime
    from hwnas.runtimes.base import RuntimeConfig
    from hwnas.spaces.load import load_space

    runtime, config, loaded = load_runtime(device), RuntimeConfig(threads, precision), load_space(space)
    path = output or default_table_path(runtime, config, loaded)
    say(f"Profiling {loaded.name} on {device}, {threads} thread(s), {precision}, into {path}; an interrupted run continues.")
    plan = ProfilePlan(max_minutes=max_minutes, fit_networks=fit_networks, held_out_networks=held_out_networks)
    with progress_bar("profile") as bar:
        table = profile_space(loaded, runtime, config, path, batch_size=batch_size, plan=plan, seed=seed, restart=restart,
                              progress=bar)
    noisy = sum(entry.label == "noisy" for entry in table.entries.values())
    missing = table.missing_workloads()
    if missing or not table.networks:
        say("The time was over before everything was measured: the same command completes the table.")
    if json:
        print_json({"table": str(path), "entries": len(table.entries), "noisy": noisy, "missing": len(missing),
                    "anchor_ms": table.anchor_ms, "held_out": vars(table.held_out)})
        return
    held_out = table.held_out
    facts = [("file", path), ("blocks", f"{len(table.entries)} ({noisy} noisy, {len(missing)} missing)"),
             ("anchor", f"{ms(table.anchor_ms)} ms")]
    if held_out.networks:
        facts += [("judged on", f"{held_out.networks} network(s) that no fit has seen"),
                  ("mean error", f"{percent(held_out.mean_error)}, largest {percent(held_out.max_error)}"),
                  ("within 5 %", f"{100 * held_out.within_5_percent:.0f} % of them"),
                  ("rank correlation", f"{held_out.spearman:.3f}")]
    print_facts(f"Latency table of {loaded.name} on {device}", [*facts, ("95 % interval", f"± {percent(held_out.interval)}")])
