"""What weights become in a format of few bits: a function of the weights alone, in numpy, as every lowering must compute it."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper


def quantize_weight(weight: NDArray[np.floating], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Splits a convolution's weights into whole numbers and one step per output channel.

    Args:
        weight: (out_channels, ...).
        bits: 1 to 8.

    Returns:
        Whole numbers within 2^(bits-1) - 1 either way (-1 and 1 for one bit), and the positive steps, (out_channels,).
    """
    rows = np.asarray(weight, np.float32).reshape(len(weight), -1)
    if bits == 1:
        return np.where(rows < 0, -1, 1).astype(np.int8).reshape(weight.shape), np.abs(rows).mean(1)
    step = np.abs(rows).max(1) / np.float32((1 << bits - 1) - 1)
    integers = np.rint(rows / np.where(step > 0, step, 1)[:, None])
    return integers.astype(np.int8).reshape(weight.shape), step


def round_to_half(array: NDArray[np.floating], format: str) -> NDArray[np.float32]:
    """The nearest numbers of `fp16` or `bf16`, half to even, as float32."""
    kind = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[format]
    with np.errstate(over="ignore"):  # beyond the largest number lies infinity, there as everywhere
        return np.asarray(array, np.float32).astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
