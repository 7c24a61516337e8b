"""Exports one network as a standalone, verified artefact, and times it on the device of a table."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import ms, percent, print_facts, print_json, progress_bar, quantity
from hwnas.cli.options import check_budgets
from hwnas.errors import InputError, VerificationError

FORMATS = ("onnx",)


def export_command(
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    architecture: Annotated[Path | None, typer.Option(help="Architecture file.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the supernet whose weights are inherited.")] = None,
    space: Annotated[str | None, typer.Option(help="With --random: a network of this space, random weights.")] = None,
    random: Annotated[int | None, typer.Option(help="Seed of a random network.", min=0)] = None,
    network: Annotated[str | None, typer.Option(help="A reference network instead, random weights.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="onnx.")] = None,
    table: Annotated[Path | None, typer.Option(help="Predict, and measure in this table's ms.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the table's device is, if not here: ssh://user@host/runtime.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Budget to be checked by measurement; exit 4 if broken.")] = None,
    sessions: Annotated[int, typer.Option(help="Fresh sessions of the measurement.", min=1)] = 5,
    calibration_images: Annotated[int, typer.Option(help="Images that recalibrate batch norm, at most.", min=1)] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artefact that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    ways = ((architecture, weights), (space, random), (network,))
    if [all(one is not None for one in way) for way in ways].count(True) != 1 or (
            [any(one is not None for one in way) for way in ways].count(True) != 1):
        raise InputError("Export takes --architecture FILE with --weights SUPERNET, or --space S with --random SEED, or "
                         "--network NAME: give one of these.")
    unknown = [one for one in formats or [] if one not in FORMATS]
    if unknown:
        raise InputError(f"The format must be one of {', '.join(FORMATS)}, but is {unknown[0]!r}.")
    if max_latency_ms is not None and table is None:
        raise InputError("A budget is checked in a table's milliseconds: give --table with --max-latency-ms.")
    if device is not None and table is None:
        raise InputError("A device is measured in a table's milliseconds: give --table with --device, or time the artefact with "
                         "'hwnas bench'.")
    check_budgets(max_latency_ms)
    if max_latency_ms is not None and max_latency_ms <= 0:
        raise InputError(f"A measured latency can only be within a budget above 0 ms, but the budget is {max_latency_ms:g} ms.")
    from hwnas.ir.architecture import load_architecture
    from hwnas.latency.table import load_table
    from hwnas.pipeline.export import export_from_supernet, export_random, export_reference
    from hwnas.pipeline.measure import measure_artifact, target_of_table
    from hwnas.spaces.load import load_space
    from hwnas.spaces.networks import load_network

    loaded = load_table(table) if table else None
    target = target_of_table(loaded, device) if loaded else None
    batch_size = target.batch_size if target else 1
    if architecture is not None and weights is not None:
        chosen = load_architecture(architecture)
        artifact = export_from_supernet(weights, chosen, output, budget_ms=max_latency_ms, batch_size=batch_size,
                                        prediction=loaded.predict(chosen) if loaded else None,
                                        calibration_images=calibration_images, overwrite=overwrite)
    elif network is not None:
        artifact = export_reference(load_network(network), 0, output, table=loaded, budget_ms=max_latency_ms,
                                    batch_size=batch_size, overwrite=overwrite)
    else:
        artifact = export_random(load_space(str(space)), int(random or 0), output, table=loaded, budget_ms=max_latency_ms,
                                 batch_size=batch_size, overwrite=overwrite)
    manifest = artifact.manifest
    if target:
        with progress_bar("measure") as bar:
            manifest, _ = measure_artifact(artifact.directory, target, sessions, lambda done, total: bar(done, total, ""))
    if json:
        print_json(manifest.model_dump(mode="json", by_alias=True) | {"artifact": str(artifact.directory)})
    else:
        facts = [("folder", artifact.directory), ("MACs", quantity(manifest.macs)), ("parameters", quantity(manifest.parameters)),
                 ("largest difference from PyTorch", f"{manifest.parity_max_abs:.2e} (at most {manifest.parity_tolerance:.2e})")]
        if manifest.accuracy is not None:
            facts.append(("test accuracy", percent(manifest.accuracy)))
        if manifest.predicted_ms and manifest.predicted_lower_ms is not None and manifest.predicted_upper_ms:
            facts.append(("predicted", f"{ms(manifest.predicted_ms)} ms ({ms(manifest.predicted_lower_ms)} to "
                                       f"{ms(manifest.predicted_upper_ms)})"))
        if manifest.measured_ms is not None:
            facts.append(("measured", f"{ms(manifest.measured_ms)} ms"))
        if max_latency_ms is not None:
            facts.append(("budget", f"{max_latency_ms:g} ms"))
        print_facts(f"Artefact of {manifest.name}", facts)
    if manifest.measurement is not None and manifest.measurement.verdict == "broken":
        raise VerificationError(f"The measured latency must be within the budget of {max_latency_ms:g} ms, but is "
                                f"{manifest.measured_ms:.6g} ms: search with a lower budget, or use compile, which repeats the "
                                "search.")
