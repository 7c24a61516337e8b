"""Measure on a device that is reached by hand only: build a folder to carry there, and make a table of what comes back."""

import math
from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import block_words, ms, percent, print_facts, print_json, progress_bar, say
from hwnas.cli.refused import warn_of_refused_networks


def kit_build_command(
    device: Annotated[str, typer.Option(help="Runtime there; see 'hwnas devices'. Here only its converter is needed.")],
    space: Annotated[str, typer.Option(help="Name, file.py:attribute or file.yaml.")],
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    precision: Annotated[str, typer.Option(help="What the runtime computes in.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images a call.", min=1, max=4096)] = 1,
    blocks: Annotated[int | None, typer.Option(help="Measure so many distinct blocks and estimate the others from them; all when "
                                                    "left out.")] = None,
    fit_networks: Annotated[int, typer.Option(help="Whole networks that calibrate the blocks; they are most of a kit's size.",
                                              min=0)] = 48,
    held_out_networks: Annotated[int, typer.Option(help="Whole networks that judge the table; 19 or more for an interval.",
                                                   min=0)] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the whole networks that calibrate and judge, and the --blocks.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a kit that is there, and its results.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a folder with everything to measure, for a device that has Python, numpy and the runtime."""
    from hwnas.profiling.kit import build_kit
    from hwnas.profiling.profiler import ProfilePlan
    from hwnas.runtimes.base import RuntimeConfig
    from hwnas.spaces.load import load_space

    plan = ProfilePlan(blocks=blocks, fit_networks=fit_networks, held_out_networks=held_out_networks)
    loaded = load_space(space)
    with progress_bar("kit") as bar:
        kit = build_kit(loaded, device, output, config=RuntimeConfig(threads, precision), batch_size=batch_size, plan=plan,
                        seed=seed, overwrite=overwrite, progress=bar)
    for key, reason in kit.refused.items():
        say(f"{key} was left out: {reason}")
    if json:
        print_json({"kit": str(kit.folder), "blocks": kit.blocks, "networks": kit.networks, "refused": kit.refused_blocks,
                    "sessions": kit.sessions, "size_bytes": kit.size_bytes})
        return
    print_facts(f"Kit of {loaded.name} for {device}", [
        ("folder", kit.folder), ("size", f"{kit.size_bytes / 2**20:.1f} MiB"),
        ("blocks", f"{kit.blocks} ({kit.refused_blocks} refused)"), ("networks", kit.networks),
        ("sessions", f"{kit.sessions}; timing them takes {math.ceil(kit.at_most_minutes)} min at most, loading comes on top"),
        ("next", "copy the folder to the device and run 'python run.py' in it; its README.md says more")])


def kit_collect_command(
    folder: Annotated[Path, typer.Argument(help="The kit, with the results.jsonl that the device left in it.")],
    output: Annotated[Path | None, typer.Option(help="Table file; by default under latency_tables/.")] = None,
    results: Annotated[Path | None, typer.Option(help="The device's results, if they lie elsewhere.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the latency table of what a kit measured, of a part of it too."""
    from hwnas.latency.seams import cost_model
    from hwnas.latency.summary import block_counts, refused_networks
    from hwnas.profiling.kit import collect_kit

    collected = collect_kit(folder, output, results=results, overwrite=overwrite)
    held_out = cost_model(collected.table).held_out
    table, counts = collected.table, block_counts(collected.table)
    if collected.missing_sessions:
        say(f"The table is incomplete: {collected.missing_sessions} session(s) are to go. Run the kit's run.py on the device "
            "again, bring back its results, and collect them with --overwrite.")
    if collected.left_out:
        say(f"{collected.left_out} network(s) were left out, since the device refuses them or a block of theirs.")
    warn_of_refused_networks(table)
    if json:
        print_json({"table": str(collected.path), "entries": len(table.entries), **counts,
                    "refused_networks": len(refused_networks(table)),
                    "missing_sessions": collected.missing_sessions, "anchor_ms": table.anchor_ms,
                    "held_out": vars(held_out)})
        return
    facts = [("file", collected.path), ("device", table.environment["device"]),
             ("blocks", block_words(counts)), ("anchor", f"{ms(table.anchor_ms)} ms")]
    if held_out.networks:
        facts += [("judged on", f"{held_out.networks} network(s) that no fit has seen"),
                  ("mean error", f"{percent(held_out.mean_error)}, largest {percent(held_out.max_error)}")]
    print_facts(f"Latency table of {table.space} on {table.environment['runtime']}",
                [*facts, ("95 % interval", f"± {percent(held_out.interval)}")])
