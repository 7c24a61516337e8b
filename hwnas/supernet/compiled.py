"""`torch.compile` for training a single network. A supernet's step has another path, so it would be compiled in each."""

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn

from hwnas.errors import InputError, UnavailableError
from hwnas.lower.torch import NetworkModule


def compile_network(model: nn.Module, device: torch.device) -> None:
    """Has a network compiled when it is first called; its parameters and their names stay.

    Raises:
        InputError: It is not a single network.
        UnavailableError: What PyTorch compiles with is missing here.
    """
    if not isinstance(model, NetworkModule):
        raise InputError("compile is for training one network, but a supernet computes another path in each step: leave it off.")
    if device.type == "cpu" and shutil.which(os.environ.get("CXX") or "g++") is None:
        raise UnavailableError("compile needs a C++ compiler on the CPU, but there is none on the PATH: install g++, set CXX, or "
                               "leave compile off.")
    if device.type == "cuda" and find_spec("triton") is None:
        raise UnavailableError("compile needs Triton on a GPU, which is not installed: run pip install triton, or leave compile "
                               "off.")
    model.compile()
