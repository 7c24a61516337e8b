"""A space and a dataset that train in a moment, yet have dropout, identity options, and layers that several shapes reach."""

import signal

import numpy as np

from hwnas.data.dataset import Dataset, Split, build_dataset
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, SeparableConv, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.supernet.config import TrainConfig

CLASSES = 4
CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05, gradient_clip=5.0, warmup_steps=3, max_shift=1, cutout=3,
                     seed=3, threads=1)


def tiny_space(name: str = "tiny", classes: int = CLASSES) -> SearchSpace:
    return SearchSpace(name, TensorShape(3, 16, 16), (
        Fixed("stem", Stem(8)),
        Decision("width", {"narrow": MBConv(8, 3, 2, 2), "wide": MBConv(12, 5, 3, 2, se_ratio=0.25),
                           "plain": ConvBlock(12, 3, 2)}),
        Decision("depth", {"skip": Identity(), "conv": SeparableConv(12, 3), "pointwise": ConvBlock(8, 1)}),
        Decision("last", {"k3": MBConv(16, 3, 2), "k5": MBConv(16, 5, 2)}),
        Fixed("head", Head(classes, 24, dropout=0.2)),
    ))


def tiny_dataset(seed: int = 0, train: int = 160, validation: int = 80) -> Dataset:
    """Noise whose mean colour depends on the class, the classes in turn."""

    def split(count: int, stream: int) -> Split:
        rng = np.random.default_rng([seed, stream])
        labels = np.arange(count, dtype=np.int64) % CLASSES
        colours = np.random.default_rng(7).uniform(60, 190, (CLASSES, 3, 1, 1))
        noise = rng.normal(0, 40, (count, 3, 16, 16))
        return Split(np.clip(colours[labels] + noise, 0, 255).astype(np.uint8), labels)

    return build_dataset("noise", split(train, 0), split(validation, 1), split(8, 2), tuple("abcd"))


def interrupt() -> None:
    """What Python does at a Ctrl-C: calls the handler that is installed.

    Not through the kernel: after OpenVINO has run in the same process, delivering a signal there may end in a segmentation
    fault, handler or not. `test_a_real_ctrl_c_leaves_a_checkpoint` sends a real one, to a process of its own.
    """
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(signal.SIGINT, None)
