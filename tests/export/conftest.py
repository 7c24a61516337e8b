"""A small network with every kind of trouble (depthwise, channel gate, residual), and one artefact of it."""

import shutil

import numpy as np
import pytest

from hwnas.export.artifact import export_network
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.latency.table import Prediction
from hwnas.lower.weights import random_weights

SPACE = SearchSpace("small", (3, 12, 12), (
    Fixed("stem", Stem(8)),
    Decision("body", {"gate": MBConv(8, 3, 2, se_ratio=0.25), "plain": ConvBlock(8), "skip": Identity()}),
    Decision("tail", {"k3": MBConv(16, 3, 3, 2), "k5": MBConv(16, 5, 3, 2)}),
    Fixed("head", Head(5)),
))
ARCHITECTURE = SPACE.architecture({"body": "gate", "tail": "k5"})
NETWORK = SPACE.network(ARCHITECTURE)
WEIGHTS = random_weights(NETWORK, 3)
IMAGES = np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    return export_network(
        NETWORK, WEIGHTS, tmp_path_factory.mktemp("export") / "artifact", images=IMAGES, name="small",
        architecture=ARCHITECTURE, labels=[0, 1, 2, 3, 4, 0, 1, 2], classes=["a", "b", "c", "d", "e"], accuracy=0.75,
        preprocessing={"size": [12, 12], "channels": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        budget_ms=5.0, prediction=Prediction(4.0, 3.8, 4.2))


@pytest.fixture
def artifact(exported, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(exported.directory, tmp_path / "copy")
