"""Shapes, parameters and MACs of every primitive layer against PyTorch's functions, and what each layer refuses."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import InputError
from hwnas.ir.layers import (
    Activation,
    Add,
    BatchNorm,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    Dropout,
    GlobalAveragePool,
    Layer,
    Linear,
    Multiply,
    Pool,
)
from hwnas.ir.network import NetworkBuilder
from hwnas.ir.shape import TensorShape

torch.set_num_threads(1)

X = TensorShape(6, 5, 4)
sizes = st.integers(1, 12)


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[1:])


@settings(max_examples=150, deadline=None)
@given(st.builds(TensorShape, st.just(6), sizes, sizes), st.sampled_from((2, 6, 12)),
       st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 3), st.tuples(st.integers(0, 3), st.integers(0, 3)),
       st.integers(1, 2), st.sampled_from((1, 2)), st.booleans())
def test_convolutions_are_torchs(x: TensorShape, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int],
                                 dilation: int, groups: int, bias: bool) -> None:
    layer = Conv(out, kernel, stride, padding, dilation, groups, bias)
    parameters = {name: torch.zeros(shape) for name, shape in layer.parameters(x).items()}
    assert set(parameters) == ({"weight", "bias"} if bias else {"weight"})
    arguments = (parameters["weight"], parameters.get("bias"), stride, padding, dilation, groups)
    if stride > min(x[1:]):  # torch goes on while zeros fill the window; a network that does so wastes its layers
        with pytest.raises(InputError, match=f"{x.height}x{x.width} below 1x1"):
            layer.infer(x)
        return
    fits = all(size + 2 * pad >= dilation * (k - 1) + 1 for size, pad, k in zip(x[1:], padding, kernel, strict=True))
    if not fits:
        with pytest.raises(InputError, match=rf"{x}"):
            layer.infer(x)
        with pytest.raises(RuntimeError):
            F.conv2d(torch.zeros(1, *x), *arguments)
        return
    with FlopCounterMode(display=False) as counter:
        output = F.conv2d(torch.zeros(1, *x), *arguments)
    assert layer.infer(x) == shape_of(output)
    assert layer.macs(x) == counter.get_total_flops() / 2


@settings(max_examples=100, deadline=None)
@given(st.builds(TensorShape, st.just(3), sizes, sizes), st.sampled_from(("max", "avg")), st.integers(1, 5), st.integers(1, 3),
       st.integers(0, 3))
def test_pools_are_torchs(x: TensorShape, kind: str, kernel: int, stride: int, padding: int) -> None:
    layer = Pool(kind, kernel, stride, padding)  # type: ignore[arg-type]
    pool = F.max_pool2d if kind == "max" else F.avg_pool2d
    if stride > min(x[1:]) and padding <= kernel // 2:
        with pytest.raises(InputError, match=f"{x.height}x{x.width} below 1x1"):
            layer.infer(x)
        return
    try:
        expected = shape_of(pool(torch.zeros(1, *x), kernel, stride, padding))
    except RuntimeError:
        with pytest.raises(InputError):
            layer.infer(x)
    else:
        assert layer.infer(x) == expected
        assert layer.macs(x) == 0


def test_linear_layers_are_torchs() -> None:
    x = TensorShape(7, 1, 1)
    for bias in (False, True):
        layer = Linear(5, bias)
        parameters = {name: torch.zeros(shape) for name, shape in layer.parameters(x).items()}
        with FlopCounterMode(display=False) as counter:
            output = F.linear(torch.zeros(1, 7), **parameters)
        assert layer.infer(x) == (*shape_of(output), 1, 1)
        assert layer.macs(x) == counter.get_total_flops() / 2 == 35


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_concatenation_adds_channels_up(channels: list[int]) -> None:
    shapes = [TensorShape(count, 5, 4) for count in channels]
    assert Concat().infer(*shapes) == shape_of(torch.cat([torch.zeros(1, *shape) for shape in shapes], 1))


@given(st.integers(0, 8), st.integers(0, 8))
def test_a_slice_is_pythons(start: int, stop: int) -> None:
    layer = ChannelSlice(start, stop)
    if start < stop <= 6:
        assert layer.infer(X) == shape_of(torch.zeros(1, *X)[:, start:stop])
    else:
        with pytest.raises(InputError, match=rf"{start}:{stop} is outside 6x5x4"):
            layer.infer(X)


@given(st.integers(1, 8), st.integers(1, 12))
def test_a_shuffle_needs_groups_that_divide(groups: int, channels: int) -> None:
    x = TensorShape(channels, 2, 2)
    if channels % groups == 0:
        assert ChannelShuffle(groups).infer(x) == x
    else:
        with pytest.raises(InputError, match=f"{groups} does not divide {channels}"):
            ChannelShuffle(groups).infer(x)


@pytest.mark.parametrize("layer", [BatchNorm(), Activation("silu"), Dropout()])
def test_element_wise_layers_keep_the_shape_and_count_no_macs(layer: Layer) -> None:
    assert layer.infer(X) == X
    assert layer.macs(X) == 0


def test_only_batch_norm_has_buffers() -> None:
    module = torch.nn.BatchNorm2d(6)
    assert BatchNorm().parameters(X) == {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    assert BatchNorm().buffers(X) == {name: tuple(tensor.shape) for name, tensor in module.named_buffers()
                                      if name != "num_batches_tracked"}
    assert Conv(4, bias=True).buffers(X) == Linear(4).buffers(TensorShape(6, 1, 1)) == {}


def test_a_global_pool_leaves_one_value_a_channel() -> None:
    assert GlobalAveragePool().infer(X) == (6, 1, 1)


def test_a_gate_is_of_its_inputs_channels_or_of_its_shape() -> None:
    assert Multiply().infer(X, TensorShape(6, 1, 1)) == X
    assert Multiply().infer(X, X) == X


@pytest.mark.parametrize(("layer", "inputs", "words"), [
    (Conv(4, groups=4), [X], ["4 groups", "6 input", "4 output"]),
    (Conv(9, groups=2), [X], ["2 groups", "9 output"]),
    (Conv(4, (7, 7)), [X], ["7x7", "6x5x4", "-1x-2"]),
    (Linear(4), [X], ["6x5x4"]),
    (Add(), [X, TensorShape(6, 5, 3)], ["6x5x4", "6x5x3"]),
    (Multiply(), [X, TensorShape(5, 1, 1)], ["6x5x4", "5x1x1"]),
    (Concat(), [X, TensorShape(2, 4, 4)], ["6x5x4", "2x4x4"]),
    (Pool("max", 9), [X], ["max", "9x9", "6x5x4"]),
    (Pool("avg", 3, 1, 2), [X], ["half", "2", "3"]),
])
def test_shapes_that_a_layer_cannot_take_are_refused(layer: Layer, inputs: list[TensorShape], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        layer.infer(*inputs)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(InputError, match="'gelu'"):
        Activation("gelu")


def test_layers_are_values() -> None:
    assert Conv(4, (3, 3)) == Conv(4, (3, 3)) and hash(Conv(4, (3, 3))) == hash(Conv(4, (3, 3)))
    assert Conv(4, (3, 3)) != Conv(4, (5, 5))
    with pytest.raises(AttributeError):
        Conv(4).out_channels = 5  # type: ignore[misc]


def test_a_builder_refuses_a_name_twice_and_scopes_the_rest() -> None:
    net = NetworkBuilder(X)
    first = net.scoped("a").add("conv", Conv(4), net.input)
    second = net.scoped("b").scoped("c").add("conv", Conv(5), first)
    with pytest.raises(InputError, match="'a/conv'"):
        net.scoped("a").add("conv", Conv(4), net.input)
    network = net.build(second)
    assert [node.name for node in network.nodes] == ["a/conv", "b/c/conv"]
    assert network.output_shape == (5, 5, 4)
    assert network.weight_shapes == {"a/conv.weight": (4, 6, 1, 1), "b/c/conv.weight": (5, 4, 1, 1)}


def test_the_graph_view_is_the_network() -> None:
    net = NetworkBuilder(X)
    conv = net.add("conv", Conv(6), net.input)
    network = net.build(net.add("add", Add(), conv, net.input))
    graph = network.graph()
    assert set(graph.edges) == {("input", "conv"), ("conv", "add"), ("input", "add")}
    assert graph.nodes["conv"]["layer"] == Conv(6) and graph.nodes["add"]["shape"] == X


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(1, 3))
def test_a_sum_of_equal_shapes_keeps_it(count: int, channels: int) -> None:
    x = TensorShape(channels, 2, 2)
    assert Add().infer(*[x] * count) == x
    with pytest.raises(InputError):
        Add().infer(*[x] * count, TensorShape(channels + 1, 2, 2))
