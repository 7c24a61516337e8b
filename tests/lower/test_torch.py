"""The PyTorch lowering: names, counts, training, memory formats, and the numbers of published blocks written out by hand."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.blocks import ConvBlock, Head, MBConv, SeparableConv, ShuffleUnit, Stem
from hwnas.ir.layers import ACTIVATIONS, ChannelShuffle, ChannelSlice, Concat
from hwnas.ir.network import INPUT, Network, build_network
from hwnas.lower.torch import get_weights, load_weights, to_torch
from hwnas.lower.weights import random_weights
from tests.lower.networks import BLOCK_SHAPE, BLOCKS, PRIMITIVES, network_of, networks

torch.set_num_threads(1)

MIXED = build_network((3, 32, 32), [
    ("stem", Stem(8, pool=True)), ("gated", MBConv(8, 5, 3, se_ratio=0.25, activation="silu")), ("down", ShuffleUnit(20, 3, 2)),
    ("shuffle", ShuffleUnit(20, 5)), ("xception", ShuffleUnit(20, 3, xception=True)),
    ("separable", SeparableConv(12, activation="hardswish")), ("head", Head(5, 16, dropout=0.2))])


def images_for(network: Network, batch_size: int = 2) -> torch.Tensor:
    return torch.randn(batch_size, *network.input_shape, generator=torch.Generator().manual_seed(3))


@settings(max_examples=20, deadline=None)
@given(networks())
def test_the_state_dict_is_the_networks_weights(network: Network) -> None:
    module = to_torch(network)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == network.weight_shapes
    assert sum(parameter.numel() for parameter in module.parameters()) == network.parameters


@settings(max_examples=30, deadline=None)
@given(networks())
def test_macs_are_half_of_what_torch_counts_as_flops(network: Network) -> None:
    module = to_torch(network).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images_for(network, 1))
    assert network.macs == counter.get_total_flops() / 2


def test_weights_go_in_and_come_out_unchanged() -> None:
    weights = random_weights(MIXED)
    module = to_torch(MIXED)
    load_weights(module, weights)
    out = get_weights(module)
    assert all(np.array_equal(out[name], array) for name, array in weights.items())
    out["stem/conv.weight"][:] = 0  # a copy, not the module's own memory
    assert all(np.array_equal(array, weights[name]) for name, array in get_weights(module).items())


def test_a_plain_state_dict_loads_strictly() -> None:
    """A safetensors file carries no version metadata, for which torch's batch norm would demand its batch counter."""
    weights = {name: torch.from_numpy(array) for name, array in random_weights(MIXED).items()}
    module = to_torch(MIXED)
    module.load_state_dict(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    weights.pop("stem/bn.running_var")
    with pytest.raises(RuntimeError, match=r"stem/bn\.running_var"):
        module.load_state_dict(weights)


def test_refused_weights_leave_the_module_unchanged() -> None:
    module = to_torch(MIXED, random_weights(MIXED, 1))
    before = get_weights(module)
    broken = random_weights(MIXED, 2)
    broken["head/classifier.bias"][0] = np.nan
    with pytest.raises(InputError, match=r"head/classifier\.bias"):
        load_weights(module, broken)
    assert all(np.array_equal(array, before[name]) for name, array in get_weights(module).items())


def test_initial_weights_follow_the_seed_and_leave_torchs_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (get_weights(to_torch(MIXED, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["stem/conv.weight"], other["stem/conv.weight"])


def test_initial_weights_are_those_of_the_papers() -> None:
    network = build_network((3, 8, 8), [("a", ConvBlock(256, 3)), ("b", SeparableConv(256, 5)), ("head", Head(1000))])
    weights = get_weights(to_torch(network))
    for name, deviation in {"a/conv": (2 / (9 * 256)) ** 0.5, "b/depthwise_conv": (2 / 25) ** 0.5,
                            "b/pointwise_conv": (2 / 256) ** 0.5, "head/classifier": 256**-0.5}.items():
        assert np.std(weights[f"{name}.weight"]) == pytest.approx(deviation, rel=0.05)
        assert np.mean(weights[f"{name}.weight"]) == pytest.approx(0, abs=deviation / 10)
    for name, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
        assert np.all(weights[f"a/bn.{name}"] == value)
    assert np.all(weights["head/classifier.bias"] == 0)


def test_residual_blocks_start_as_the_identity_and_shortcuts_untouched() -> None:
    network = build_network((3, 8, 8), [
        ("a", MBConv(16, 3, 3, residual=False)), ("b", MBConv(16, 3, 3)), ("c", MBConv(16, 5, 6))])
    module = to_torch(network)
    images = images_for(network, 4)
    features = to_torch(build_network((3, 8, 8), [("a", MBConv(16, 3, 3, residual=False))]),
                        {name: array for name, array in get_weights(module).items() if name.startswith("a/")})
    assert features(images).abs().sum() > 0
    assert torch.equal(module(images), features(images))


@pytest.mark.parametrize("name", [name for name in BLOCKS if BLOCKS[name].kind != "identity"])
def test_gradients_reach_every_parameter_and_the_input(name: str) -> None:
    network = block_network(BLOCKS[name], BLOCK_SHAPE)
    module = to_torch(network, random_weights(network))
    images = images_for(network, 4).requires_grad_()
    output = module(images)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    for parameter in module.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    reached = [parameter.grad.abs().sum() > 0 for parameter in module.parameters()]  # type: ignore[union-attr]
    assert all(reached)


@pytest.mark.parametrize("name", [*(f"conv, {activation}" for activation in ACTIVATIONS), "conv read twice, bn",
                                  "activation beside its input", "activation of an activation",
                                  "slices of a shuffle by parity", "resolution after linear", "shuffle"])
def test_gradients_equal_finite_differences(name: str) -> None:
    """Activations overwrite their input where nothing else reads it; a wrong gradient would be the price of a mistake."""
    network = PRIMITIVES[name]
    module = to_torch(network, random_weights(network)).double().train()
    images = images_for(network).double().requires_grad_()
    assert torch.autograd.gradcheck(module, (images,), atol=1e-4)


def test_training_steps_reduce_the_loss_and_move_the_statistics() -> None:
    module = to_torch(MIXED).train()
    images, labels = images_for(MIXED, 16), torch.arange(16) % 5
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert not np.allclose(get_weights(module)["stem/bn.running_var"], 1, atol=1e-3)


def test_dropout_acts_in_training_alone() -> None:
    network = build_network((64, 1, 1), [("head", Head(8, dropout=0.5))])
    module = to_torch(network, random_weights(network))
    images = images_for(network)
    assert not torch.equal(module.train()(images), module(images))
    assert torch.equal(module.eval()(images), module(images))


def test_a_network_without_nodes_is_the_identity() -> None:
    images = images_for(PRIMITIVES["nothing"])
    assert to_torch(PRIMITIVES["nothing"])(images) is images


def test_the_input_is_never_overwritten() -> None:
    for network in PRIMITIVES.values():
        images = images_for(network)
        before = images.clone()
        with torch.no_grad():
            to_torch(network).eval()(images)
        assert torch.equal(images, before)


def _plain_shuffle_unit(x: torch.Tensor, w: dict[str, torch.Tensor], prefix: str, steps: list[tuple[str, bool]], stride: int
                        ) -> torch.Tensor:
    """Convolutions with batch norm, one after the other; the bool says whether ReLU follows."""
    for name, relu in steps:
        weight = w[f"{prefix}{name}_conv.weight"]
        depthwise = "depthwise" in name
        x = F.conv2d(x, weight, stride=stride if depthwise else 1, padding=weight.shape[2] // 2,
                     groups=len(weight) if depthwise else 1)
        stride = 1 if depthwise else stride
        statistics = [w[f"{prefix}{name}_bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *statistics)
        x = F.relu(x) if relu else x
    return x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("xception", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shuffle_units_are_those_of_single_path_one_shot(stride: int, xception: bool, memory_format: torch.memory_format) -> None:
    """Guo et al., arXiv 1904.00420: channel parity splits the input, the untouched or projected half comes first."""
    block = ShuffleUnit(12 if stride == 1 else 30, 3 if xception else 5, stride, 7, xception)
    network = block_network(block, (12, 9, 10))
    arrays = random_weights(network)
    w = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x = images_for(network).to(memory_format=memory_format)
    main = ([("depthwise1", False), ("pointwise1", True), ("depthwise2", False), ("pointwise2", True), ("depthwise3", False),
             ("pointwise3", True)] if xception else [("pointwise1", True), ("depthwise", False), ("pointwise2", True)])
    if stride == 1:
        passed, entering = x[:, 0::2], x[:, 1::2]
    else:
        passed = _plain_shuffle_unit(x, w, "block/projection_", [("depthwise", False), ("pointwise", True)], 2)
        entering = x
    expected = torch.cat([passed, _plain_shuffle_unit(entering, w, "block/", main, stride)], 1)
    with torch.no_grad():
        actual = to_torch(network, arrays).eval()(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 3, 6, 12])
def test_a_shuffle_transposes_groups_and_keeps_the_memory_format(groups: int, memory_format: torch.memory_format) -> None:
    network = network_of(lambda net, x: net.add("shuffle", ChannelShuffle(groups), x), (12, 5, 4))
    images = images_for(network).to(memory_format=memory_format)
    output = to_torch(network)(images)
    order = np.arange(12).reshape(groups, 12 // groups).T.ravel()
    assert torch.equal(output, images[:, order.tolist()])
    assert output.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_every_slice_of_a_shuffle_has_the_right_channels(groups: int) -> None:
    order = np.arange(12).reshape(groups, 12 // groups).T.ravel()
    images = images_for(network_of(lambda net, x: x, (12, 2, 2)))
    for start in range(12):
        for stop in range(start + 1, 13):
            network = network_of(lambda net, x, start=start, stop=stop: net.add(
                "slice", ChannelSlice(start, stop), net.add("shuffle", ChannelShuffle(groups), x)), (12, 2, 2))
            assert torch.equal(to_torch(network)(images), images[:, order[start:stop].tolist()])


@pytest.mark.parametrize("training", [False, True])
def test_channels_last_gives_the_same_numbers_and_stays(training: bool) -> None:
    weights = random_weights(MIXED)
    plain = to_torch(MIXED, weights).train(training)
    last = to_torch(MIXED, weights).train(training).to(memory_format=torch.channels_last)
    for module in (plain, last):
        module.get_submodule("head/dropout").eval()
    left = []
    for name, child in last.named_children():
        child.register_forward_hook(lambda _, inputs, output, name=name: left.append(name) if (
            output.dim() == 4 and output.shape[2] > 1 and not name.endswith(("/passed", "/entering"))
            and not output.is_contiguous(memory_format=torch.channels_last)) else None)
    images = images_for(MIXED)
    torch.testing.assert_close(last(images.to(memory_format=torch.channels_last)), plain(images), rtol=1e-3, atol=1e-4)
    assert left == []


def test_autocast_computes_in_bfloat16_and_stays_close() -> None:
    module = to_torch(MIXED, random_weights(MIXED)).eval()
    images = images_for(MIXED)
    with torch.no_grad():
        expected = module(images)
        with torch.autocast("cpu", torch.bfloat16):
            actual = module(images)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_export_takes_the_module() -> None:
    module = to_torch(MIXED, random_weights(MIXED)).eval()
    images = images_for(MIXED)
    program = torch.export.export(module, (images,))
    torch.testing.assert_close(program.module()(images), module(images))


def test_compile_takes_the_module_as_one_graph() -> None:
    module = to_torch(MIXED, random_weights(MIXED)).eval()
    images = images_for(MIXED)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), module(images))


def test_a_copy_is_independent() -> None:
    module = to_torch(MIXED, random_weights(MIXED)).eval()
    images = images_for(MIXED)
    expected = module(images)
    clone = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(clone(images), expected)
    assert not torch.equal(module(images), expected)


def test_a_replaced_submodule_is_used() -> None:
    """Conversions such as SyncBatchNorm's exchange submodules by name."""
    module = to_torch(MIXED, random_weights(MIXED)).eval()
    module.add_module("head/classifier", torch.nn.Flatten())
    assert module(images_for(MIXED)).shape == (2, 16)


def test_intermediate_tensors_are_freed_as_soon_as_nothing_reads_them() -> None:
    network = build_network((4, 8, 8), [(f"layer{index}", MBConv(4, expansion=2)) for index in range(8)])
    module = to_torch(network).eval()
    alive: list[weakref.ref[torch.Tensor]] = []
    peak = 0

    def count(_module, _inputs, output: torch.Tensor) -> None:
        nonlocal peak
        alive.append(weakref.ref(output))
        peak = max(peak, len({id(tensor) for ref in alive if (tensor := ref()) is not None}))

    for child in module.children():
        child.register_forward_hook(count)
    gc.disable()  # reference counts alone must do it
    try:
        with torch.no_grad():
            module(images_for(network))
    finally:
        gc.enable()
    assert len(alive) == len(network.nodes) > 50
    assert peak == 3  # the residual, a layer's input, its output


def test_what_the_output_does_not_need_is_not_computed() -> None:
    module = to_torch(PRIMITIVES["dead end"])
    module.get_submodule("unused").register_forward_hook(lambda *_: pytest.fail("a dead node was run"))
    assert module(images_for(PRIMITIVES["dead end"])).shape == (2, 4, 9, 8)


def test_concat_of_the_input_with_itself() -> None:
    network = network_of(lambda net, x: net.add("concat", Concat(), x, x))
    images = images_for(network)
    assert network.nodes[0].inputs == (INPUT, INPUT)
    assert torch.equal(to_torch(network)(images), torch.cat([images, images], 1))
