"""Which layer departs first? For a network that is being exported, and for an artefact on another machine.

While a network is exported there are its layers and PyTorch, so any format is searched by halves: the network is cut off after a
layer, made into the format and compared. An artefact has neither; those of ONNX keep a few numbers of every layer, with which
another machine's are compared in order.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwnas.errors import InputError, VerificationError
from hwnas.export.onnx_file import fix_batch, input_shapes
from hwnas.export.parity import RELATIVE_TOLERANCE, SMALLEST_SCALE
from hwnas.ir.network import INPUT, Network
from hwnas.runtimes import RuntimeConfig, load_runtime

_SAMPLES = 16  # of a layer's values: a defect is hardly ever in so few places that none of these meets it


@dataclass(frozen=True)
class Layers:
    """A few numbers of every layer of an ONNX model on one image.

    Attributes:
        names: The tensors, in the model's order.
        samples: (L, 16), at even distances; float32.
        scales: (L,), each one's largest absolute value.
    """

    names: tuple[str, ...]
    samples: NDArray[np.float32]
    scales: NDArray[np.float32]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As they are kept with the golden outputs."""
        return {"layers": np.array(self.names), "layer_samples": self.samples, "layer_scales": self.scales}

    @classmethod
    def of(cls, golden: Mapping[str, NDArray[Any]]) -> "Layers":
        """Reads them back.

        Raises:
            InputError: There are none, or they are malformed.
        """
        try:
            names, samples, scales = (golden[key] for key in ("layers", "layer_samples", "layer_scales"))
        except KeyError:
            raise InputError("Layers are compared with those that the export kept, but this artefact has none: export the same "
                             "network as onnx.") from None
        if (names.ndim != 1 or names.dtype.kind != "U" or samples.dtype != np.float32 or scales.dtype != np.float32
                or samples.shape != (len(names), _SAMPLES) or scales.shape != (len(names),)):
            raise VerificationError("What the artefact keeps of its layers must be their names, samples and scales, but is "
                                    "malformed: export it again.")
        return cls(tuple(names.tolist()), samples, scales)


@dataclass(frozen=True)
class Departure:
    """The first layer that differs: by how much, and what was allowed."""

    layer: str
    max_abs: float
    tolerance: float


def sample_layers(model: onnx.ModelProto, image: NDArray[np.float32]) -> Layers:
    """Runs a model in ONNX Runtime with the result of every node as an output.

    Args:
        model: With all weights inside.
        image: (1, C, H, W); fills the whole batch.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    batch_size = input_shapes(model)[0][0]
    model = fix_batch(model, batch_size or 1)
    last = {value.name for value in model.graph.output}
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    names = [name for node in model.graph.node for name in node.output if name in last or name in known]
    model.graph.output.extend(known[name] for name in names if name not in last)
    with closing(load_runtime("onnxruntime-cpu").compile(model.SerializeToString(), RuntimeConfig())) as executable:
        results = executable.run({"images": np.repeat(image, batch_size or 1, axis=0)})
    floats = [name for name in names if results[name].dtype == np.float32]
    return Layers(tuple(floats), np.array([_samples(results[name]) for name in floats], np.float32),
                  np.array([np.abs(results[name][0]).max() for name in floats], np.float32))


def first_different_layer(expected: Layers, actual: Layers, rounding: str = "fp32") -> Departure | None:
    """The first layer whose numbers differ; None when all agree.

    Args:
        expected: What the layers gave when the model was exported.
        actual: What they give here.
        rounding: Key of their tolerance in `RELATIVE_TOLERANCE`.

    Raises:
        VerificationError: These are not the same layers.
    """
    if expected.names != actual.names:
        different = next((name for name in actual.names if name not in expected.names), "none")
        raise VerificationError(f"The model must have the layers that it was exported with, but differs in them (new: "
                                f"{different}): export it again.")
    for name, wanted, found, scale in zip(expected.names, expected.samples, actual.samples, expected.scales, strict=True):
        difference = float(np.abs(wanted.astype(np.float64) - found).max())
        tolerance = RELATIVE_TOLERANCE[rounding] * max(SMALLEST_SCALE, float(scale))
        if not difference <= tolerance:  # NaN too
            return Departure(name, difference, tolerance)
    return None


def first_departure(network: Network, departs: Callable[[Network], bool]) -> str:
    """The layer of a network that departs though all that it reads agrees; found by halves.

    Args:
        network: Departs as a whole.
        departs: Whether a network that ends earlier does, too.
    """
    nodes = {node.name: node for node in network.nodes}

    @cache
    def node_departs(name: str) -> bool:
        return name != INPUT and departs(replace(network, output=name))

    name = network.output
    while True:
        chain = _up_to(network, name)
        agrees, differs = -1, len(chain) - 1
        while differs - agrees > 1:
            middle = (agrees + differs) // 2
            if node_departs(chain[middle]):
                differs = middle
            else:
                agrees = middle
        found = nodes[chain[differs]]
        earlier = [source for source in found.inputs if node_departs(source)]  # on another branch than the one before it
        if not earlier:
            return found.name
        name = earlier[0]


def _up_to(network: Network, name: str) -> list[str]:
    """A node and all that it depends on, in the network's order."""
    needed = {name}
    for node in reversed(network.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return [node.name for node in network.nodes if node.name in needed]


def _samples(tensor: NDArray[Any]) -> NDArray[np.float32]:
    flat = tensor[0].reshape(-1)
    return flat[np.linspace(0, flat.size - 1, _SAMPLES).astype(int)]
