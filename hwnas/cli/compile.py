"""The whole pipeline from one YAML file: profile, train, search, export, measure. Continues where it was interrupted."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import big, ms, ms_range, percent, print_json, print_table, progress_bar, quantity, say, stdout
from hwnas.cli.options import check_budgets


def compile_command(
    config: Annotated[Path, typer.Argument(help="Configuration; see examples/quickstart.yaml.")],
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.")],
    max_latency_ms: Annotated[float | None, typer.Option(help="Replaces the configuration's budget.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard supernet and searches that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    check_budgets(max_latency_ms)
    from dataclasses import asdict

    from hwnas.pipeline.config import load_config
    from hwnas.spaces.load import load_space

    settings = load_config(config, max_latency_ms)
    space = load_space(settings.space)
    say(f"Compiling {space.name} ({big(space.size)} networks) for {settings.device} with {settings.data}.")
    from hwnas.pipeline.compile import compile_space

    summary = compile_space(settings, space, output, progress_bar, overwrite, say)
    if json:
        print_json(asdict(summary))
        return
    print_table(f"Budget {summary.budget_ms:g} ms on {settings.device}; the space reaches {ms_range(*summary.feasible_range_ms)}",
                ("network", "predicted ms", "95 % interval", "measured ms", "accuracy", "MACs", "parameters"),
                [(row.name, ms(row.predicted_ms), f"{ms(row.predicted_lower_ms)} to {ms(row.predicted_upper_ms)}",
                  ms(row.measured_ms), percent(row.accuracy), quantity(row.macs), quantity(row.parameters))
                 for row in summary.networks])
    print_table("\nRounds of search, export and certification",
                ("round", "limit ms", "predicted ms", "measured ms", "budget use", "sessions above", "verdict"),
                [(str(row.number), ms(row.limit_ms), ms(row.predicted_ms), ms(row.measured_ms), percent(row.budget_use),
                  f"{row.above} of {row.observations}", row.verdict) for row in summary.history])
    winner = summary.networks[0]
    notes = [f"The promise is {summary.verdict}: p{100 * summary.quantile:g} within {summary.budget_ms:g} ms at "
             f"{100 * summary.confidence:g} % confidence, {summary.above} of {summary.observations} fresh sessions above it; "
             f"measured {ms(winner.measured_ms)} ms, {percent(summary.budget_use)} of it, after {summary.rounds} round(s)."]
    if not summary.promised:
        notes.append("The budget is so near the fastest network that only the prediction, not its upper end, is within it.")
    notes += ["Accuracy is on test images that neither training nor search has seen.", f"Artefact: {summary.artifact}"]
    stdout.print("\n" + "\n".join(notes), soft_wrap=True)
