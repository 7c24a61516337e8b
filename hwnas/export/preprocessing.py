"""Pre-processing as a part of the model: pixel values 0 to 255 in, what the network was trained on out.

Every runtime takes float32 images, some nothing else, so that is what a model with pre-processing takes, too. Decoding and
resizing stay with whoever has the image.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwnas.export.manifest import Preprocessing

_INPUT = "images"


def normalise(pixels: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """`(pixel / 255 - mean) / std` for each channel, of images (N, C, H, W)."""
    scale, shift = _scale_and_shift(preprocessing)
    return (pixels * scale + shift).astype(np.float32)


def prepend_preprocessing(model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
    """Puts two nodes, a multiplication and an addition, before the first layers of a model whose input is `images`."""
    graph = model.graph
    scaled, normalised = "preprocessing/scale", "preprocessing/shift"
    for node in graph.node:
        node.input[:] = [normalised if name == _INPUT else name for name in node.input]
    constants = []
    for operator, source, target, values in (("Add", scaled, normalised, _scale_and_shift(preprocessing)[1]),
                                             ("Mul", _INPUT, scaled, _scale_and_shift(preprocessing)[0])):
        constants.append(numpy_helper.from_array(values, f"{target}.value"))
        graph.node.insert(0, helper.make_node(operator, [source, f"{target}.value"], [target], target))
    graph.initializer.extend(reversed(constants))


def _scale_and_shift(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean, std = (np.array(values, np.float64).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
