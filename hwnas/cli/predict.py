"""Latency of networks of a table's space, with a 95 % interval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli.console import ms, print_json, print_table
from hwnas.cli.refused import warn_of_refused
from hwnas.errors import InputError

if TYPE_CHECKING:
    from hwnas.ir.architecture import Architecture
    from hwnas.ir.steps import Space
    from hwnas.spaces.reference import ReferenceNetwork


def predict_command(
    table: Annotated[Path, typer.Option(help="Latency table.")],
    architecture: Annotated[list[Path] | None, typer.Option(help="Architecture file; may be repeated.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Reference network of the table's space; may be repeated.")] = None,
    random: Annotated[int | None, typer.Option(help="This many uniform samples instead.", min=1, max=1_000_000)] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.ir.architecture import load_architecture
    from hwnas.ir.trellis import Trellis
    from hwnas.latency.seams import cost_model
    from hwnas.latency.table import load_table
    from hwnas.spaces.networks import load_network

    if [bool(architecture), bool(network), bool(random)].count(True) != 1:
        raise InputError("Predict takes --architecture FILE, --network NAME or --random N: give one of them.")
    loaded = load_table(table)
    costs = cost_model(loaded)
    if architecture:
        networks = [loaded.search_space.check(load_architecture(path)) for path in architecture]
    elif network:
        networks = [_path_of(load_network(name), loaded.search_space) for name in network]
    else:
        warn_of_refused(loaded)
        networks = Trellis(costs.search_space, costs).sample(random or 0, seed=seed)
    predictions = costs.predict_many(networks)
    if json:
        print_json([{"architecture": network.to_dict(), "latency_ms": one.latency_ms, "lower_ms": one.lower_ms,
                     "upper_ms": one.upper_ms} for network, one in zip(networks, predictions, strict=True)])
        return
    print_table(f"{loaded.space} on {loaded.environment.get('runtime')}, with the ends of the 95 % interval",
                ("architecture", "latency ms", "lower ms", "upper ms"),
                [(network, ms(one.latency_ms), ms(one.lower_ms), ms(one.upper_ms))
                 for network, one in zip(networks, predictions, strict=True)])


def _path_of(reference: "ReferenceNetwork", space: "Space") -> "Architecture":
    path = reference.architecture() if reference.architecture else None
    if path is None or path.space_hash != space.hash:
        of = f"is a path of space {path.space!r}" if path else "is of no search space"
        raise InputError(f"A table predicts networks of its own space, {space.name!r}, but {reference.name!r} {of}: time it with "
                         "'hwnas networks --device D'.")
    return path
