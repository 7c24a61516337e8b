"""The supernet: training it, scoring its networks, and taking them out. Needs torch."""

from hwnas.supernet.batchnorm import recalibrate_batch_norm
from hwnas.supernet.build import build_supernet
from hwnas.supernet.config import LoopConfig, TrainConfig
from hwnas.supernet.evaluate import SupernetEvaluator, evaluate_module, inherited_weights
from hwnas.supernet.retrain import load_network_weights, train_network
from hwnas.supernet.run import TrainResult, require_same_data
from hwnas.supernet.supernet import Supernet, extract, extract_weights
from hwnas.supernet.train import load_supernet, train_supernet

__all__ = [
    "LoopConfig",
    "Supernet",
    "SupernetEvaluator",
    "TrainConfig",
    "TrainResult",
    "build_supernet",
    "evaluate_module",
    "extract",
    "extract_weights",
    "inherited_weights",
    "load_network_weights",
    "load_supernet",
    "recalibrate_batch_norm",
    "require_same_data",
    "train_network",
    "train_supernet",
]
