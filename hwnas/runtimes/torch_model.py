"""An ONNX model as a PyTorch module, for the runtimes that execute PyTorch.

The module's forward is a plain loop over steps that are settled when it is built, so that `torch.export` and tracers see
straight-line code. What the graph knows beforehand (shapes, axes, bounds) becomes Python values, weights become
parameters, and what follows from constants alone is computed once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.runtimes.onnx_model import OnnxModel
from hwnas.runtimes.torch_operators import ONNX_DOMAINS, Function, NodeReader, to_dtype, to_tensor, translate

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

    def run(self, values: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        result = self.function(*(values[name] for name in self.inputs))
        return zip(self.outputs, result if len(self.outputs) > 1 else (result,), strict=True)


class TorchModel(nn.Module):
    """Straight-line code over named tensors.

    Args:
        steps: In an order in which every tensor is made before it is read.
        constants: Weights by name.
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
            self.register_parameter(attribute, nn.Parameter(constants[name], requires_grad=False))
        self._steps = tuple(steps)
        self._inputs = tuple(inputs)
        self._outputs = dict(outputs)
        self._dtype = dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = {name: getattr(self, attribute) for name, attribute in self._weights.items()}
        for name, value in zip(self._inputs, inputs, strict=True):
            values[name] = value.to(self._dtype) if value.is_floating_point() else value
        for step in self._steps:
            values.update(step.run(values))
            for name in step.finished:  # its memory is the next step's, still in the cache
                del values[name]
        return tuple(values[name].to(dtype) for name, dtype in self._outputs.items())


def build_torch_model(model: OnnxModel, dtype: torch.dtype = torch.float32) -> TorchModel:
    """Translates a model.

    Args:
        model: As `read_onnx` gives it.
        dtype: What is computed in wherever the model says float32.

    Returns:
        A module from the model's inputs, in order, to the tuple of its outputs, both of the dtypes that the model says.

    Raises:
        InputError: The model is too old or inconsistent, or has an operator, or a form of one, that is not covered.
    """
    proto = onnx.load_from_string(model.content)
    _check_opset(proto)
    constants = {tensor.name: to_tensor(tensor, dtype) for tensor in proto.graph.initializer}
    inputs = [tensor.name for tensor in model.inputs]
    known = {*inputs, *constants}
    steps = []
    for node in proto.graph.node:
        step = _translate(node, constants, known, dtype)
        if all(name in constants for name in step.inputs):
            constants.update(step.run(constants))
        else:
            steps.append(step)
        known.update(step.outputs)
    outputs = {tensor.name: to_dtype(tensor.dtype) for tensor in model.outputs}
    for name in outputs:
        if name not in known:
            raise InputError(f"The model's output {name!r} is made by no layer: export the model again.")
    return TorchModel(_with_last_reads(steps, set(outputs)), constants, inputs, outputs, dtype)


def _check_opset(proto: onnx.ModelProto) -> None:
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ONNX_DOMAINS), default=0)
    if opset < _OLDEST_OPSET:
        raise InputError(f"The model's ONNX opset must be at least {_OLDEST_OPSET} to be run by PyTorch, but is {opset}: "
                         "export it for a newer one.")


def _translate(node: onnx.NodeProto, constants: Mapping[str, Tensor], known: set[str], dtype: torch.dtype) -> Step:
    reader = NodeReader(node, constants, dtype)
    function, inputs = translate(reader)
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
