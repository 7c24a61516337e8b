"""Bit-width spaces against counts by hand, and precisions as options of any space of layers in order."""

import json
import math

import numpy as np
import pytest

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Sequence, ShuffleUnit, Stem
from hwnas.ir.costs import BitOpsCost, MacsCost
from hwnas.ir.documents import space_from_dict
from hwnas.ir.quantized import BITS, HalfPrecision, Quantized
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.lower.onnx import to_onnx
from hwnas.spaces.bit_widths import PRECISIONS, build_resnet_bits, build_resnet_bits_cpu, with_precisions
from hwnas.spaces.load import load_space
from hwnas.spaces.resnet import build_resnet
from tests.lower.test_parity import run_onnxruntime, run_openvino, run_torch
from tests.lower.test_quantized import exact_images, exact_weights

SPACE = SearchSpace("mixed", (3, 16, 16), (
    Fixed("stem", Stem(8, stride=1)),
    Decision("a", {"shuffle": ShuffleUnit(8), "skip": Identity()}),
    Decision("b", {"conv": ConvBlock(8), "linear": ConvBlock(8, activation=None)}),
    Decision("c", {"one": MBConv(8), "two": Sequence((ConvBlock(16), MBConv(8), Identity(), MBConv(8)))}),
    Fixed("head", Head(4))), "A space.")


@pytest.mark.parametrize(("depth", "blocks", "costs"), [
    # (Multiply-accumulates without first convolution and classifier) * k^2: 6.782, 15.260, 27.129 G and 14.181, 31.907, 56.724 G.
    (18, 8, {2: 6_782_189_568, 3: 15_259_926_528, 4: 27_128_758_272}),
    (34, 16, {2: 14_180_941_824, 3: 31_907_119_104, 4: 56_723_767_296})])
def test_bit_operations_of_uniform_resnets(depth: int, blocks: int, costs: dict[int, int]) -> None:
    space = build_resnet_bits(depth)
    assert space.size == 16**blocks and space.input_shape == (3, 224, 224)
    plain = build_resnet(depth)
    quantised_macs = plain.macs - 118_013_952 - 512_000
    for bits, expected in costs.items():
        network = space.network(space.architecture({decision.name: f"w{bits}_a{bits}" for decision in space.decisions}))
        assert BitOpsCost().network_cost(network) == expected == quantised_macs * bits**2
        assert BitOpsCost(True).network_cost(network) == expected + (118_013_952 + 512_000) * 1024
        assert network.macs == plain.macs
        counts = network.parameters_by_kind
        assert counts.pop("quantizers") == 2 * blocks
        assert counts == {kind: count for kind, count in plain.parameters_by_kind.items() if kind != "quantizers"}


def test_all_pairs_of_bits_are_options_of_every_residual_block() -> None:
    space = build_resnet_bits_cpu(10)
    assert space.size == 16**6
    for decision in space.decisions:
        assert list(decision.options) == [f"w{w}_a{a}" for w in (1, 2, 3, 4) for a in (1, 2, 3, 4)]
        assert all(f"w{block.weight_bits}_a{block.activation_bits}" == name and not block.signed_input and not block.integer
                   for name, block in decision.options.items())


def test_a_budget_of_bit_operations_is_met() -> None:
    space = build_resnet_bits_cpu()
    trellis = Trellis(space)
    cost = BitOpsCost()
    lightest, heaviest = (cost.network_cost(space.network(space.architecture({one.name: name for one in space.decisions})))
                          for name in ("w1_a1", "w4_a4"))
    assert heaviest == 16 * lightest
    macs = space.network(trellis.sample(1, seed=0)[0]).macs
    assert lightest < macs  # the first convolution and the classifier do not count
    assert sum(cost.edge_cost(edge) for edge in space.path(trellis.sample(1, seed=0)[0])) <= heaviest


def test_options_are_multiplied_and_all_else_stays() -> None:
    space = with_precisions(SPACE, ("int8", "bf16", "fp32"))
    assert space.name == "mixed+int8+bf16+fp32" and space.description == "A space.; in int8 or bf16 or fp32"
    assert [list(decision.options) for decision in space.decisions] == [
        ["shuffle_int8", "shuffle_bf16", "shuffle_fp32", "skip"],
        ["conv_int8", "conv_bf16", "conv_fp32", "linear_int8", "linear_bf16", "linear_fp32"],
        ["one_int8", "one_bf16", "one_fp32", "two_int8", "two_bf16", "two_fp32"]]
    assert (space.layers[0], space.layers[-1]) == (SPACE.layers[0], SPACE.layers[-1])
    for before, after in zip(SPACE.decisions, space.decisions, strict=True):
        assert all(after.options[name] == block for option, block in before.options.items()
                   for name in (option, f"{option}_fp32") if name in after.options)
    assert space_from_dict(space.to_dict()) == space


def test_signs_follow_all_that_can_come_before() -> None:
    a, b, c = (decision.options for decision in with_precisions(SPACE).decisions)
    assert a["shuffle_int8"] == Quantized(ShuffleUnit(8), 8, 8, signed_input=False, integer=True)  # after the stem's ReLU
    assert b["conv_int8"] == Quantized(ConvBlock(8), 8, 8, signed_input=False, integer=True)  # a shuffle unit keeps the sign
    assert c["one_int8"] == Quantized(MBConv(8), 8, 8, signed_input=True, integer=True)  # one option before has no ReLU
    assert c["two_int8"] == Sequence((
        Quantized(ConvBlock(16), 8, 8, True, True), Quantized(MBConv(8), 8, 8, False, True), Identity(),
        Quantized(MBConv(8), 8, 8, True, True)))


def test_the_first_layer_reads_images_which_have_signs() -> None:
    space = SearchSpace("atom", (3, 8, 8), (Decision("a", {"conv": ConvBlock(8)}), Fixed("head", Head(4))))
    assert with_precisions(space).decisions[0].options["conv_int8"] == Quantized(ConvBlock(8), 8, 8, True, True)


def test_any_bits_are_options_of_any_space() -> None:
    space = with_precisions(SPACE, ("w1_a2", "w32_a8", "w8_a8", "int8", "fp32"))
    a, b, _ = (decision.options for decision in space.decisions)
    assert list(a) == ["shuffle_w1_a2", "shuffle_w32_a8", "shuffle_w8_a8", "shuffle_int8", "shuffle_fp32", "skip"]
    assert a["shuffle_w1_a2"] == Quantized(ShuffleUnit(8), 1, 2, signed_input=False)
    assert a["shuffle_w32_a8"] == Quantized(ShuffleUnit(8), 32, 8, signed_input=False)
    assert b["conv_w8_a8"] == Quantized(ConvBlock(8), 8, 8, signed_input=False) != b["conv_int8"]


def test_block_channels_and_bits_jointly() -> None:
    bits = ("w1_a1", "w2_a2", "w3_a3", "w4_a4", "w8_a8", "fp32")
    plain, space = load_space("spos-blocks-channels-cpu"), load_space("+".join(("spos-blocks-channels-cpu", *bits)))
    assert space.size == (12 * 6) ** 8
    for before, after in zip(plain.decisions, space.decisions, strict=True):
        assert list(after.options) == [f"{option}_{each}" for option in before.options for each in bits]
    trellis = Trellis(space, BitOpsCost(count_full_precision=True))
    smallest, largest = trellis.cheapest(), trellis.dearest()
    assert {name.rpartition("x")[2] for name in smallest.choices.values()} == {"06_w1_a1"}
    assert {name.rpartition("x")[2] for name in largest.choices.values()} == {"14_fp32"}
    assert trellis.max_cost() == 1024 * space.network(largest).macs
    budget = trellis.min_cost() + 0.1 * (trellis.max_cost() - trellis.min_cost())
    for path in trellis.sample(5, max_cost=budget, seed=0):
        assert trellis.min_cost() <= BitOpsCost(True).network_cost(space.network(path)) <= budget


def test_conditions_hold_in_every_precision() -> None:
    deep = {"block": MBConv(8), "skip": Identity()}
    space = SearchSpace("deep", (8, 8, 8), (
        Decision("a", deep), Decision("b", deep, after={"block": ["block"]}), Decision("c", deep, after={"block": ["block"]})))
    changed = with_precisions(space, ("int8", "fp16", "fp32"))
    assert (space.size, changed.size) == (4, 1 + 3 + 9 + 27)
    assert set(changed.decisions[1].after) == {"block_int8", "block_fp16", "block_fp32"}


def test_work_and_bit_operations_of_a_path() -> None:
    space = with_precisions(SPACE, ("int8", "fp16", "fp32"))
    for path in Trellis(space).sample(20, seed=0):
        plain = SPACE.architecture({name: option.rpartition("_")[0] or option for name, option in path.choices.items()})
        assert space.network(path).macs == SPACE.network(plain).macs
        macs = {name: MacsCost().edge_cost(edge) for name, edge in zip([layer.name for layer in space.layers],
                                                                      space.path(path), strict=True)}
        bits = {"int8": 8, "fp16": 16}
        assert BitOpsCost().network_cost(space.network(path)) == sum(
            macs[name] * bits.get(option.rpartition("_")[2], 0)**2 for name, option in path.choices.items())


@pytest.mark.parametrize("name", ["mobile-cpu", "spos-cpu", "fbnet-cpu"])
def test_published_spaces_take_precisions(name: str) -> None:
    plain, space = load_space(name), load_space(f"{name}+int8+fp32")
    assert space.name == f"{name}+int8+fp32"
    for before, after in zip(plain.decisions, space.decisions, strict=True):
        free = sum(block.is_free for block in before.options.values())
        assert len(after.options) == 2 * len(before.options) - free
    path = Trellis(space).sample(1, seed=1)[0]
    operators = {node.op_type for node in to_onnx(space.network(path)).graph.node}
    assert {"Conv", "QuantizeLinear", "DequantizeLinear", "Gemm"} <= operators


def test_precisions_follow_any_reference(tmp_path) -> None:
    path, other = tmp_path / "mine.json", tmp_path / "a+b.json"
    path.write_text(json.dumps(SPACE.to_dict()))
    other.write_text(path.read_text())
    assert load_space(f"{path}+fp16+fp32") == with_precisions(SPACE, ("fp16", "fp32"))
    assert load_space(str(path)) == load_space(str(other)) == SPACE


@pytest.mark.parametrize(("make", "words"), [
    (lambda: load_space("mobile-cpu+int4"), ["int8, bf16, fp16, fp32", "w2_a4", "'int4'"]),
    (lambda: load_space("mobile-cpu+w9_a4+fp32"), ["1 to 8 or 32", "'w9_a4+fp32'"]),
    (lambda: load_space("mobile-cpu+w32_a32"), ["fp32 for w32_a32"]),
    (lambda: load_space("mobile-cpu+int8+int8"), ["once", "'int8+int8'"]),
    (lambda: load_space("nothing+int8"), ["A space is one of", "'nothing'"]),
    (lambda: with_precisions(SPACE, ()), ["one or more"]),
    (lambda: with_precisions(build_resnet_bits_cpu()), ["full precision", "stage1_1"])])
def test_what_cannot_be_is_refused(make, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words)


def test_every_precision_is_another_block() -> None:
    blocks = [make(MBConv(8), True) for make in PRECISIONS.values()]
    assert len(set(blocks)) == len(blocks) == 4 + len(BITS) ** 2 - 1
    assert {type(block) for block in blocks} == {Quantized, HalfPrecision, MBConv}


@pytest.mark.parametrize(("precisions", "sharing"), [
    (("int8", "fp16", "fp32"), "options"), *((("w1_a1", "w2_a4", "w8_a8", "w1_a32", "fp32"), sharing)
                                             for sharing in ("options", "channels", "elastic"))])
def test_a_supernet_trains_and_its_networks_compute_the_same(precisions: tuple[str, ...], sharing: str) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from hwnas.supernet import build_supernet, extract

    space = with_precisions(SPACE, precisions)
    supernet = build_supernet(space, sharing=sharing)
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(supernet.parameters(), 0.05)
    for path in Trellis(space).sample(6, seed=0):
        loss = torch.nn.functional.cross_entropy(supernet.train()(images, path), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item())
        network = extract(supernet.eval(), path)
        with torch.no_grad():
            torch.testing.assert_close(network(images), supernet(images, path))


@pytest.mark.parametrize("name", ["resnet18-bits", "resnet34-bits", "resnet-bits-cpu"])
def test_a_random_network_means_the_same_everywhere(name: str) -> None:
    """With weights and images on a grid nothing is rounded by accident, so a whole network can be compared to float's end."""
    space = load_space(name)
    network = space.network(Trellis(space).sample(1, seed=8)[0])
    weights, images = exact_weights(network), exact_images(network)[:1]
    expected = run_torch(network, weights, images)
    model = to_onnx(network, weights).SerializeToString()
    assert np.ptp(expected) > 1
    for run in (run_onnxruntime, run_openvino):
        assert np.abs(run(model, images) - expected).max() < 1e-5 * np.abs(expected).max()
