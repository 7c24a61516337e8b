"""Searches a trained supernet for the most accurate network within a budget that holds by construction."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import ms, percent, print_facts, print_json, progress_bar, quantity, say
from hwnas.cli.loop_options import TorchDevice
from hwnas.cli.options import check_budgets
from hwnas.cli.refused import warn_of_refused
from hwnas.errors import InputError


def search_command(
    supernet: Annotated[Path, typer.Option(help="Folder that 'hwnas train' left.")],
    output: Annotated[Path, typer.Option(help="Folder of the search.")],
    table: Annotated[Path | None, typer.Option(help="Latency table.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Budget; kept by the upper end of the prediction.")] = None,
    max_macs: Annotated[int | None, typer.Option(help="Budget in multiply-accumulates instead.")] = None,
    max_parameters: Annotated[int | None, typer.Option(help="Budget in parameters instead.")] = None,
    max_bitops: Annotated[int | None, typer.Option(help="Budget in bit operations instead: multiply-accumulates times bits of "
                                                   "weights times bits of activations.")] = None,
    method: Annotated[str, typer.Option(help="evolution, random, or dnas (after darts, fbnet, proxyless).")] = "evolution",
    population: Annotated[int, typer.Option(help="Candidates a generation.")] = 50,
    generations: Annotated[int, typer.Option(help="Generations.")] = 20,
    parents: Annotated[int, typer.Option(help="Best candidates that have children.")] = 10,
    mutation_probability: Annotated[float, typer.Option(help="Of each decision.")] = 0.1,
    validation_images: Annotated[int | None, typer.Option(help="Images that score a candidate; all when left out.")] = None,
    calibration_images: Annotated[int, typer.Option(help="Images that recalibrate batch norm, at most.", min=2)] = 1024,
    batch_norm: Annotated[str | None, typer.Option(help="Statistics that score a candidate: recalibrated, or batches (of "
                                                   "validation images); left out, batches after one-shot.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    torch_device: TorchDevice = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard an earlier search in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    limits = {"--max-latency-ms": max_latency_ms, "--max-macs": max_macs, "--max-parameters": max_parameters,
              "--max-bitops": max_bitops}
    given = [name for name, value in limits.items() if value is not None]
    if len(given) != 1 or (max_latency_ms is not None) != (table is not None):
        raise InputError("A search has one budget: --table with --max-latency-ms, or --max-macs, --max-parameters or "
                         f"--max-bitops; got {', '.join([*(['--table'] if table else []), *given]) or 'none'}.")
    check_budgets(max_latency_ms)
    from hwnas.latency.seams import cost_model
    from hwnas.latency.table import load_table
    from hwnas.pipeline.constraint import count_constraint, latency_constraint
    from hwnas.search.evolution import EvolutionConfig

    half = population // 2
    evolution = EvolutionConfig(population, generations, parents, half, population - half, mutation_probability, seed)
    space = constraint = None
    if table is not None and max_latency_ms is not None:
        loaded = load_table(table)
        warn_of_refused(loaded)
        space, constraint = loaded.search_space, latency_constraint(cost_model(loaded), max_latency_ms)
        if not constraint.promised:
            say(f"Note: {max_latency_ms:g} ms is so near the fastest network that only the prediction, not its upper end, can "
                "stay within it.")
    from hwnas.ir.costs import BitOpsCost, CostModel, MacsCost, ParametersCost
    from hwnas.pipeline.search import SearchSettings, search_supernet, space_of_supernet

    if constraint is None:
        space = space_of_supernet(supernet)
        counts: dict[str, CostModel] = {"--max-macs": MacsCost(), "--max-parameters": ParametersCost(),
                                        "--max-bitops": BitOpsCost(count_full_precision=True)}
        constraint = count_constraint(space, counts[given[0]], float(limits[given[0]] or 0))
    settings = SearchSettings(method, evolution, validation_images, calibration_images, batch_norm, torch_device)
    unit, amount = constraint.costs.unit, ms if table else quantity
    with progress_bar("search") as bar:
        result = search_supernet(supernet, space, constraint, output, settings, overwrite=overwrite,
                                 progress=lambda done, total, best: bar(
                                     done, total, f"best {percent(best.score)} at {amount(best.cost)} {unit}"))
    best = result.best
    if json:
        print_json({"output": str(output), "best": best.architecture.to_dict(), "score": best.score, "cost": best.cost,
                    "unit": unit, "evaluations": result.evaluations, "seconds": result.seconds,
                    "exhaustive": result.exhaustive})
        return
    title = f"Best of {result.evaluations} networks" + (", every one that fits" if result.exhaustive else "")
    margin = f", so at most {ms(constraint.search_limit)} ms predicted" if constraint.search_limit < constraint.limit else ""
    print_facts(title, [
        ("validation accuracy", percent(best.score)), (f"predicted {unit}" if table else unit, amount(best.cost)),
        ("budget", f"{f'{constraint.limit:g}' if table else quantity(constraint.limit)} {unit}{margin}"),
        ("architecture file", output / "best.json"), *best.architecture.choices.items()])
