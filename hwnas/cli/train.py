"""Trains a supernet on a dataset; an interrupted run continues bit for bit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli import loop_options as loop
from hwnas.cli.console import print_facts, print_json, progress_bar, say
from hwnas.cli.options import check_budgets
from hwnas.cli.refused import warn_of_refused
from hwnas.errors import InputError

if TYPE_CHECKING:
    from hwnas.ir.steps import Space
    from hwnas.supernet.methods import Budget

LATENCY_LOSSES = ("target", "additive", "multiplicative")


def train_command(
    space: Annotated[str, typer.Option(help="Name, file.py:attribute or file.yaml.")],
    data: Annotated[str, typer.Option(help="glyphs, digits, imagefolder:PATH, npz:PATH, idx:PATH or cifar10:PATH.")],
    output: Annotated[Path, typer.Option(help="Folder of the supernet.")],
    method: Annotated[str, typer.Option(help="spos, fairnas, sandwich, one-shot, darts, fbnet or proxyless.")] = "spos",
    sharing: Annotated[str, typer.Option(help="Which options of a layer share weights: options (none does), channels (those that "
                                         "differ in width), elastic (in kernel as well).")] = "options",
    table: Annotated[Path | None, typer.Option(help="Latency table of the budget.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(
        help="Expected latency that darts, fbnet and proxyless aim at; spos draws only paths within it.")] = None,
    max_macs: Annotated[int | None, typer.Option(help="The same in multiply-accumulates.")] = None,
    max_bitops: Annotated[int | None, typer.Option(help="The same in bit operations: multiply-accumulates times bits of weights "
                                                   "times bits of activations, full precision as 32 times 32.")] = None,
    latency_loss: Annotated[str, typer.Option(help="How darts, fbnet and proxyless weigh latency: target (reaches the budget), "
                                              "additive or multiplicative (the papers').")] = "target",
    latency_weight: Annotated[float | None, typer.Option(help="Of the additive loss (lambda) or the multiplicative one (beta).")
                              ] = None,
    architecture_learning_rate: Annotated[float | None, typer.Option(help="Of the architecture parameters.")] = None,
    second_order: Annotated[bool, typer.Option("--second-order", help="darts: through a step of the weights.")] = False,
    random_paths: Annotated[int | None, typer.Option(help="sandwich: networks between the largest and the smallest.")] = None,
    dropout_rate: Annotated[float | None, typer.Option(help="one-shot: path dropout at the end of the run.")] = None,
    ghost_batch_size: Annotated[int | None, typer.Option(help="one-shot: images that share their paths.")] = None,
    epochs: loop.Epochs = 30,
    batch_size: loop.BatchSize = 128,
    accumulation: loop.Accumulation = 1,
    learning_rate: loop.LearningRate = 0.3,
    schedule: loop.Schedule = "linear",
    warmup_steps: loop.WarmupSteps = 0,
    weight_decay: loop.WeightDecay = 4e-5,
    label_smoothing: loop.LabelSmoothing = 0.1,
    gradient_clip: loop.GradientClip = 5.0,
    ema_decay: loop.EmaDecay = None,
    precision: loop.Precision = "fp32",
    ranges: loop.Ranges = "learned",
    flip: loop.Flip = False,
    log_steps: loop.LogSteps = 0,
    seed: loop.Seed = 0,
    threads: loop.Threads = None,
    torch_device: loop.TorchDevice = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard an earlier run in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.spaces.load import load_space

    loaded = load_space(space)
    from hwnas.data import load_dataset
    from hwnas.supernet.config import TrainConfig
    from hwnas.supernet.methods import make_settings
    from hwnas.supernet.train import ARCHITECTURE_FILE, train_supernet

    config = TrainConfig(method=method, sharing=sharing, epochs=epochs, batch_size=batch_size, accumulation=accumulation,
                         learning_rate=learning_rate, schedule=schedule, warmup_steps=warmup_steps, weight_decay=weight_decay,
                         label_smoothing=label_smoothing, gradient_clip=gradient_clip, ema_decay=ema_decay, precision=precision,
                         ranges=ranges, flip=flip, log_steps=log_steps, seed=seed, threads=threads, device=torch_device)
    given = {"random_paths": random_paths, "final_dropout_rate": dropout_rate, "ghost_batch_size": ghost_batch_size,
             "learning_rate": architecture_learning_rate, "unrolled": second_order or None,
             "latency": _latency_loss(latency_loss, latency_weight)}
    settings = make_settings(method, {name: value for name, value in given.items() if value is not None})
    budget = _budget(loaded, method, table, max_latency_ms, max_macs, max_bitops)
    say(f"Loading {data}.")
    dataset = load_dataset(data, seed=seed)
    with progress_bar("train") as bar:
        result = train_supernet(loaded, dataset, output, config, settings=settings, budget=budget,
                                data_source={"spec": data, "seed": seed}, overwrite=overwrite,
                                progress=lambda done, total, loss, speed: bar(done, total,
                                                                              f"loss {loss:.3f}, {speed:.0f} images/s"))
    parameters = output / ARCHITECTURE_FILE
    if json:
        print_json({"output": str(output), "steps": result.steps, "epoch_losses": list(result.epoch_losses),
                    "seconds": result.seconds, "images_per_second": result.images_per_second,
                    "already_trained": result.already_trained,
                    "architecture_parameters": str(parameters) if parameters.exists() else None})
        return
    facts: list[tuple[str, object]] = [
        ("folder", output), ("steps", f"{result.steps:,} in {result.seconds:.0f} s, {result.images_per_second:,.0f} images/s"),
        ("loss", f"{result.epoch_losses[0]:.3f} in the first epoch, {result.epoch_losses[-1]:.3f} in the last")]
    if parameters.exists():
        facts += [("architecture parameters", parameters), ("next", "hwnas search --method dnas")]
    print_facts(f"Supernet of {loaded.name}" + (" (was trained already)" if result.already_trained else ""), facts)


def _latency_loss(name: str, weight: float | None) -> Any:
    """The loss, or None for the method's default; methods that have none refuse others by name."""
    from hwnas.supernet.latency_loss import Additive, Multiplicative

    if name not in LATENCY_LOSSES:
        raise InputError(f"Latency is weighed in one of the ways {', '.join(LATENCY_LOSSES)}, but --latency-loss is {name!r}.")
    if name == "target":
        if weight is not None:
            raise InputError("A target needs no weight, for it is reached whatever it costs: leave --latency-weight out, or "
                             "choose --latency-loss additive or multiplicative.")
        return None
    if name == "additive":
        return Additive() if weight is None else Additive(weight=weight)
    return Multiplicative() if weight is None else Multiplicative(beta=weight)


def _budget(space: "Space", method: str, table: Path | None, max_latency_ms: float | None, max_macs: int | None,
            max_bitops: int | None) -> "Budget | None":
    if (table is None) != (max_latency_ms is None) or [table, max_macs, max_bitops].count(None) < 2:
        raise InputError("Training takes one budget or none: --table with --max-latency-ms, or --max-macs, or --max-bitops.")
    check_budgets(max_latency_ms)
    from hwnas.ir.costs import BitOpsCost, MacsCost
    from hwnas.latency.table import load_table
    from hwnas.pipeline.budget import latency_budget
    from hwnas.supernet.methods import Budget

    if max_macs is not None:
        return Budget(MacsCost(), float(max_macs))
    if max_bitops is not None:
        return Budget(BitOpsCost(count_full_precision=True), float(max_bitops))
    if table is None or max_latency_ms is None:
        return None
    loaded = load_table(table)
    warn_of_refused(loaded)
    if loaded.search_space.hash != space.hash:
        raise InputError(f"The table {table} must be of the space {space.name!r}, but is of {loaded.space!r} with another "
                         "content: profile the space.")
    return latency_budget(loaded, max_latency_ms, method, say)
