"""Random weights keep every activation of order 1; foreign or broken weights are refused by name."""

import numpy as np
import pytest
import torch

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, MBConv, ShuffleUnit, Stem
from hwnas.ir.layers import Conv, Dropout
from hwnas.ir.network import Network, build_network
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import check_weights, random_weights
from tests.lower.networks import network_of

torch.set_num_threads(1)

NETWORK = build_network((3, 16, 16), [("stem", Stem(8)), ("block", MBConv(8, se_ratio=0.25)), ("head", Head(5))])


def test_keys_shapes_and_types_are_the_networks() -> None:
    weights = random_weights(NETWORK)
    assert {name: array.shape for name, array in weights.items()} == NETWORK.weight_shapes
    assert list(weights) == list(NETWORK.weight_shapes)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    check_weights(NETWORK, weights)


def test_a_seed_repeats_and_another_differs() -> None:
    first, again, other = random_weights(NETWORK, 1), random_weights(NETWORK, 1), random_weights(NETWORK, 2)
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_draws_depend_on_the_name_not_on_what_comes_before() -> None:
    shallow = build_network((8, 16, 16), [("block", ConvBlock(8))])
    deep = build_network((8, 16, 16), [("before", ConvBlock(8, activation=None)), ("block", ConvBlock(8))])
    alone, after = random_weights(shallow), random_weights(deep)
    for name in shallow.weight_shapes:
        assert np.array_equal(alone[name], after[name])
    assert not np.array_equal(after["before/conv.weight"], after["block/conv.weight"])


def test_batch_norms_are_not_the_identity() -> None:
    weights = random_weights(NETWORK)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert np.std(weights[f"stem/bn.{name}"]) > 0.05


@pytest.mark.parametrize("blocks", [
    [("stem", Stem(16)), *((f"layer{i}", MBConv(16, 3, 4, se_ratio=0.25, activation="silu", residual=False)) for i in range(25))],
    [("stem", Stem(16)), *((f"layer{i}", MBConv(16, 3, 4)) for i in range(25))],
    [("stem", Stem(16)), *((f"layer{i}", ShuffleUnit(16, 3, xception=True)) for i in range(25))],
    [(f"layer{i}", ConvBlock(16, 3, activation="hardswish")) for i in range(60)],
], ids=["linear bottlenecks with gates", "residuals", "shuffle units", "plain"])
def test_activations_stay_of_order_one_in_deep_networks(blocks: list) -> None:
    network = build_network((3, 16, 16), blocks)
    module = to_torch(network, random_weights(network)).eval()
    magnitudes: list[float] = []
    for name, child in module.named_children():
        if "/se_" in name:  # a gate's few hidden units may all be off
            continue
        child.register_forward_hook(lambda _, inputs, output: magnitudes.append(output.square().mean().sqrt().item()))
    with torch.no_grad():
        module(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert len(magnitudes) > 100
    assert min(magnitudes) > 0.05 and max(magnitudes) < 20


def _broken(change) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = dict(random_weights(NETWORK))
    change(weights)
    return weights


def _poke(name: str, value: float):
    def change(weights: dict[str, np.ndarray]) -> None:
        weights[name] = weights[name].copy()
        weights[name].flat[-1] = value
    return change


@pytest.mark.parametrize(("change", "words"), [
    (lambda w: w.pop("block/expand_bn.running_var"), ["block/expand_bn.running_var", "missing"]),
    (lambda w: w.update({"head/extra.weight": np.zeros(3, np.float32)}), ["head/extra.weight", "no array"]),
    (lambda w: w.update({"stem/conv.weight": np.zeros((8, 3, 5, 5), np.float32)}),
     ["stem/conv.weight", "(8, 3, 5, 5)", "(8, 3, 3, 3)"]),
    (_poke("block/project_conv.weight", np.nan), ["block/project_conv.weight", "NaN"]),
    (_poke("head/classifier.bias", np.inf), ["head/classifier.bias", "infinity"]),
    (_poke("stem/bn.running_mean", -np.inf), ["stem/bn.running_mean", "infinity"]),
    (_poke("stem/bn.running_var", -0.5), ["stem/bn.running_var", "-0.5"]),
    (lambda w: w.update({"stem/bn.bias": np.full(8, 1e300)}), ["stem/bn.bias", "infinity"]),
    (lambda w: w.update({"stem/bn.bias": np.zeros(8, np.int64)}), ["stem/bn.bias", "int64"]),
    (lambda w: w.update({"stem/bn.bias": np.array(["a"] * 8, object)}), ["stem/bn.bias", "object"]),
])
def test_broken_weights_are_refused_by_name(change, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        check_weights(NETWORK, _broken(change))
    assert all(word in str(error.value) for word in words)


def test_a_network_without_weights_takes_none() -> None:
    network: Network = network_of(lambda net, x: net.add("dropout", Dropout(), x))
    check_weights(network, random_weights(network))
    with pytest.raises(InputError, match=r"conv\.weight"):
        check_weights(network, random_weights(network_of(lambda net, x: net.add("conv", Conv(2), x))))
