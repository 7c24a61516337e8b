"""Options that everything which trains shares: the numbers of the training loop."""

from typing import Annotated

import typer

Epochs = Annotated[int, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(help="Images a step, over all processes and micro-batches.")]
Accumulation = Annotated[int, typer.Option(help="Micro-batches that a step is computed in, for want of memory.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
Schedule = Annotated[str, typer.Option(help="How the learning rate falls: linear or cosine.")]
WarmupSteps = Annotated[int, typer.Option(help="Steps over which the learning rate first rises.")]
WeightDecay = Annotated[float, typer.Option(help="On weight matrices.")]
LabelSmoothing = Annotated[float, typer.Option(help="Share of the target spread over all classes.")]
GradientClip = Annotated[float, typer.Option(help="Largest norm of a gradient.")]
EmaDecay = Annotated[float | None, typer.Option(help="Of a moving average of the weights, which then is the result.")]
Precision = Annotated[str, typer.Option(help="What convolutions compute in: fp32, bf16 or fp16.")]
Ranges = Annotated[str, typer.Option(help="How far activations of few bits reach: learned, or by statistics.")]
LogSteps = Annotated[int, typer.Option(help="Steps between TensorBoard's records in OUTPUT/logs; 0 for none.")]
Seed = Annotated[int, typer.Option(help="Of data, weights, paths and augmentation.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
TorchDevice = Annotated[str, typer.Option(help="PyTorch device.")]
Flip = Annotated[bool, typer.Option("--flip", help="Augmentation: mirror half of the images.")]
