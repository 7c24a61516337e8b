"""Recalibration against statistics computed by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.ir.blocks import ConvBlock, MBConv
from hwnas.ir.network import build_network
from hwnas.ir.quantized import HalfPrecision
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import random_weights
from hwnas.supernet.batchnorm import fold_batch_norm, recalibrate_batch_norm


def batches(count, images=8, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(images, 3, 6, 6, generator=generator) + 0.5 for _ in range(count)]


@pytest.fixture
def module():
    network = build_network((3, 6, 6), [("first", ConvBlock(4)), ("second", MBConv(4, 3, 2))])
    return to_torch(network, random_weights(network, 1)).eval()


def test_statistics_are_the_averages_over_batches(module):
    data = batches(5)
    conv = module._modules["first/conv"]
    outputs = [conv(each).detach().double() for each in data]
    assert recalibrate_batch_norm(module, data, tolerance=0) == 5
    norm = module._modules["first/bn"]
    means = torch.stack([each.mean((0, 2, 3)) for each in outputs]).mean(0)
    variances = torch.stack([each.var((0, 2, 3), unbiased=True) for each in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variances, rtol=1e-5, atol=1e-6)


def test_the_result_does_not_depend_on_what_was_there(module):
    other = copy.deepcopy(module)
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.fill_(float("nan"))
            norm.running_var.fill_(1e30)
    for each in (module, other):
        recalibrate_batch_norm(each, batches(3))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_modes_and_momentum_stay(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if "running" not in name}
    module._modules["first/bn"].train()
    recalibrate_batch_norm(module, batches(3))
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert [each for each in module.modules() if each.training] == [module._modules["first/bn"]]
    assert {norm.momentum for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_it_stops_once_the_statistics_settle(module):
    same = batches(1) * 50
    assert recalibrate_batch_norm(module, iter(same), tolerance=0.01) == 2  # the second batch says what the first did
    noisy = batches(50, images=1)
    used = recalibrate_batch_norm(module, iter(noisy), tolerance=0.02)
    assert 2 < used < 50
    assert recalibrate_batch_norm(module, iter(noisy), tolerance=0.1) < used


def test_a_network_without_batch_norm_is_left_alone():
    assert recalibrate_batch_norm(nn.Conv2d(3, 2, 1), batches(3)) == 2


def test_folding_keeps_the_outputs(module):
    recalibrate_batch_norm(module, batches(3))
    images = batches(1, seed=9)[0]
    with torch.inference_mode():
        expected = module(images)
        fold_batch_norm(module)
        folded = module(images)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in module.modules())
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["bf16", "fp16"])
def test_folding_scales_rounded_weights_and_does_not_round_scaled_ones(format):
    network = build_network((3, 6, 6), [("block", HalfPrecision(ConvBlock(4), format))])
    module = to_torch(network, random_weights(network, 1)).eval()
    images = batches(1)[0]
    with torch.inference_mode():
        expected = module(images)
        fold_batch_norm(module)
        assert not any(isinstance(each, nn.BatchNorm2d) for each in module.modules())
        np.testing.assert_allclose(module(images), expected, rtol=1e-5, atol=1e-5)
