"""Builds, or completes, the latency table of a space on a device, here or over ssh."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import block_words, ms, percent, print_facts, print_json, progress_bar, say
from hwnas.cli.options import processors
from hwnas.cli.refused import warn_of_refused, warn_of_refused_networks

_MANY_BLOCKS = 300
_ENOUGH_BLOCKS = 200  # docs/latency.md has the figures


def profile_command(
    device: Annotated[str, typer.Option(help="Target; see 'hwnas devices'. Over ssh: ssh://user@host/onnxruntime-cpu.")],
    space: Annotated[str, typer.Option(help="Name, file.py:attribute or file.yaml.")],
    output: Annotated[Path | None, typer.Option(help="Table file; by default under latency_tables/.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    precision: Annotated[str, typer.Option(help="What the runtime computes in.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images a call.", min=1, max=4096)] = 1,
    cpus: Annotated[str | None, typer.Option(help="Processors to run on, \"2,3\"; by default the last ones.")] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop measuring after this long.", min=0.0)] = 30.0,
    blocks: Annotated[int | None, typer.Option(help="Measure so many distinct blocks and estimate the others from them; all when "
                                                    "left out.")] = None,
    fit_networks: Annotated[int, typer.Option(help="Whole networks that calibrate the blocks.", min=0)] = 48,
    held_out_networks: Annotated[int, typer.Option(help="Whole networks that judge the table; 19 or more for an interval.",
                                                   min=0)] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the whole networks that calibrate and judge, and the --blocks.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what is there and measure again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.latency.seams import cost_model
    from hwnas.latency.summary import block_counts, refused_blocks, refused_networks
    from hwnas.profiling.anchor import anchor_for
    from hwnas.profiling.device import open_device
    from hwnas.profiling.profiler import ProfilePlan, default_table_path, profile_space
    from hwnas.runtimes.base import RuntimeConfig
    from hwnas.spaces.load import load_space

    loaded = load_space(space)
    plan = ProfilePlan(max_minutes=max_minutes, blocks=blocks, fit_networks=fit_networks, held_out_networks=held_out_networks)
    anchor = anchor_for((batch_size, *loaded.input_shape))
    with open_device(device, RuntimeConfig(threads, precision), processors(cpus), anchor) as opened:
        path = output or default_table_path(opened.environment(batch_size), loaded)
        before = path.read_bytes() if path.is_file() else None
        if blocks is None and before is None and len(loaded.measured_parts) > _MANY_BLOCKS:
            say(f"{loaded.name} has {len(loaded.measured_parts):,} distinct blocks, of which a minute measures 25 or so, twice "
                f"each: --blocks {_ENOUGH_BLOCKS} measures so many and estimates the others from them.")
        say(f"Profiling {loaded.name} on {device}, {threads} thread(s), {precision}, into {path}; an interrupted run continues.")
        with progress_bar("profile") as bar:
            table = profile_space(loaded, opened, path, batch_size=batch_size, plan=plan, seed=seed, restart=restart,
                                  progress=bar)
    counts, held_out = block_counts(table), cost_model(table).held_out
    warn_of_refused(table)
    warn_of_refused_networks(table)
    if counts["missing"] or (table.effort is not None and not table.effort.complete):
        say("The time was over before everything was measured: the same command completes the table.")
    elif path.read_bytes() == before:
        say("The table was complete already, and nothing was measured: --restart measures it again, with the numbers given.")
    if json:
        print_json({"table": str(path), "entries": len(table.entries), **counts,
                    "refused": refused_blocks(table), "refused_networks": refused_networks(table),
                    "effort": table.effort.model_dump() if table.effort else None,
                    "anchor_ms": table.anchor_ms, "held_out": vars(held_out)})
        return
    facts = [("file", path), ("blocks", block_words(counts)), ("anchor", f"{ms(table.anchor_ms)} ms")]
    if held_out.networks:
        facts += [("judged on", f"{held_out.networks} network(s) that no fit has seen"),
                  ("mean error", f"{percent(held_out.mean_error)}, largest {percent(held_out.max_error)}"),
                  ("within 5 %", f"{100 * held_out.within_5_percent:.0f} % of them"),
                  ("rank correlation", f"{held_out.spearman:.3f}")]
    print_facts(f"Latency table of {loaded.name} on {device}", [*facts, ("95 % interval", f"± {percent(held_out.interval)}")])
