"""Times any ONNX file or artefact on a device, paired with the anchor network, over fresh sessions."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import ms, print_facts, print_json, progress_bar
from hwnas.errors import InputError


def bench_command(
    path: Annotated[Path, typer.Argument(help="ONNX file, or folder of an artefact (which is verified first).")],
    device: Annotated[str | None, typer.Option(help="Target; see 'hwnas devices'. Over ssh: ssh://user@host/runtime. Left out, "
                                                    "an artefact's own runtime, here.")] = None,
    table: Annotated[Path | None, typer.Option(help="Take settings and device from this table, and answer in its ms.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime; 1, or the table's, when left out.")] = None,
    precision: Annotated[str | None, typer.Option(help="What the runtime computes in; fp32, or the table's.")] = None,
    sessions: Annotated[int, typer.Option(help="Fresh sessions.", min=1, max=1000)] = 5,
    trust_engine: Annotated[bool, typer.Option("--trust-engine", help="Load a model whose hash does not match.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if device is None and table is None and not path.is_dir():
        raise InputError("Bench of a file takes --device D, or --table T, or both where the table's device is not here: give one "
                         "of them.")
    if table is not None and (threads, precision) != (None, None):
        raise InputError("A table brings its own threads and precision: leave --threads and --precision out with --table.")
    from hwnas.latency.table import load_table
    from hwnas.pipeline.measure import artifact_target, model_target, read_model, target_of_table

    threads = 1 if threads is None else threads
    if table is not None:
        target = target_of_table(load_table(table), device)
    elif path.is_dir():
        target = artifact_target(path, device, threads, precision)
    else:
        target = model_target(path, str(device), threads, precision or "fp32")
    model = read_model(path, target, trust_engine)
    with progress_bar("bench") as bar:
        measurement = target.measure(model, sessions, lambda done, total: bar(done, total, ""))
    figures = target.milliseconds(measurement)
    if json:
        print_json({"path": str(path), "device": target.device, **figures, "anchor_ms": measurement.anchor_ms,
                    "sessions": sessions, "environment": target.environment})
        return
    whose = f", as {table} counts them" if table else ""
    print_facts(f"{path} on {target.device}", [
        ("latency", f"{ms(figures['latency_ms'])} ms{whose}"),
        ("95 % interval", f"{ms(figures['lower_ms'])} to {ms(figures['upper_ms'])} ms, over {sessions} fresh session(s)"),
        ("ratio to the anchor", f"{figures['ratio']:.4f} ({figures['ratio_lower']:.4f} to {figures['ratio_upper']:.4f})"),
        ("anchor now", f"{ms(measurement.anchor_ms)} ms")])
