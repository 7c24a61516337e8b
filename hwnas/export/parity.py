"""Do two implementations of a network give the same numbers? Runs a program on images and compares."""

from contextlib import closing
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import VerificationError
from hwnas.ir.layers import Quantize, Round
from hwnas.ir.network import Network
from hwnas.runtimes import Program, Runtime, RuntimeConfig, load_runtime

# A share of the output's largest value. float32 kernels sum in different orders and take shortcuts (Winograd's convolution loses
# some digits): 1e-6 is usual, 1e-5 happens in deep networks, a real defect is far above 1e-4. In the halves the rounding of each
# tensor dominates: whole networks depart by one or two unit roundoffs (2^-11 and 2^-8), and 16 of them leave room for deep ones.
# Quantisers round as well, to half of one of 256 steps: what lies between two steps goes either way on another machine.
RELATIVE_TOLERANCE = {"fp32": 1e-4, "fp16": 16 * 2.0**-11, "int8": 16 * 2.0**-9, "bf16": 16 * 2.0**-8}
SMALLEST_SCALE = 1e-3  # of outputs: smaller ones are compared as if they were of this size
_ACCURACY_TOLERANCE = 0.01


@dataclass(frozen=True)
class Parity:
    """How close two results are.

    Attributes:
        max_abs: Largest absolute difference.
        tolerance: What it had to stay within: a share of the output's largest value that depends on the precision.
        top1_agreement: Share of images on which the largest output is the same one.
    """

    max_abs: float
    tolerance: float
    top1_agreement: float


def check_parity(expected: NDArray[np.float32], actual: NDArray[np.float32], what: str, precision: str = "fp32") -> Parity:
    """Compares two results of shape (N, K), or feature maps (N, K, H, W).

    Args:
        expected: The reference, computed in fp32.
        actual: What must agree with it.
        what: Who disagrees with whom, for the error.
        precision: What `actual` was computed in, at its coarsest.

    Raises:
        VerificationError: Shapes differ, a number is not finite, or a difference exceeds the tolerance.
    """
    if expected.shape != actual.shape:
        raise VerificationError(f"{what} must give outputs of one shape, but gave {actual.shape} instead of {expected.shape}.")
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise VerificationError(f"{what} must give finite outputs, but gave NaN or infinity: check the weights, training may "
                                "have diverged.")
    reference, result = expected.astype(np.float64), actual.astype(np.float64)
    tolerance = RELATIVE_TOLERANCE[precision] * max(SMALLEST_SCALE, float(np.abs(reference).max()))
    max_abs = float(np.abs(reference - result).max())
    if max_abs > tolerance:
        raise VerificationError(f"{what} must agree within {tolerance:.2e}, but differ by {max_abs:.2e}.")
    return Parity(max_abs, tolerance, float((reference.argmax(axis=1) == result.argmax(axis=1)).mean()))


def check_accuracy(expected: NDArray[np.float32], actual: NDArray[np.float32], labels: NDArray[np.integer], what: str) -> float:
    """By how much top-1 accuracy differs on the same images: below 0 where it is lost.

    A loss of one point is allowed, and two standard errors of the difference, since few images tell no more than that.

    Args:
        expected: The reference's outputs, (N, K).
        actual: Those of what is compared with it.
        labels: (N,).
        what: Who disagrees with whom, for the error.

    Raises:
        VerificationError: More is lost.
    """
    change = (actual.argmax(axis=1) == labels).astype(int) - (expected.argmax(axis=1) == labels)
    difference = float(change.mean())
    limit = _ACCURACY_TOLERANCE + 2 * sqrt(np.abs(change).sum()) / len(labels)
    if -difference > limit:
        raise VerificationError(f"{what} must have the same accuracy within {100 * limit:.1f} points, but "
                                f"{-100 * difference:.1f} are lost: choose another precision.")
    return difference


def coarsest_rounding(network: Network, precision: str) -> str:
    """The key of `RELATIVE_TOLERANCE` for a network: its runtime's precision, or coarser rounding within the network itself."""
    within = ["int8" if isinstance(node.layer, Quantize) else node.layer.format for node in network.nodes
              if isinstance(node.layer, Quantize | Round)]
    return max([precision, *within], key=lambda one: RELATIVE_TOLERANCE[one])


def run_program(runtime: Runtime, config: RuntimeConfig, program: Program, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Runs images (N, C, H, W) through a program of any fixed batch size; the last batch is filled up with its last image.

    Returns:
        The first output, (N, K).

    Raises:
        InputError: The runtime refuses the program or the images.
        UnavailableError: This machine cannot execute the precision.
    """
    with closing(runtime.load(program, config)) as executable:
        name, batch_size = executable.inputs[0].name, executable.inputs[0].shape[0]
        outputs = []
        for start in range(0, len(images), batch_size):
            batch = images[start:start + batch_size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
            outputs.append(executable.run({name: filled})[executable.outputs[0].name][:len(batch)])
    return np.concatenate(outputs)


def run_model(model: bytes, images: NDArray[np.float32], runtime: str = "onnxruntime-cpu") -> NDArray[np.float32]:
    """Runs images through an ONNX model of fixed batch size, as `run_program` does.

    Raises:
        InputError: The runtime refuses the model or the images.
        UnavailableError: The runtime is not installed.
    """
    loaded = load_runtime(runtime)
    return run_program(loaded, RuntimeConfig(), loaded.prepare(model, RuntimeConfig()), images)
