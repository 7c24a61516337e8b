"""An ONNX model as a PyTorch module, for the runtimes that execute PyTorch.

The module's forward is a plain loop over steps that are settled when it is built, so that `torch.export` and tracers see
straight-line code. What the graph knows beforehand (shapes, axes, bounds) becomes Python values, weights become
parameters, and what follows from constants alone is computed once.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.runtimes.onnx_model import OnnxModel
from hwnas.runtimes.torch_operators import ONNX_DOMAINS, Function, NodeReader, Translations, to_dtype, to_tensor, translate

_OLDEST_OPSET = 13  # since when axes and sizes are inputs


@dataclass(frozen=True)
class Step:
    """One operator: a function of the tensors named `inputs` that makes those named `outputs`.

    Attributes:
        finished: Tensors that nothing reads after this step.
    """

    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    finished: tuple[str, ...] = ()

    def run(self, values: dict[str, Any]) -> None:
        """Adds its results to the tensors by name, and drops what is finished."""
        result = self.function(*[values[name] for name in self.inputs])
        if len(self.outputs) == 1:
            values[self.outputs[0]] = result
        else:
            values.update(zip(self.outputs, result, strict=True))
        for name in self.finished:  # its memory is the next step's, still in the cache
            del values[name]


class TorchModel(nn.Module):
    """Straight-line code over named tensors.

    Args:
        steps: In an order in which every tensor is made before it is read.
        constants: Weights by name; float32 becomes what is computed in.
        inputs: Names of the arguments of `forward`, in order.
        outputs: Names and dtypes of its results, in order.
        dtype: What is computed in: floating-point inputs are converted to it, and results from it.
    """

    def __init__(self, steps: Sequence[Step], constants: Mapping[str, Tensor], inputs: Sequence[str],
                 outputs: Mapping[str, torch.dtype], dtype: torch.dtype) -> None:
        super().__init__()
        read = {name for step in steps for name in step.inputs} | set(outputs)
        self._weights = {name: f"weight{index}" for index, name in enumerate(sorted(read & set(constants)))}
        for name, attribute in self._weights.items():  # a parameter's name may not contain a dot
            constant = constants[name]
            value = _converted(constant, dtype) if constant.dtype == torch.float32 else constant
            self.register_parameter(attribute, nn.Parameter(value, requires_grad=False))
        self._steps = tuple(steps)
        self._inputs = tuple(inputs)
        self._outputs = dict(outputs)
        self._dtype = dtype

    def channels_last(self) -> "TorchModel":
        """Lays out the weights of convolutions for (N, H, W, C) in memory, which their results then have too.

        By `to`: `contiguous` leaves kernels of 1x1 and depthwise ones as they are, which have both layouts at once, and their
        convolutions would go on in whatever layout arrives.
        """
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        parameters = self._parameters  # `getattr` of a module takes as long as a small layer's dispatch
        values: dict[str, Any] = {name: parameters[attribute] for name, attribute in self._weights.items()}
        for name, value in zip(self._inputs, inputs, strict=True):
            values[name] = _converted(value, self._dtype) if value.is_floating_point() else value
        for step in self._steps:
            step.run(values)
        return tuple(_converted(values[name], dtype) for name, dtype in self._outputs.items())


def build_torch_model(model: OnnxModel, dtype: torch.dtype = torch.float32, *, overrides: Translations = MappingProxyType({}),
                      computed: Container[str] = ()) -> TorchModel:
    """Translates a model.

    Args:
        model: As `read_onnx` gives it.
        dtype: What is computed in wherever the model says float32.
        overrides: Translations of operators instead of the usual ones.
        computed: Tensors that every inference computes, although they follow from constants.

    Returns:
        A module from the model's inputs, in order, to the tuple of its outputs, both of the dtypes that the model says.

    Raises:
        InputError: The model is too old or inconsistent, or has an operator, or a form of one, that is not covered.
    """
    proto = onnx.load_from_string(model.content)
    _check_opset(proto)
    constants = {tensor.name: to_tensor(tensor) for tensor in proto.graph.initializer}
    inputs = [tensor.name for tensor in model.inputs]
    known = {*inputs, *constants}
    steps = []
    for node in proto.graph.node:
        step = _translate(NodeReader(node, constants, dtype), known, overrides)
        if all(name in constants for name in step.inputs) and not any(name in computed for name in step.outputs):
            step.run(constants)
        else:
            steps.append(step)
        known.update(step.outputs)
    outputs = {tensor.name: to_dtype(tensor.dtype) for tensor in model.outputs}
    for name in outputs:
        if name not in known:
            raise InputError(f"The model's output {name!r} is made by no layer: export the model again.")
    return TorchModel(_with_last_reads(steps, set(outputs)), constants, inputs, outputs, dtype)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself where it is of that type: tracers would record even the conversion that changes nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _check_opset(proto: onnx.ModelProto) -> None:
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ONNX_DOMAINS), default=0)
    if opset < _OLDEST_OPSET:
        raise InputError(f"The model's ONNX opset must be at least {_OLDEST_OPSET} to be run by PyTorch, but is {opset}: "
                         "export it for a newer one.")


def _translate(reader: NodeReader, known: set[str], overrides: Translations) -> Step:
    function, inputs = translate(reader, overrides)
    for name in inputs:
        if name not in known:
            raise reader.refusal(f"no layer before it makes its input {name!r}")
    return Step(function, inputs, reader.outputs)


def _with_last_reads(steps: Sequence[Step], kept: set[str]) -> list[Step]:
    """The same steps, each with what nothing reads after it."""
    needed = set(kept)
    found = []
    for step in reversed(steps):
        finished = {*step.inputs, *step.outputs} - needed
        needed |= finished
        found.append(replace(step, finished=tuple(finished)))
    return found[::-1]
