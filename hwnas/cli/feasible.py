"""What a space can reach on a device, and how many networks meet a budget: never too many, in milliseconds, no training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hwnas.cli.console import big, ms, ms_range, percent, print_json, print_table
from hwnas.cli.options import check_budgets
from hwnas.cli.refused import warn_of_refused


def feasible_command(
    table: Annotated[Path, typer.Option(help="Latency table.")],
    max_latency_ms: Annotated[list[float] | None, typer.Option(help="Budget; may be repeated.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    check_budgets(*max_latency_ms or [])
    from hwnas.errors import InfeasibleError
    from hwnas.ir.trellis import MAX_RESOLUTION, Trellis
    from hwnas.latency.seams import cost_model
    from hwnas.latency.table import load_table

    loaded = load_table(table)
    warn_of_refused(loaded)
    costs = cost_model(loaded)
    trellis = Trellis(costs.search_space, costs, resolution=MAX_RESOLUTION)  # a count is worth some milliseconds more
    results: list[dict[str, Any]] = []
    refusal = None
    for budget in max_latency_ms or []:
        try:
            example = trellis.sample(1, max_cost=budget)[0]
        except InfeasibleError as error:
            refusal = error
            results.append({"max_latency_ms": budget, "count": 0, "share": 0.0, "promised_count": 0, "example": None})
            continue
        promised = costs.promise_budget(budget)
        count = trellis.count(budget)
        results.append({"max_latency_ms": budget, "count": count, "share": count / loaded.search_space.size,
                        "promised_count": trellis.count(promised) if promised >= trellis.min_cost() else 0,
                        "example": example.to_dict() | {"latency_ms": trellis.cost(example)}})
    document = {"space": loaded.space, "device": loaded.environment.get("runtime"), "size": loaded.search_space.size,
                "feasible_range_ms": [trellis.min_cost(), trellis.max_cost()], "budgets": results}
    if json:
        print_json(document)
    else:
        runs = f"{big(trellis.count())} of " if trellis.count() < loaded.search_space.size else ""
        print_table(f"{loaded.space} on {document['device']}: {ms_range(trellis.min_cost(), trellis.max_cost())}, "
                    f"{runs}{big(loaded.search_space.size)} networks",
                    ("budget ms", "networks within", "share", "upper end within", "one of them", "its ms"),
                    [(f"{row['max_latency_ms']:g}", big(row["count"]), percent(row["share"]), big(row["promised_count"]),
                      *((" ".join(row["example"]["choices"].values()), ms(row["example"]["latency_ms"])) if row["example"]
                        else ("none", ""))) for row in results])
    if refusal is not None and not any(row["count"] for row in results):
        raise refusal
