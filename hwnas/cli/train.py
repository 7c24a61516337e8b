"""Trains a supernet on a dataset; an interrupted run continues bit for bit."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import print_facts, print_json, progress_bar, say


def train_command(
    space: Annotated[str, typer.Option(help="Name, file.py:attribute or file.yaml.")],
    data: Annotated[str, typer.Option(help="glyphs, digits, imagefolder:PATH, npz:PATH, idx:PATH or cifar10:PATH.")],
    output: Annotated[Path, typer.Option(help="Folder of the supernet.")],
    method: Annotated[str, typer.Option(help="How paths are drawn: spos.")] = "spos",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.3,
    gradient_clip: Annotated[float, typer.Option(help="Largest norm of a gradient.")] = 5.0,
    schedule: Annotated[str, typer.Option(help="linear or cosine.")] = "linear",
    seed: Annotated[int, typer.Option(help="Of data, weights, paths and augmentation.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    torch_device: Annotated[str, typer.Option(help="PyTorch device.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard an earlier run in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.spaces.load import load_space

    loaded = load_space(space)
    from hwnas.data import load_dataset
    from hwnas.supernet.config import TrainConfig
    from hwnas.supernet.train import train_supernet

    config = TrainConfig(method=method, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
                         gradient_clip=gradient_clip, schedule=schedule, seed=seed, threads=threads, device=torch_device)
    say(f"Loading {data}.")
    dataset = load_dataset(data, seed=seed)
    with progress_bar("train") as bar:
        result = train_supernet(loaded, dataset, output, config, data_source={"spec": data, "seed": seed}, overwrite=overwrite,
                                progress=lambda done, total, loss, speed: bar(done, total,
                                                                              f"loss {loss:.3f}, {speed:.0f} images/s"))
    if json:
        print_json({"output": str(output), "steps": result.steps, "epoch_losses": list(result.epoch_losses),
                    "seconds": result.seconds, "images_per_second": result.images_per_second,
                    "already_trained": result.already_trained})
        return
    print_facts(f"Supernet of {loaded.name}" + (" (was trained already)" if result.already_trained else ""), [
        ("folder", output), ("steps", f"{result.steps:,} in {result.seconds:.0f} s, {result.images_per_second:,.0f} images/s"),
        ("loss", f"{result.epoch_losses[0]:.3f} in the first epoch, {result.epoch_losses[-1]:.3f} in the last")])
