"""Do two implementations of a network give the same numbers? Runs an ONNX model on images and compares."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import VerificationError
from hwnas.runtimes import RuntimeConfig, load_runtime

# float32 kernels sum in different orders: 1e-6 is usual, 1e-5 happens in deep networks, a real defect is far above.
RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """How close two results are.

    Attributes:
        max_abs: Largest absolute difference.
        tolerance: What it had to stay within: 1e-4 of the output's largest value, and of 1 for smaller outputs.
        top1_agreement: Share of images on which the largest output is the same one.
    """

    max_abs: float
    tolerance: float
    top1_agreement: float


def check_parity(expected: NDArray[np.float32], actual: NDArray[np.float32], what: str) -> Parity:
    """Compares two results of shape (N, K).

    Args:
        expected: The reference.
        actual: What must agree with it.
        what: Who disagrees with whom, for the error.

    Raises:
        VerificationError: Shapes differ, a number is not finite, or a difference exceeds the tolerance.
    """
    if expected.shape != actual.shape:
        raise VerificationError(f"{what} must give outputs of one shape, but gave {actual.shape} instead of {expected.shape}.")
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise VerificationError(f"{what} must give finite outputs, but gave NaN or infinity: check the weights, training may "
                                "have diverged.")
    reference, result = expected.astype(np.float64), actual.astype(np.float64)
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(np.abs(reference).max()))
    max_abs = float(np.abs(reference - result).max())
    if max_abs > tolerance:
        raise VerificationError(f"{what} must agree within {tolerance:.2e}, but differ by {max_abs:.2e}.")
    return Parity(max_abs, tolerance, float((reference.argmax(axis=1) == result.argmax(axis=1)).mean()))


def run_model(model: bytes, images: NDArray[np.float32], runtime: str = "onnxruntime-cpu") -> NDArray[np.float32]:
    """Runs images (N, C, H, W) through an ONNX model of any fixed batch size; the last batch is filled up with its last image.

    Returns:
        The first output, (N, K).

    Raises:
        InputError: The runtime refuses the model or the images.
        UnavailableError: The runtime is not installed.
    """
    executable = load_runtime(runtime).compile(model, RuntimeConfig())
    try:
        name, batch_size = executable.inputs[0].name, executable.inputs[0].shape[0]
        outputs = []
        for start in range(0, len(images), batch_size):
            batch = images[start:start + batch_size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
            outputs.append(executable.run({name: filled})[executable.outputs[0].name][:len(batch)])
    finally:
        executable.close()
    return np.concatenate(outputs)
