"""Scales against values gathered without the library's own hooks, brute force, and ONNX Runtime's calibrators."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from hwnas.errors import InputError, VerificationError
from hwnas.ir.blocks import ConvBlock, Head, MBConv, ShuffleUnit, Stem
from hwnas.ir.layers import Quantize
from hwnas.ir.network import Network, build_network
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.lower.calibrate import METHODS, Activations, calibrate, float_network, minmax_scale, mse_scale, observe
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import check_weights, random_weights
from tests.lower.test_parity import run_torch

torch.set_num_threads(1)

SHAPE = (3, 12, 12)
BLOCKS = [("stem", Stem(8)), ("mb", MBConv(8, se_ratio=0.25)), ("curve", MBConv(12, activation="hardswish", stride=2)),
          ("shuffle", ShuffleUnit(12)), ("head", Head(5, 16))]


def quantized(blocks=BLOCKS) -> Network:
    """The stem reads images, which are signed, and what follows it is not."""
    return build_network(SHAPE, [(name, Quantized(block, 8, 8, signed_input=name != "mb", integer=True))
                                 for name, block in blocks])


def plain() -> Network:
    return build_network(SHAPE, BLOCKS)


def pictures(count=40, seed=0) -> np.ndarray:
    """Smooth, and some brighter than others."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (count, 3, 4, 4)) * rng.uniform(0.5, 2, (count, 1, 1, 1))
    return np.kron(coarse, np.ones((1, 1, 3, 3))).astype(np.float32)


def tensors(images: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor that is quantised somewhere, computed as the output of a network that ends there."""
    network = plain()
    weights = random_weights(network)
    found = {"input": images}
    for name in {name for node in network.nodes for name in node.inputs} - {"input"}:
        part = dataclasses.replace(network, output=name)
        found[name] = run_torch(part, weights, images)
    return found


def test_the_float_network_is_the_network_before_quantisation():
    assert float_network(quantized()) == plain()
    halved = build_network(SHAPE, [(name, HalfPrecision(block, "bf16")) for name, block in BLOCKS])
    assert float_network(halved) == plain()
    assert float_network(plain()) == plain()


def test_weights_are_the_float_ones_and_scales():
    network, weights = quantized(), random_weights(plain())
    found = calibrate(network, weights, pictures())
    check_weights(network, found)
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)
    again = calibrate(network, weights, pictures())
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_a_tensor_s_scale_does_not_depend_on_which_layers_are_quantised():
    weights, images = random_weights(plain()), pictures()
    everything = calibrate(quantized(), weights, images)
    some = build_network(SHAPE, [(name, Quantized(block, 8, 8, integer=True) if name in ("curve", "head") else block)
                                 for name, block in BLOCKS])
    found = calibrate(some, weights, images)
    assert any(name.endswith(".scale") for name in found)
    assert all(np.array_equal(found[name], everything[name]) for name in found)


@pytest.mark.parametrize("method", METHODS)
def test_scales_against_all_values_gathered_apart(method):
    network, images = quantized(), pictures()
    # A sample large enough for every value to be in it.
    found = calibrate(network, random_weights(plain()), images, method, sample=1 << 24)
    values, sources = tensors(images), {}
    for node in network.nodes:
        if not isinstance(node.layer, Quantize):
            continue
        sources[node.name] = sources.get(node.inputs[0], node.inputs[0])
        x, layer = values[sources[node.name]].ravel().astype(np.float64), node.layer
        scale = float(found[f"{node.name}.scale"][0])
        low, high = (-128, 127) if layer.signed else (0, 255)
        smallest = max(x.max() / high, x.min() / low if low else 0)
        if method == "minmax":
            np.testing.assert_allclose(scale, smallest, rtol=1e-5)
        elif method == "percentile":
            np.testing.assert_allclose(scale, min(np.quantile(np.abs(x), 0.9999) / high, smallest), rtol=1e-5)
        else:
            def error(step, x=x, low=low, high=high):
                return np.mean((np.clip(np.round(x / step), low, high) * step - x) ** 2)
            assert scale <= smallest * (1 + 1e-5)
            assert error(scale) <= min(error(smallest * share) for share in np.linspace(0.02, 1, 50)) * 1.001
    assert len(sources) > 10


def test_extremes_agree_with_onnx_runtime_s_calibrator(tmp_path):
    images, network = pictures(), plain()
    weights = random_weights(network)
    path = tmp_path / "float.onnx"
    onnx.save(to_onnx(network, weights, dynamic_batch=True), path)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(np.split(images, 4))

        def get_next(self):
            return next(({"images": each} for each in self.left), None)

    calibrator = create_calibrator(str(path), augmented_model_path=str(tmp_path / "augmented.onnx"),
                                   calibrate_method=CalibrationMethod.MinMax)
    calibrator.collect_data(Reader())
    ranges = {name: each.range_value for name, each in calibrator.compute_data().items()}
    compared = 0
    for name, found in observe(quantized(), weights, images).items():
        tensor = name.removesuffix("_quantize")
        tensor = tensor.removesuffix("_bn") + "_conv" if tensor.endswith("_bn") else tensor  # which it is folded into
        if tensor in ranges:
            low, high = (float(np.asarray(each).item()) for each in ranges[tensor])
            np.testing.assert_allclose((found.lowest, found.highest), (low, high), rtol=1e-4, atol=1e-4)
            compared += 1
    assert compared >= 8


def test_percentiles_agree_with_onnx_runtime_s_calibrator(tmp_path):
    """Its histograms have bins; ours are the values themselves."""
    images = pictures(200)
    network = build_network(SHAPE, [("conv", ConvBlock(8)), ("last", Quantized(ConvBlock(8), 8, 8, signed_input=False))])
    weights = random_weights(float_network(network))
    path = tmp_path / "float.onnx"
    onnx.save(to_onnx(float_network(network), weights, dynamic_batch=True), path)

    class Reader(CalibrationDataReader):
        left = iter([images])

        def get_next(self):
            return next(({"images": each} for each in self.left), None)

    calibrator = create_calibrator(str(path), augmented_model_path=str(tmp_path / "augmented.onnx"),
                                   calibrate_method=CalibrationMethod.Percentile,
                                   extra_options={"num_bins": 8192, "percentile": 99.99, "symmetric": True})
    calibrator.collect_data(Reader())
    highest = float(np.asarray(calibrator.compute_data()["conv/act"].range_value[1]).item())
    scale = float(calibrate(network, weights, images, "percentile", sample=1 << 24)["last/input_quantize.scale"][0])
    assert abs(scale * 255 / highest - 1) < 0.01


def test_clipping_outliers_beats_keeping_them():
    values = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
    values[0] = 60
    layer = Quantize(8, signed=True)
    found = Activations(float(values.min()), float(values.max()), values)
    assert mse_scale(layer, found) < 0.7 * minmax_scale(layer, found)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros_has_some_scale(method):
    found = Activations(0.0, 0.0, np.zeros(100, np.float32))
    for signed in (True, False):
        assert METHODS[method](Quantize(8, signed), found) > 0


@pytest.mark.parametrize(("images", "named"), [
    (None, "NoneType"),
    (pictures()[:0], "at least 16 images"),
    (pictures()[:15], "at least 16 images"),
    (pictures()[:, :2], "float (N, 3, 12, 12)"),
    ((pictures() * 40).astype(np.uint8), "uint8"),
    (np.repeat(pictures()[:1], 30, axis=0), "different images"),
    (np.random.default_rng(0).standard_normal((64, *SHAPE)).astype(np.float32), "random noise"),
    (np.random.default_rng(0).uniform(0, 1, (64, *SHAPE)), "random noise"),
    (np.full((20, *SHAPE), np.nan, np.float32), "finite"),
], ids=["none", "empty", "few", "shape", "integers", "same", "normal noise", "uniform noise", "nan"])
def test_calibration_data_that_are_none(images, named):
    with pytest.raises(InputError, match=named.replace("(", r"\(").replace(")", r"\)")):
        calibrate(quantized(), random_weights(plain()), images)


def test_other_mistakes():
    weights = random_weights(plain())
    with pytest.raises(InputError, match="minmax, percentile, mse, but is 'entropy'"):
        calibrate(quantized(), weights, pictures(), "entropy")
    with pytest.raises(InputError, match=r"'stem/conv\.weight' is missing"):
        calibrate(quantized(), {name: array for name, array in weights.items() if name != "stem/conv.weight"}, pictures())
    with pytest.raises(VerificationError, match="must be finite"):
        calibrate(quantized(), weights | {"stem/bn.weight": np.full(8, 3e38, np.float32)}, pictures())
