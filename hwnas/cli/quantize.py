"""Gives a trained network int8 where it pays on a device: measured, scored, certified. Continues where it was interrupted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli.console import ms, ms_range, percent, print_json, print_table, progress_bar, say, stdout
from hwnas.cli.options import check_budgets, processors

if TYPE_CHECKING:
    from hwnas.pipeline.paired_accuracy import AccuracyDifference
    from hwnas.pipeline.quantize import QuantizeSummary


def quantize_command(
    weights: Annotated[Path, typer.Option(help="Folder of retrain; or of the supernet to inherit from, with --architecture.")],
    device: Annotated[str, typer.Option(help="Target; see 'hwnas devices'. Over ssh: ssh://user@host/onnxruntime-cpu.")],
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.")],
    architecture: Annotated[Path | None, typer.Option(help="Architecture file: which path of the supernet.")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset, as for train; the network's own when left out.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Budget, certified by measurement. Left out: the fastest that is "
                                                              "not known to be less accurate than fp32.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    precision: Annotated[str, typer.Option(help="What the runtime computes in where it is not int8.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images a call.", min=1, max=4096)] = 1,
    cpus: Annotated[str | None, typer.Option(help="Processors to run on, \"2,3\"; by default the last ones.")] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop profiling after this long.", min=0.0)] = 30.0,
    calibration_images: Annotated[int, typer.Option(help="Training images that int8 is calibrated on, at most.", min=16)] = 512,
    validation_images: Annotated[int | None, typer.Option(help="Images that score a choice; all when left out.", min=1)] = None,
    quantile: Annotated[float, typer.Option(help="Of latency over fresh sessions, for which the budget holds.")] = 0.5,
    confidence: Annotated[float, typer.Option(help="Of the test that certifies the budget.")] = 0.95,
    sessions: Annotated[int, typer.Option(help="Fresh sessions of a measurement without a budget.", min=1)] = 5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard what another network left in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    check_budgets(max_latency_ms)
    from dataclasses import asdict, replace

    from hwnas.export.certify import CertificationPlan
    from hwnas.ir.architecture import load_architecture
    from hwnas.pipeline.measure import load_target

    plan = CertificationPlan(quantile, confidence)
    chosen = load_architecture(architecture) if architecture else None
    target = load_target(device, threads, precision, batch_size, processors(cpus))
    from hwnas.pipeline.quantize import MOST_ROUNDS, QuantizeSettings, quantize_network, trained_network

    settings = QuantizeSettings(max_latency_ms, calibration_images, validation_images, max_minutes, sessions,
                                replace(plan, rounds=MOST_ROUNDS))
    say("Loading network and data.")
    found = trained_network(weights, chosen, data=data, name=output.name)
    summary = quantize_network(found, target, output, settings, progress_bar, overwrite=overwrite, say=say)
    if json:
        print_json(asdict(summary))
    else:
        _print(summary, device)


def _print(summary: "QuantizeSummary", device: str) -> None:
    chosen = summary.networks[0]
    print_table(f"The front on {device}; precisions reach {ms_range(*summary.feasible_range_ms)}",
                ("", "predicted ms", "95 % interval", "int8 layers", "validation", "minus fp32", "p", "divergence"),
                [("*" if one.choices == chosen.choices else "", ms(one.predicted_ms),
                  f"{ms(one.predicted_lower_ms)} to {ms(one.predicted_upper_ms)}", f"{one.int8_layers} of {summary.layers}",
                  f"{100 * one.validation_accuracy:.2f} %", _points(one.against_fp32), f"{one.against_fp32.p_value:.3f}",
                  f"{one.divergence:.1e}") for one in summary.front])
    print_table("\nMeasured, and on test images that nothing was chosen by",
                ("network", "int8 layers", "predicted ms", "measured ms", "test accuracy", "minus fp32", "95 % interval"),
                [(row.name, f"{row.int8_layers} of {summary.layers}", ms(row.predicted_ms), ms(row.measured_ms),
                  f"{100 * row.accuracy:.2f} %", _points(row.against_fp32),
                  f"{100 * row.against_fp32.lower:+.2f} to {100 * row.against_fp32.upper:+.2f} %") for row in summary.networks])
    if summary.budget_ms is None:
        notes = ["* The fastest on the front that is not known to be less accurate than fp32 on the validation images (McNemar's "
                 "exact test, p < 0.05)."]
    else:
        last = summary.history[-1]
        notes = [f"* The nearest to the float network within the budget. The promise is {summary.verdict}: "
                 f"p{100 * summary.quantile:g} within {summary.budget_ms:g} ms at {100 * summary.confidence:g} % confidence, "
                 f"{last.above} of {last.observations} fresh sessions above it; measured {ms(last.measured_ms)} ms, "
                 f"{percent(last.budget_use)} of it, after {last.number} round(s)."]
        if not summary.promised:
            notes.append("The budget is so near the fastest network that only the prediction, not its upper end, is within it.")
    stdout.print("\n" + "\n".join([*notes, f"Artefact: {summary.artifact}"]), soft_wrap=True)


def _points(difference: "AccuracyDifference") -> str:
    return f"{100 * difference.difference:+.2f} %"
