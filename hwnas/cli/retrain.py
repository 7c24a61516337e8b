"""Trains the chosen network on its own, from scratch or from inherited weights; an interrupted run continues bit for bit."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli import loop_options as loop
from hwnas.cli.console import percent, print_facts, print_json, progress_bar, say
from hwnas.errors import InputError


def retrain_command(
    architecture: Annotated[Path, typer.Option(help="Architecture file, for example best.json of a search.")],
    output: Annotated[Path, typer.Option(help="Folder of the network.")],
    weights: Annotated[Path | None, typer.Option(help="Supernet whose weights are inherited; none: from scratch.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Supernet whose largest network is learned from as well.")] = None,
    space: Annotated[str | None, typer.Option(help="The architecture's space, where no supernet says it.")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset, as for train; the supernet's when left out.")] = None,
    teacher_weight: Annotated[float, typer.Option(help="Share of the teacher in the loss.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's outputs, where above 1.")] = 1.0,
    epochs: loop.Epochs = 30,
    batch_size: loop.BatchSize = 128,
    accumulation: loop.Accumulation = 1,
    learning_rate: loop.LearningRate = 0.1,
    schedule: loop.Schedule = "cosine",
    warmup_steps: loop.WarmupSteps = 0,
    weight_decay: loop.WeightDecay = 4e-5,
    label_smoothing: loop.LabelSmoothing = 0.1,
    gradient_clip: loop.GradientClip = 5.0,
    ema_decay: loop.EmaDecay = None,
    precision: loop.Precision = "fp32",
    ranges: loop.Ranges = "learned",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    flip: loop.Flip = False,
    log_steps: loop.LogSteps = 0,
    seed: loop.Seed = 0,
    threads: loop.Threads = None,
    torch_device: loop.TorchDevice = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard an earlier run in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if space is None and weights is None and teacher is None:
        raise InputError("An architecture is a network of a space: give --space, or a supernet with --weights or --teacher.")
    from hwnas.ir.architecture import load_architecture
    from hwnas.spaces.load import load_space

    chosen = load_architecture(architecture)
    given = load_space(space) if space is not None else None
    from hwnas.pipeline.retrain import retrain
    from hwnas.pipeline.search import space_of_supernet
    from hwnas.supernet.config import LoopConfig
    from hwnas.supernet.distill import Distillation

    of_supernet = weights or teacher
    loaded = given if given is not None else space_of_supernet(of_supernet)  # type: ignore[arg-type]
    config = LoopConfig(epochs=epochs, batch_size=batch_size, accumulation=accumulation, learning_rate=learning_rate,
                        schedule=schedule, warmup_steps=warmup_steps, weight_decay=weight_decay, label_smoothing=label_smoothing,
                        gradient_clip=gradient_clip, ema_decay=ema_decay, precision=precision, ranges=ranges, compile=compile,
                        flip=flip, log_steps=log_steps, seed=seed, threads=threads, device=torch_device)
    distillation = Distillation(teacher_weight, temperature) if teacher is not None else None
    say("Loading the data.")
    with progress_bar("retrain") as bar:
        done = retrain(chosen, loaded, output, config, data=data, weights=weights, teacher=teacher, distillation=distillation,
                       overwrite=overwrite, progress=lambda step, total, loss, speed: bar(
                           step, total, f"loss {loss:.3f}, {speed:.0f} images/s"))
    result = done.result
    if json:
        print_json({"output": str(output), "steps": result.steps, "epoch_losses": list(result.epoch_losses),
                    "seconds": result.seconds, "images_per_second": result.images_per_second,
                    "already_trained": result.already_trained, "test_accuracy": done.accuracy})
        return
    print_facts(f"Network of {loaded.name}" + (" (was trained already)" if result.already_trained else ""), [
        ("folder", output), ("steps", f"{result.steps:,} in {result.seconds:.0f} s, {result.images_per_second:,.0f} images/s"),
        ("loss", f"{result.epoch_losses[0]:.3f} in the first epoch, {result.epoch_losses[-1]:.3f} in the last"),
        ("test accuracy", percent(done.accuracy))])
