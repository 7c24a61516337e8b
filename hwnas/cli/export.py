"""Exports one network as standalone, verified artefacts, and times them on the device of a table."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli.console import ms, percent, print_facts, print_json, progress_bar, quantity, say
from hwnas.cli.options import check_budgets
from hwnas.errors import InputError, VerificationError

if TYPE_CHECKING:
    from hwnas.export.artifact import Artifact
    from hwnas.export.formats import FormatOptions
    from hwnas.export.manifest import Manifest
    from hwnas.pipeline.measure import Target


def export_command(
    output: Annotated[Path, typer.Option(help="Folder to make; of several formats, each gets a folder in it.")],
    architecture: Annotated[Path | None, typer.Option(help="Architecture file.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the supernet to inherit from, or of retrain.")] = None,
    space: Annotated[str | None, typer.Option(help="With --random: a network of this space, random weights.")] = None,
    random: Annotated[int | None, typer.Option(help="Seed of a random network.", min=0)] = None,
    network: Annotated[str | None, typer.Option(help="A reference network instead, random weights.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="onnx (the default), openvino, ncnn, mnn, executorch, "
                                                      "litert, tensorrt-rtx or tensorrt; repeatable.")] = None,
    precision: Annotated[str, typer.Option(help="What it computes in: fp32, bf16, fp16, or int8 (calibrated).")] = "fp32",
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Leave the batch size open (format onnx).")] = False,
    include_preprocessing: Annotated[bool, typer.Option(
        "--include-preprocessing", help="Put mean and standard deviation into the model, which takes pixels 0-255.")] = False,
    compute_capability: Annotated[list[str] | None, typer.Option(
        help="GPUs that tensorrt-rtx builds for, such as 8.9; repeatable. All portable ones if left out.")] = None,
    version_compatible: Annotated[bool, typer.Option(
        "--version-compatible", help="Have later versions of TensorRT load the engine, too (format tensorrt).")] = False,
    hardware_compatible: Annotated[str | None, typer.Option(
        help="Have other GPUs run it, too: same-compute-capability or ampere-plus (format tensorrt).")] = None,
    table: Annotated[Path | None, typer.Option(help="Predict, and measure in this table's ms.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the table's device is, if not here: ssh://user@host/runtime.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Budget to be certified by measurement; exit 4 if broken.")] = None,
    quantile: Annotated[float, typer.Option(help="Of latency over fresh sessions, for which the budget holds.")] = 0.5,
    confidence: Annotated[float, typer.Option(help="Of the test that certifies the budget.")] = 0.95,
    sessions: Annotated[int, typer.Option(help="Fresh sessions of a measurement without a budget.", min=1)] = 5,
    calibration_images: Annotated[int, typer.Option(
        help="Images that recalibrate batch norm, at most; int8 takes 512 of its own.", min=2)] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artefact that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    ways = ((architecture, weights), (space, random), (network,))
    if [all(one is not None for one in way) for way in ways].count(True) != 1 or (
            [any(one is not None for one in way) for way in ways].count(True) != 1):
        raise InputError("Export takes --architecture FILE with --weights SUPERNET, or --space S with --random SEED, or "
                         "--network NAME: give one of these.")
    if max_latency_ms is not None and table is None:
        raise InputError("A budget is checked in a table's milliseconds: give --table with --max-latency-ms.")
    if device is not None and table is None:
        raise InputError("A device is measured in a table's milliseconds: give --table with --device, or time the artefact with "
                         "'hwnas bench'.")
    check_budgets(max_latency_ms)
    if max_latency_ms is not None and max_latency_ms <= 0:
        raise InputError(f"A measured latency can only be within a budget above 0 ms, but the budget is {max_latency_ms:g} ms.")
    from hwnas.export.certify import CertificationPlan
    from hwnas.export.formats import FormatOptions
    from hwnas.latency.seams import cost_model
    from hwnas.latency.table import load_table
    from hwnas.pipeline.measure import measure_artifact, target_of_table

    plan = CertificationPlan(quantile, confidence)
    is_int8 = precision == "int8"  # the network's own, where the others are the runtime's
    wanted = [FormatOptions(name, "fp32" if is_int8 else precision, dynamic_batch, include_preprocessing,
                            tuple(compute_capability or ()), version_compatible, hardware_compatible)
              for name in dict.fromkeys(formats or ["onnx"])]
    for options in wanted:
        options.check()
    from hwnas.ir.architecture import load_architecture
    from hwnas.pipeline.export import random_network, reference_network, retrained_network, supernet_path
    from hwnas.spaces.load import load_space
    from hwnas.spaces.networks import load_network

    loaded = load_table(table) if table else None
    costs = cost_model(loaded) if loaded else None
    target = target_of_table(loaded, device) if loaded else None
    if target:
        _check_measurable(wanted, target)
    if architecture is not None and weights is not None:
        chosen = load_architecture(architecture)
        prediction = costs.predict(chosen) if costs else None
        if (weights / "network.json").exists():
            found = retrained_network(weights, chosen, name=output.name, prediction=prediction)
        else:
            found = supernet_path(weights, chosen, name=output.name, prediction=prediction, calibration_images=calibration_images)
    elif network is not None:
        found = reference_network(load_network(network), table=costs)
    else:
        found = random_network(load_space(str(space)), int(random or 0), costs)
    if is_int8:
        found = found.in_int8()
    if max_latency_ms is not None:
        say(f"To be shown for {max_latency_ms:g} ms: {plan}.")
    finished: list[tuple[Artifact, Manifest]] = []
    for options in wanted:
        folder = output if len(wanted) == 1 else output / options.format
        artifact = found.export(folder, options, budget_ms=max_latency_ms, batch_size=target.batch_size if target else 1,
                                overwrite=overwrite)
        manifest = artifact.manifest
        if target:
            with progress_bar("measure") as bar:
                manifest, _ = measure_artifact(artifact.directory, target, sessions,
                                               partial(bar, note=""), plan)
        finished.append((artifact, manifest))
    if json:
        documents = [manifest.model_dump(mode="json", by_alias=True) | {"artifact": str(artifact.directory)}
                     for artifact, manifest in finished]
        print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for artifact, manifest in finished:
            _print(artifact, manifest)
    for _, manifest in finished:
        if manifest.measurement is not None and manifest.measurement.verdict not in ("kept", "no budget"):
            raise VerificationError(f"The measured latency must be shown to keep the budget of {max_latency_ms:g} ms, but is "
                                    f"{manifest.measured_ms:.6g} ms, {manifest.measurement.verdict}: search with a lower budget, "
                                    "or use compile, which repeats the search.")


def _check_measurable(wanted: "Sequence[FormatOptions]", target: "Target") -> None:
    """A table's milliseconds are its own runtime's: ONNX runs in any, another format in one."""
    for options in wanted:
        runs_in = options.check().runtime, options.precision
        if options.format != "onnx" and runs_in != (target.environment.get("runtime"), target.config.precision):
            raise InputError(f"A table measures what runs as it was profiled, in {target.environment.get('runtime')} and "
                             f"{target.config.precision}, but the format {options.format} runs in {runs_in[0]} and {runs_in[1]}: "
                             "take a table of that, or leave --table out.")


def _print(artifact: "Artifact", manifest: "Manifest") -> None:
    facts: list[tuple[str, object]] = [
        ("folder", artifact.directory), ("format", f"{manifest.format}, {manifest.precision}"), ("MACs", quantity(manifest.macs)),
        ("parameters", quantity(manifest.parameters))]
    if manifest.parity_max_abs is None:
        facts.append(("numbers", manifest.parity))
    else:
        facts += [("largest difference from PyTorch", f"{manifest.parity_max_abs:.2e} (at most {manifest.parity_tolerance:.2e})"),
                  ("same class as PyTorch", percent(manifest.parity_top1_agreement or 0.0))]
    if manifest.accuracy is not None:
        facts.append(("test accuracy", percent(manifest.accuracy)))
    if manifest.parity_accuracy_difference is not None:
        facts.append(("accuracy, compared with PyTorch", f"{100 * manifest.parity_accuracy_difference:+.1f} points"))
    if manifest.predicted_ms and manifest.predicted_lower_ms is not None and manifest.predicted_upper_ms:
        facts.append(("predicted", f"{ms(manifest.predicted_ms)} ms ({ms(manifest.predicted_lower_ms)} to "
                                   f"{ms(manifest.predicted_upper_ms)})"))
    if manifest.measured_ms is not None:
        facts.append(("measured", f"{ms(manifest.measured_ms)} ms"))
    if manifest.budget_ms is not None:
        facts.append(("budget", f"{manifest.budget_ms:g} ms" + (
            f", {manifest.measurement.verdict}" if manifest.measurement is not None else "")))
    print_facts(f"Artefact of {manifest.name}", facts)
