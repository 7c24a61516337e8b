"""Arrays as PyTorch's tensors and back: the part of the PyTorch runtimes that knows nothing of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.runtimes.base import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


def to_torch(array: np.ndarray) -> Tensor:
    """A copy of an array. PyTorch reads all of numpy's types but the one that numpy has from ml_dtypes."""
    import torch

    copy = np.array(array, order="C")
    if copy.dtype.name == "bfloat16":
        return torch.from_numpy(copy.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def to_arrays(results: Sequence[Tensor], expected: Sequence[TensorInfo]) -> dict[str, np.ndarray]:
    """Copies of tensors on whatever device, by name.

    Raises:
        ValueError: A tensor has another shape than the model says.
    """
    import torch

    arrays = {}
    for tensor, info in zip(results, expected, strict=True):
        if tuple(tensor.shape) != info.shape:
            raise ValueError(f"its output {info.name!r} comes out as {tuple(tensor.shape)} instead of {info.shape}")
        here = tensor.cpu().contiguous()
        arrays[info.name] = np.array(here.view(torch.uint16).numpy().view(info.dtype) if here.dtype == torch.bfloat16
                                     else here.numpy())
    return arrays
