"""Tasks for the loop's own tests: a network without batch norm, and one whose mixture an outer update moves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.supernet.config import LoopConfig
from hwnas.supernet.loop import OuterUpdate, ProgressCallback, Task
from hwnas.supernet.precision import LossScale
from tests.supernet.samples import CLASSES

CONFIG = LoopConfig(epochs=2, batch_size=16, learning_rate=0.05, warmup_steps=2, max_shift=1, seed=5, threads=1)
EVERYTHING = LoopConfig(epochs=3, batch_size=16, accumulation=2, learning_rate=0.05, weight_decay=0.01, gradient_clip=0.5,
                        ema_decay=0.6, precision="bf16", max_shift=1, flip=True, cutout=3, seed=5, threads=1, log_steps=1)


def plain_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, CLASSES))


def plain_task(model: nn.Module) -> Task:
    scale = LossScale()

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(images), labels)
        scale.backward(loss)
        return loss.detach()

    return Task(model, backward, lambda step: "a plain network", loss_scale=scale)


class Mixed(nn.Module):
    """Two convolutions, mixed with the softmax of two logits; batch norm and dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.small, self.large = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 5, padding=2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(6, CLASSES))
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, images: Tensor) -> Tensor:
        x, shares = self.stem(images), self.logits.softmax(0)
        return self.head(shares[0] * self.small(x) + shares[1] * self.large(x))


def mixed_task(model: Mixed, share: float = 0.4, first_epoch: int = 1) -> Task:
    inner = plain_task(model)
    optimizer = torch.optim.Adam([model.logits], lr=0.05, amsgrad=True)

    def update(step, weight_batch, architecture_batch, sgd):
        loss = functional.cross_entropy(model(architecture_batch[0]), architecture_batch[1])
        model.logits.grad, = torch.autograd.grad(loss, [model.logits])
        optimizer.step()
        return {"architecture_loss": float(loss.detach())}

    return Task(model, inner.backward, inner.describe, OuterUpdate(optimizer, update, share, first_epoch))


def child_environment() -> dict[str, str]:
    """For a process of its own that imports these tests."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def wait_at(step: int) -> ProgressCallback:
    """Tells of every step, and in one waits until the test kills this process or closes its standard input."""
    def progress(done: int, *_: float) -> None:
        print(done, flush=True)
        if done == step:
            sys.stdin.read()

    return progress


def kill_at(step: int, script: str, folder: Path) -> None:
    """Kills a script that trains in a folder at the end of a step, before its checkpoint.

    Args:
        step: The script's second argument; for `wait_at`.
        script: Python.
        folder: Its first argument.
    """
    with subprocess.Popen([sys.executable, "-c", script, str(folder), str(step)], env=child_environment(), text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert f"{step}\n" in child.stdout
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL
