"""Few bits in both lowerings: exact where arithmetic can be exact, close elsewhere, and gradients against formulas by hand.

A value within float error of the middle between two steps may be rounded either way, and then a whole step is between two
correct results. So parity is shown in two ways that leave no room for it. With weights, scales and images that are multiples
of powers of two no runtime rounds anything but where it is told to, ties included: results must be equal to the last bit. With
ordinary weights, images are kept away from the middles and a single convolution follows: results must be close.
"""

import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.blocks import BasicBlock, Block, ConvBlock, Head, MBConv, SeparableConv, ShuffleUnit, Stem
from hwnas.ir.layers import FORMAT_BITS, Activation, Add, BatchNorm, Conv, Quantize, Round
from hwnas.ir.network import Network, build_network
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.lower.onnx import to_onnx
from hwnas.lower.quantize import quantize_weight, round_to_half
from hwnas.lower.straight_through import Quantizer, RoundToHalf, follow_statistics
from hwnas.lower.straight_through import quantize_weight as quantize_weight_in_torch
from hwnas.lower.torch import get_weights, to_torch
from hwnas.lower.weights import check_weights, random_weights
from hwnas.supernet.batchnorm import fold_batch_norm
from tests.lower.networks import network_of
from tests.lower.test_onnx import check
from tests.lower.test_parity import assert_close, run_onnxruntime, run_openvino, run_torch

torch.set_num_threads(1)

RUNTIMES = (run_onnxruntime, run_openvino)
SHAPE = (8, 8, 8)
PAIRS = [*((bits, bits) for bits in range(1, 9)), (1, 4), (4, 2), (8, 4), (4, 8), (32, 3), (32, 8)]
BLOCKS: dict[str, Block] = {
    "conv": ConvBlock(12), "conv without activation": ConvBlock(6, 5, 2, 2, None), "separable": SeparableConv(12),
    "mbconv": MBConv(8), "mbconv of stride 2": MBConv(12, 5, 3, 2),
    "basic": BasicBlock(8), "projecting": BasicBlock(12, stride=2),
    "shuffle": ShuffleUnit(8), "shuffle of stride 2": ShuffleUnit(20, 3, 2)}


def exact_weights(network: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of order 1 with which all arithmetic of convolutions, batch norms, sums and ReLU is exact in float32."""
    rng = np.random.default_rng(seed)
    weights = dict(random_weights(network, seed))
    for node in network.nodes:
        match node.layer:
            case Conv() as conv:
                shape = weights[f"{node.name}.weight"].shape
                bits = min(FORMAT_BITS[conv.weight_format], 5 if "int" not in conv.weight_format else 8)
                largest = max(1, 2 ** (bits - 1) - 1)
                integers = rng.integers(-largest, largest, shape, endpoint=True)
                integers.reshape(shape[0], -1)[:, 0] = rng.choice([-largest, largest], shape[0])  # so that this is the step
                if bits == 1:
                    integers = rng.choice([-1, 1], shape)
                step = 2.0 ** np.round(np.log2(1.5 / largest / np.prod(shape[1:]) ** 0.5))
                weights[f"{node.name}.weight"] = (integers * step).astype(np.float32)
            case BatchNorm(eps):
                size = node.shape.channels
                weights |= {f"{node.name}.weight": rng.choice([-2, -1, 0.5, 1, 1, 2], size).astype(np.float32),
                            f"{node.name}.bias": (rng.integers(-8, 9, size) / 16).astype(np.float32),
                            f"{node.name}.running_mean": np.zeros(size, np.float32),
                            f"{node.name}.running_var": np.full(size, 1 - eps, np.float32)}
            case Quantize():
                name = f"{node.name}.scale"
                weights[name] = 2.0 ** np.round(np.log2(weights[name]))
    return weights


def exact_images(network: Network, signed: bool = True) -> np.ndarray:
    rng = np.random.default_rng(7)
    return (rng.integers(-160 if signed else 0, 161, (2, *network.input_shape)) / 64).astype(np.float32)


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("weight_bits", "activation_bits"), PAIRS)
@pytest.mark.parametrize("signed", [True, False])
def test_blocks_agree_to_the_last_bit(name: str, weight_bits: int, activation_bits: int, signed: bool, run) -> None:
    network = block_network(Quantized(BLOCKS[name], weight_bits, activation_bits, signed), SHAPE)
    weights, images = exact_weights(network), exact_images(network, signed)
    expected = run_torch(network, weights, images)
    assert np.std(expected) > 0.1
    np.testing.assert_array_equal(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)


class Clipping(torch.nn.Module):
    """A quantiser that clips and does not round."""

    def __init__(self, quantizer: torch.nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, scale = self.quantizer.layer, self.quantizer.scale
        return x.clamp(layer.lowest * scale, layer.highest * scale)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("signed", [True, False])
def test_integer_networks_agree_to_the_last_bit(name: str, signed: bool) -> None:
    """Two blocks in a row, so that runtimes join them into integer kernels.

    OpenVINO computes a sum where it computes a convolution before it, and does not round what passes from one to the other
    in between: it is to do exactly what is left then.
    """
    first = Quantized(BLOCKS[name], 8, 8, signed, integer=True)
    network = build_network(SHAPE, [("first", first), ("second", Quantized(ConvBlock(8), 8, 8))])
    weights, images = exact_weights(network), exact_images(network, signed)
    model = to_onnx(network, weights, batch_size=2).SerializeToString()
    np.testing.assert_array_equal(run_onnxruntime(model, images), run_torch(network, weights, images))
    module = to_torch(network, weights).eval()
    convolved = [node.name for node in network.nodes if isinstance(node.layer, BatchNorm)]
    summed = {source for node in network.nodes if isinstance(node.layer, Add) for source in node.inputs}
    joined = {node.inputs[0]: node.name for node in network.nodes if node.name in summed and node.inputs[0] in convolved}
    for quantizer in [joined[name] for name in convolved if name in joined][-1:]:  # the last convolution that a sum waits for
        module.add_module(quantizer, Clipping(module.get_submodule(quantizer)))
    with torch.no_grad():
        np.testing.assert_array_equal(run_openvino(model, images), module(torch.from_numpy(images)).numpy())


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("layer", [
    *(Quantize(bits, signed) for bits in range(1, 9) for signed in (True, False)), Round("bf16"), Round("fp16")], ids=repr)
def test_ties_go_to_the_even_step_and_ends_are_clipped(layer: Quantize | Round, run) -> None:
    """Against a table of steps: the nearest one, of two equally near ones the even one."""
    network = network_of(lambda net, x: net.add("layer", layer, x), (1, 1, 1041))
    if isinstance(layer, Round):  # 11 and 8 significant bits between 1 and 2
        images = (1 + np.arange(1041) / (4096 if layer.format == "fp16" else 512)).astype(np.float32).reshape(1, 1, 1, -1)
        steps = np.arange(-5000, 5000) / (1024 if layer.format == "fp16" else 128)
        weights: dict[str, np.ndarray] = {}
        if layer.format == "bf16":
            images = np.minimum(images, 2)
    else:
        images = (np.arange(-520, 521) / 8).astype(np.float32).reshape(1, 1, 1, -1)
        weights = {"layer.scale": np.array([0.25], np.float32)}
        steps = np.arange(layer.lowest, layer.highest + 1) * 0.25
        if layer.signed and layer.bits == 1:
            steps = np.array([-0.25, 0.25])
    distance = np.abs(images.ravel()[:, None] - steps)
    nearest = [[index for index in np.flatnonzero(row == row.min())] for row in distance]
    unit = steps[-1] - steps[-2]
    # Of one signed bit's steps, -1 and 1, none is even, and in the middle the larger is taken.
    expected = np.array([steps[each[0]] if len(each) == 1 else
                         next((steps[one] for one in each if steps[one] / unit % 2 == 0), steps[each[-1]])
                         for each in nearest], np.float32).reshape(images.shape)
    np.testing.assert_array_equal(run_torch(network, weights, images), expected)
    if run is run_openvino and layer == Round("fp16"):
        return  # it computes fp16 casts in float32: see test_half_precision_agrees
    np.testing.assert_array_equal(run(to_onnx(network, weights).SerializeToString(), images), expected)


def off_the_middles(network: Network, weights: dict[str, np.ndarray], signed: bool = True) -> np.ndarray:
    """Images that are at least a tenth of a step away from where rounding changes its mind."""
    rng = np.random.default_rng(7)
    shape = (2, *network.input_shape)
    (scale,) = weights["block/input_quantize.scale"]
    reach = round(3 / float(scale))
    multiples = rng.integers(-reach if signed else 0, reach, shape, endpoint=True)
    return ((multiples + rng.uniform(-0.4, 0.4, shape)) * scale).astype(np.float32)


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), PAIRS)
def test_ordinary_weights_agree(weight_bits: int, activation_bits: int, signed: bool, run) -> None:
    """Batch norms with any statistics, negative factors among them."""
    network = block_network(Quantized(ConvBlock(12), weight_bits, activation_bits, signed), SHAPE)
    weights = random_weights(network)
    weights["block/bn.weight"][::2] *= -1
    images = off_the_middles(network, weights, signed)
    if signed and activation_bits == 1:
        images += np.sign(images) * weights["block/input_quantize.scale"]  # here the middle is 0
    expected = run_torch(network, weights, images)
    assert_close(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_alone_may_be_quantised(name: str, bits: int, run) -> None:
    """They are constants, rounded before any runtime sees them, so there is no middle that a runtime could miss."""
    network = block_network(Quantized(BLOCKS[name], bits, 32), SHAPE)
    weights, images = random_weights(network), np.random.default_rng(1).standard_normal((2, *SHAPE), np.float32)
    expected = run_torch(network, weights, images)
    assert_close(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)


@pytest.mark.parametrize("format", ["fp16", "bf16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_agrees(name: str, format: str) -> None:
    """One unit in the last place of half precision, 2^-10 or 2^-7, is what a value near a middle may be off after the first
    convolution. OpenVINO leaves fp16 rounding of activations out, which is at most half of that for each."""
    network = block_network(HalfPrecision(BLOCKS[name], format), SHAPE)
    weights, images = random_weights(network), np.random.default_rng(1).standard_normal((2, *SHAPE), np.float32)
    expected = run_torch(network, weights, images)
    unit = 2**-10 if format == "fp16" else 2**-7
    model = to_onnx(network, weights, batch_size=2).SerializeToString()
    for run in RUNTIMES:
        np.testing.assert_allclose(run(model, images), expected, rtol=0, atol=unit * np.ptp(expected))
    plain = run_torch(block_network(BLOCKS[name], SHAPE), weights, images)
    assert 0 < np.abs(plain - expected).max() < 4 * unit * np.ptp(plain)


@pytest.mark.parametrize("format", ["fp16", "bf16"])
@pytest.mark.parametrize("run", RUNTIMES)
def test_a_half_precision_convolution_agrees(format: str, run) -> None:
    """Images that half precision holds exactly: then all that is rounded are the weights, and every runtime must agree."""
    network = block_network(HalfPrecision(ConvBlock(12), format), SHAPE)
    weights, images = random_weights(network), exact_images(network)
    images = round_to_half(images, format)
    expected = run_torch(network, weights, images)
    assert_close(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)
    assert np.abs(expected - run_torch(block_network(ConvBlock(12), SHAPE), weights, images)).max() > 1e-4


@pytest.mark.parametrize("block", [MBConv(8, se_ratio=0.25), MBConv(8, activation="hardswish"), MBConv(8, activation="silu")],
                         ids=["gate", "hardswish", "silu"])
@pytest.mark.parametrize("run", RUNTIMES)
def test_integer_networks_with_curves_agree_within_steps(block: MBConv, run) -> None:
    """Runtimes tabulate or approximate a sigmoid between integers: a few values end one step of 1/128 of the range beside."""
    network = block_network(Quantized(block, 8, 8, integer=True), SHAPE)
    weights, images = random_weights(network), np.random.default_rng(1).standard_normal((2, *SHAPE), np.float32)
    expected = run_torch(network, weights, images)
    off = np.abs(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images) - expected) / np.ptp(expected)
    assert off.max() < 2 / 128 and off.mean() < 1e-3


@pytest.mark.parametrize("block", [
    Quantized(BasicBlock(8), 2, 3), Quantized(BasicBlock(8), 1, 1), Quantized(MBConv(8, se_ratio=0.25), 8, 8, integer=True),
    Quantized(ShuffleUnit(8), 8, 8, integer=True), HalfPrecision(MBConv(8), "bf16"), HalfPrecision(MBConv(8), "fp16")], ids=repr)
@pytest.mark.parametrize("opset", [14, 17, 23])
def test_graphs_are_valid(block: Block, opset: int) -> None:
    network = block_network(block, SHAPE)
    check(network, to_onnx(network, batch_size=3, opset=opset), 3)


def optimised_operators(network: Network, tmp_path) -> Counter[str]:
    """What ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(to_onnx(network).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(("block", "signed", "operators"), [
    (ConvBlock(8), False, {"QLinearConv": 3}),
    (MBConv(8), True, {"QLinearConv": 12, "QLinearAdd": 3}),
    (MBConv(8, residual=False), True, {"QLinearConv": 11}),
    (MBConv(8, se_ratio=0.25), True, {"QLinearConv": 20, "QLinearMul": 4, "QLinearAdd": 3, "QLinearGlobalAveragePool": 4}),
    (MBConv(8, activation="hardswish"), True, {"QLinearConv": 12, "QLinearAdd": 3}),
    (BasicBlock(8), False, {"QLinearConv": 8, "QLinearAdd": 3}),
    (ShuffleUnit(8), False, {"QLinearConv": 12}),
])
def test_integer_kernels_run_every_convolution(block: Block, signed: bool, operators: dict[str, int], tmp_path) -> None:
    """Four blocks in a row. What comes last has nothing after it to quantise its output, so it may stay in float32."""
    network = build_network(SHAPE, [(f"layer{index}", Quantized(block, 8, 8, signed, integer=True)) for index in range(4)])
    found = optimised_operators(network, tmp_path)
    assert {name: found[name] for name in operators} == operators
    convolutions = sum(isinstance(node.layer, Conv) for node in network.nodes)
    assert found["Conv"] + found["FusedConv"] == convolutions - found["QLinearConv"] <= 1


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 4), (4, 8), (32, 8), (8, 4), (8, 32)])
def test_no_runtime_is_tempted_to_round_more(weight_bits: int, activation_bits: int, tmp_path) -> None:
    network = build_network(SHAPE, [(f"layer{index}", Quantized(BasicBlock(8), weight_bits, activation_bits, False))
                                    for index in range(2)])
    assert not {"QLinearConv", "QuantizeLinear", "DequantizeLinear"} & set(optimised_operators(network, tmp_path))


@pytest.mark.parametrize("run", RUNTIMES)
def test_channels_that_batch_norm_switches_off(run) -> None:
    """Factors of 0 and next to it: integer kernels hold the bias in multiples of a step that must not vanish."""
    network = build_network(SHAPE, [
        ("a", Quantized(ConvBlock(4), 8, 8)), ("b", Quantized(ConvBlock(4, activation=None), 8, 8, False)),
        ("c", Quantized(ConvBlock(4), 8, 8))])
    weights, images = exact_weights(network), exact_images(network)
    for layer in "ab":
        weights[f"{layer}/bn.weight"] = np.array([0, 1e-9, 1e-20, 1e-38], np.float32)
        weights[f"{layer}/bn.bias"] = np.array([1, 0.5, 0.25, 0], np.float32)
    weights["a/conv.weight"][3] = 0
    expected = run_torch(network, weights, images)
    assert_close(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_folded_weights_are_whole_multiples(bits: int) -> None:
    """Of one step a channel, at most 2^(bits-1) - 1 either way: folding a batch norm does not take weights off the grid."""
    network = block_network(Quantized(ConvBlock(6), bits, 4), SHAPE)
    weights = random_weights(network)
    weights["block/bn.weight"][1] *= -1
    (stored,) = (onnx.numpy_helper.to_array(one) for one in to_onnx(network, weights).graph.initializer
                 if one.name == "block/conv.weight")
    highest = max(1, 2 ** (bits - 1) - 1)
    for channel, raw in zip(stored.astype(np.float64), weights["block/conv.weight"], strict=True):
        step = np.abs(channel).max() / highest
        multiples = channel / step
        np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-4)
        assert len(np.unique(np.rint(multiples))) > (1 if bits == 1 else 2)
        assert np.abs(np.corrcoef(channel.ravel(), raw.ravel())[0, 1]) > (0.5 if bits < 3 else 0.95)


def test_integer_weights_are_stored_in_a_byte() -> None:
    network = block_network(Quantized(ConvBlock(64), 8, 8), (64, 8, 8))
    plain = block_network(ConvBlock(64), (64, 8, 8))
    assert len(to_onnx(network).SerializeToString()) < 0.3 * len(to_onnx(plain).SerializeToString())


@pytest.mark.parametrize("format", FORMAT_BITS)
def test_weights_are_rounded_alike_in_numpy_and_torch(format: str) -> None:
    weight = np.random.default_rng(0).standard_normal((7, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    weight[3] *= 1e-30
    actual = quantize_weight_in_torch(torch.from_numpy(weight), format).numpy()
    if format == "fp32":
        expected = weight
    elif "int" in format:
        integers, step = quantize_weight(weight, FORMAT_BITS[format])
        assert integers.dtype == np.int8 and np.abs(integers.astype(int)).max() == max(1, 2 ** (FORMAT_BITS[format] - 1) - 1)
        expected = integers * step[:, None, None, None]
    else:
        expected = round_to_half(weight, format)
    np.testing.assert_allclose(actual, expected, rtol=1e-6 if format == "int1" else 0, atol=0)  # a mean has an order of sums


def test_weights_are_rounded_as_defined() -> None:
    weight = np.array([0.6, -0.25, 0.1, -0.05, 0.35, 0.0], np.float32).reshape(1, 6, 1, 1)
    integers, step = quantize_weight(weight, 3)  # step 0.2: 3, -1.25, 0.5, -0.25, 1.75, 0
    assert integers.ravel().tolist() == [3, -1, 0, 0, 2, 0] and step == pytest.approx([0.2])
    integers, step = quantize_weight(weight, 2)
    assert integers.ravel().tolist() == [1, 0, 0, 0, 1, 0] and step == pytest.approx([0.6])
    integers, step = quantize_weight(weight, 1)
    assert integers.ravel().tolist() == [1, -1, 1, -1, 1, 1] and step == pytest.approx([1.35 / 6])
    assert round_to_half(np.array([1 + 3 * 2**-12, 70000], np.float32), "fp16").tolist() == [1 + 2**-10, np.inf]
    assert round_to_half(np.array([1 + 3 * 2**-9], np.float32), "bf16").tolist() == [1 + 2**-7]


@pytest.mark.parametrize("layer", [Quantize(bits, signed) for bits in (1, 2, 4, 8) for signed in (True, False)], ids=repr)
def test_gradients_are_those_of_learned_step_sizes(layer: Quantize) -> None:
    """Esser et al., arXiv 1902.08153, eq. 3 to 5, element by element in plain Python; one image has 12 elements."""
    scale, generator = 0.3, np.random.default_rng(0)
    reach = 1.5 * layer.highest * scale
    x = torch.from_numpy(generator.uniform(-reach, reach, (2, 3, 2, 2))).requires_grad_()
    slopes = torch.from_numpy(generator.standard_normal((2, 3, 2, 2)))
    module = Quantizer(layer).double()
    module.scale.data.fill_(scale)
    (module(x) * slopes).sum().backward()
    to_scale, clipped = 0.0, 0
    for value, slope, gradient in zip(x.flatten().tolist(), slopes.flatten().tolist(), x.grad.flatten().tolist(), strict=True):
        ratio = value / scale
        if ratio <= layer.lowest:
            expected, part, clipped = 0.0, layer.lowest, clipped + 1
        elif ratio >= layer.highest:
            expected, part, clipped = 0.0, layer.highest, clipped + 1
        else:
            level = round(ratio) if layer.bits > 1 or not layer.signed else (1 if ratio >= 0 else -1)
            expected, part = slope, level - ratio
        assert gradient == pytest.approx(expected)
        to_scale += part * slope
    assert 0 < clipped < x.numel()
    assert module.scale.grad.item() == pytest.approx(to_scale / (12 * layer.highest) ** 0.5)


@pytest.mark.parametrize("layer", [Quantize(bits, signed) for bits in (1, 2, 4, 8) for signed in (True, False)], ids=repr)
def test_scales_that_follow_statistics(layer: Quantize) -> None:
    """Batches are rounded with the scale from before them, which then moves a tenth of the way: the formula, in numpy."""
    module = Quantizer(layer).train()
    module.scale.data.fill_(-0.2)  # the sign does not count
    assert list(follow_statistics(module).values()) == [module.scale] and not module.scale.requires_grad
    rng, expected = np.random.default_rng(0), 0.2
    for deviation in (3.0, 0.5, 0.0, 1.0):
        x = rng.normal(0, deviation, (2, 3, 4, 4)).astype(np.float32)
        given = torch.from_numpy(x).requires_grad_()
        rounded = module(given)
        multiples = np.clip(x / expected, layer.lowest, layer.highest)
        inside = (multiples > layer.lowest) & (multiples < layer.highest)
        multiples = np.where(x < 0, -1, 1) if layer.signed and layer.bits == 1 else np.rint(multiples)
        np.testing.assert_allclose(rounded.detach().numpy(), multiples * expected, rtol=1e-5)
        slopes = rng.standard_normal(x.shape).astype(np.float32)
        rounded.backward(torch.from_numpy(slopes))
        np.testing.assert_allclose(given.grad.numpy()[inside], slopes[inside], rtol=1e-5)
        if deviation:  # zeros call for no scale
            assert not given.grad.numpy()[~inside].any()
            power = np.mean(x.astype(np.float64) ** 2)
            reach = 3 * np.sqrt(power if layer.signed else 2 * power)
            expected = 0.9 * expected + 0.1 * reach / (2 ** (layer.bits - layer.signed) if layer.bits > layer.signed else 2)
        assert abs(module.scale.item()) == pytest.approx(expected, rel=1e-5)
    module.track_running_stats = False
    module(torch.ones(1, 1, 2, 2))
    module.track_running_stats = True
    module.eval()(torch.ones(1, 1, 2, 2))
    assert module.scale.item() == pytest.approx(expected, rel=1e-5)  # fixed


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("function", [None, "relu"])
def test_statistics_find_three_standard_deviations(bits: int, function: str | None) -> None:
    """Of a bell curve of any width, and of what ReLU leaves of it."""
    layer = Quantize(bits, function is None)
    module = Quantizer(layer)
    follow_statistics(module)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = 7 * torch.randn(4, 8, 8, 8, generator=generator)
        module(x if function is None else x.relu())
    assert module.scale.item() * (layer.highest + 1) == pytest.approx(3 * 7, rel=0.02)


def test_statistics_are_exported_as_they_were_trained_with() -> None:
    network = block_network(Quantized(ConvBlock(12), 3, 4), SHAPE)
    module = to_torch(network, random_weights(network)).train()
    (scale,) = follow_statistics(module).values()
    optimizer, start = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], 0.1), scale.item()
    for _ in range(5):
        loss = module(2 * torch.randn(4, *SHAPE)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = get_weights(module)
    assert weights["block/input_quantize.scale"] == scale.numpy() != np.float32(start)
    images = off_the_middles(network, weights)
    expected = module.eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_array_equal(run_torch(network, weights, images), expected)  # learned or not, a trained network is the same
    assert_close(run_onnxruntime(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)


def test_gradients_pass_the_rounding_of_weights_and_halves_unchanged() -> None:
    x = torch.linspace(-3, 3, 48).reshape(1, 3, 4, 4).requires_grad_()
    RoundToHalf("bf16")(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * RoundToHalf("bf16")(x).detach(), rtol=0, atol=0)
    network = network_of(lambda net, x: net.add("conv", Conv(4, (3, 3), weight_format="int2"), x), (3, 4, 4))
    module = to_torch(network, random_weights(network))
    module(x).sum().backward()
    patches = F.unfold(x.detach(), 3).sum((0, 2)).reshape(3, 3, 3)
    torch.testing.assert_close(module.get_parameter("conv.weight").grad, patches.expand(4, -1, -1, -1))


@pytest.mark.parametrize("block", [Quantized(BasicBlock(12, stride=2), 2, 2), Quantized(MBConv(8), 8, 8, integer=True),
                                   Quantized(BasicBlock(8), 1, 1), HalfPrecision(MBConv(8), "fp16")], ids=repr)
def test_gradients_reach_every_parameter_and_training_helps(block: Block) -> None:
    network = build_network(SHAPE, [("block", block), ("head", Head(4))])
    module = to_torch(network).train()
    for parameter in module.parameters():  # residual branches start at 0, which would hide their insides at the first step
        if parameter.ndim == 1 and not parameter.any():
            torch.nn.init.constant_(parameter, 0.5)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, *SHAPE, generator=generator), torch.arange(16) % 4
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert run_onnxruntime(to_onnx(network, get_weights(module)).SerializeToString(), images[:1].numpy()).shape == (1, 4)


def test_a_residual_block_starts_as_the_identity_in_integers_too() -> None:
    network = block_network(Quantized(MBConv(8), 8, 8, integer=True), SHAPE)
    module = to_torch(network).eval()
    x = torch.from_numpy(exact_images(network))
    quantizer = module.get_submodule("block/input_quantize")
    torch.testing.assert_close(module(x), quantizer(x), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_folding_in_torch_keeps_the_numbers(bits: int) -> None:
    network = block_network(Quantized(BasicBlock(12, stride=2), bits, bits), SHAPE)
    weights, images = exact_weights(network), exact_images(network)
    module = to_torch(network, weights).eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
        fold_batch_norm(module)
        torch.testing.assert_close(module(torch.from_numpy(images)), expected)


def test_the_sign_of_a_scale_does_not_count_and_zero_is_refused() -> None:
    network = block_network(Quantized(ConvBlock(4), 3, 3), SHAPE)
    weights, images = exact_weights(network), exact_images(network)
    expected = run_torch(network, weights, images)
    weights["block/input_quantize.scale"] *= -1
    np.testing.assert_array_equal(run_torch(network, weights, images), expected)
    np.testing.assert_array_equal(run_onnxruntime(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)
    weights["block/input_quantize.scale"][:] = 0
    with pytest.raises(InputError, match=r"block/input_quantize\.scale"):
        check_weights(network, weights)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("function", [None, "relu"])
def test_random_scales_cover_what_reaches_the_quantiser(bits: int, function: str | None) -> None:
    """What rounding loses is not far from the least that steps of equal size can lose on a bell curve (Max, 1960)."""
    least = (0.363, 0.119, 0.0374, 0.0115, 0.0035, 0.00104, 0.0003, 0.00009)[bits - 1]
    layer = Quantize(bits, function is None)
    network = network_of(lambda net, x: net.add("quantize", layer, net.add("act", Activation(function), x) if function else x))
    images = np.random.default_rng(0).standard_normal((8, *network.input_shape), np.float32)
    exact = images if function is None else np.maximum(images, 0)
    rounded = run_torch(network, random_weights(network), images)
    assert np.square(rounded - exact).mean() < max(3 * least, 2e-3) * np.square(exact).mean()


def test_export_and_compile_take_the_module() -> None:
    network = build_network((3, 16, 16), [("stem", Stem(8)), ("a", Quantized(BasicBlock(8), 2, 2, False)),
                                          ("b", HalfPrecision(MBConv(8), "bf16")), ("head", Head(4))])
    module = to_torch(network, random_weights(network)).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)
        torch.testing.assert_close(torch.export.export(module, (images,)).module()(images), expected)
        torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(images), expected)


def test_replacing_a_format_changes_the_network_and_not_its_weights() -> None:
    blocks = [Quantized(BasicBlock(8), weights, activations) for weights in (1, 4, 32) for activations in (1, 4, 32)]
    networks = [block_network(block, SHAPE) for block in blocks]
    plain = block_network(BasicBlock(8), SHAPE).weight_shapes
    for network in networks:
        shapes = {name: shape for name, shape in network.weight_shapes.items() if not name.endswith("_quantize.scale")}
        assert shapes == plain
    assert len({network.nodes for network in networks}) == len(networks)
    assert dataclasses.replace(blocks[0], weight_bits=4) == blocks[3]
