"""Networks of a sliced supernet are narrow networks built apart, and share exactly what the rule says.

Which elements a network uses is found by numbering all elements of the supernet and extracting the network: the numbers say.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.ir.blocks import BLOCKS, ConvBlock, Head, Identity, MBConv, Resolution, Sequence, ShuffleUnit, Stem
from hwnas.ir.mobile_blocks import FBNetBlock
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.lower.straight_through import Quantizer, follow_statistics
from hwnas.spaces import SPACES
from hwnas.spaces.bit_widths import with_precisions
from hwnas.spaces.plain_conv import build_plain_conv
from hwnas.spaces.spos import channel_options
from hwnas.supernet import SupernetEvaluator, extract, extract_weights
from hwnas.supernet.batchnorm import recalibrate_batch_norm
from hwnas.supernet.checkpoint import load_state
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.evaluate import fit_images
from hwnas.supernet.layered import LayeredSupernet, Weighed
from hwnas.supernet.loop import run_loop
from hwnas.supernet.single_path import Sandwich, SinglePath, sandwich_task, spos_task
from hwnas.supernet.sliced import SHARED_FIELDS, SlicedSupernet
from tests.supernet.samples import CLASSES, interrupt, tiny_space


def space_of(*layers, name="test", classes=CLASSES):
    """Layers between a stem of 8 channels at 8x8 and a head."""
    return SearchSpace(name, TensorShape(3, 16, 16), (Fixed("stem", Stem(8)), *layers, Fixed("head", Head(classes))))


def elastic_space():
    """Elastic resolution, width, kernel, expansion and depth; widths reach the following layers and the head."""
    blocks = {f"k{kernel}_e{expansion}_w{width}": MBConv(width, kernel, expansion)
              for kernel in (3, 5) for expansion in (1, 2, 3) for width in (6, 8)}
    return SearchSpace("elastic", TensorShape(3, 16, 16), (
        Decision("resolution", {"r12": Resolution(12), "r16": Resolution(16)}),
        Fixed("stem", Stem(8)), Decision("first", blocks), Decision("second", blocks | {"skip": Identity()}),
        Decision("gated", {f"w{width}": MBConv(width, 3, 2, 2, se_ratio=0.25, activation="hardswish") for width in (8, 16)}),
        Fixed("head", Head(CLASSES, 24, dropout=0.2))))


def joint_space():
    """Block, width and bit-width jointly."""
    units = channel_options(16, 2, ("shuffle_3x3", "xception"), (6, 10))
    blocks = {f"{name}_{bits}": Quantized(unit, *bits_of, signed_input=False)
              for name, unit in units.items() for bits, bits_of in {"w1a2": (1, 2), "w3a2": (3, 2), "w4a8": (4, 8)}.items()}
    return space_of(Decision("block", blocks | units | {"half": HalfPrecision(units["xception_x06"], "bf16")}), name="joint")


def any_bits_space():
    """Blocks, widths, kernels and every bit-width from 1 to 32 jointly, in layers that pass on more than one width."""
    units = channel_options(16, 2, ("shuffle_5x5", "xception"), (6, 10))
    widths = {f"k{kernel}_w{width}": MBConv(width, kernel, 2) for kernel in (3, 5) for width in (12, 16)}
    return with_precisions(space_of(Decision("block", units), Decision("width", widths | {"skip": Identity()}), name="any-bits"),
                           ("w1_a1", "w2_a2", "w3_a4", "w8_a8", "w1_a32", "w32_a2", "fp32"))


SMALL = {"elastic": elastic_space(), "joint": joint_space(), "any-bits": any_bits_space(), "tiny": tiny_space(),
         "plain-conv-small": build_plain_conv(8, CLASSES, 3)}
CASES = [(name, sharing) for name in SMALL for sharing in ("channels", "elastic")] + [
    ("ofa-cpu", "elastic"), ("spos-blocks-channels-cpu", "channels"), ("resnet-bits-cpu", "channels"),
    ("fbnet-cpu", "elastic")]


def space_called(name):
    return SMALL.get(name) or SPACES[name]()


def largest(space):
    return Trellis(space, None).best({decision.name: [score(block) for block in decision.options.values()]
                                      for decision in space.decisions})


def score(block):
    """The most of everything, and never a skip."""
    fields = {**dataclasses.asdict(block), "skipped": isinstance(block, Identity)}
    sizes = [fields.get(name) or 0 for name in ("size", "out_channels", "mid_channels", "kernel", "expansion")]
    return float(sum(sizes) - 1000 * fields["skipped"])


@torch.no_grad()
def used(supernet, seed=0):
    """Weights and statistics that are none of the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in supernet.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif not name.endswith("scale"):
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return supernet


def numbered(supernet):
    """A copy whose elements are their own positions, counted through all of the state."""
    count = 0
    supernet = copy.deepcopy(supernet)
    for tensor in supernet.state_dict().values():
        tensor.copy_(torch.arange(count, count + tensor.numel(), dtype=torch.float32).view(tensor.shape))
        count += tensor.numel()
    assert count < 2**24  # floats still tell them apart
    return supernet


def positions(numbers, architecture):
    """For each of a network's arrays, the positions of its elements in the supernet, of which a numbered copy is given."""
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in extract_weights(numbers, architecture).items()}


def joined(arrays):
    return torch.cat([array.flatten() for array in arrays])


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def gradients(supernet):
    """Of every element of the state, zero where there is none."""
    parameters = dict(supernet.named_parameters())
    return flat(torch.zeros_like(tensor) if name not in parameters or parameters[name].grad is None else parameters[name].grad
                for name, tensor in supernet.state_dict().items())


# A network of the supernet and one built apart


@pytest.mark.parametrize(("name", "sharing"), CASES)
def test_a_path_equals_a_narrow_network_built_apart(name, sharing):
    space = space_called(name)
    supernet = used(SlicedSupernet(space, 1, sharing))
    numbers = numbered(supernet)
    paths = [largest(space), *Trellis(space).sample(2 if name in SPACES else 8, seed=2)]
    images = torch.randn(3, *space.input_shape, generator=torch.Generator().manual_seed(0))
    for architecture in paths:
        module = extract(supernet, architecture)
        assert {name: array.shape for name, array in extract_weights(supernet, architecture).items()
                } == space.network(architecture).weight_shapes
        where = positions(numbers, architecture)
        for training in (False, True):
            supernet.train(training), module.train(training)
            supernet.zero_grad(set_to_none=True), module.zero_grad(set_to_none=True)
            torch.manual_seed(0)  # for dropout
            found = supernet(images, architecture)
            torch.manual_seed(0)
            expected = module(fit_images(images, module.network.input_shape))
            assert torch.equal(found, expected), architecture
            targets = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
            functional.mse_loss(found, targets).backward()
            functional.mse_loss(expected, targets).backward()
            gradient = gradients(supernet)
            for weight, parameter in module.named_parameters():
                torch.testing.assert_close(gradient[where[weight]], parameter.grad, rtol=1e-5, atol=1e-7)
            gradient[joined(where.values())] = 0
            assert not gradient.any()  # exactly none outside of the slices
        state = flat(supernet.state_dict().values())  # and training moved the same statistics
        for weight, tensor in module.state_dict().items():
            assert torch.equal(state[where[weight]], tensor), weight


@pytest.mark.parametrize("sharing", ["channels", "elastic"])
def test_scales_that_follow_statistics_are_those_of_a_narrow_network(sharing):
    space = space_called("any-bits")
    supernet = used(SlicedSupernet(space, 1, sharing)).train()
    scales = follow_statistics(supernet)
    assert set(scales) == {name for name in supernet.state_dict() if name.endswith(".scale")}
    images = torch.randn(4, *space.input_shape, generator=torch.Generator().manual_seed(0))
    for architecture in Trellis(space).sample(8, seed=2):
        before = {name: scale.clone() for name, scale in scales.items()}
        module = extract(supernet, architecture)
        own = follow_statistics(module)
        for factor in (1, 2):
            assert torch.equal(supernet(factor * images, architecture), module(factor * images))
        moved = {name for name, scale in scales.items() if not torch.equal(scale, before[name])}
        assert len(moved) == len(own) == sum(isinstance(each, Quantizer) for each in module.modules())
        assert sorted(float(scales[name]) for name in moved) == sorted(map(float, own.values()))
        assert torch.equal(supernet.eval()(images, architecture), module.eval()(images))
        supernet.train()


@pytest.mark.parametrize("name", ["elastic", "ofa-cpu", "plain-conv-small"])
def test_training_a_path_moves_the_statistics_of_its_slices_alone(name):
    space = space_called(name)
    supernet = used(SlicedSupernet(space)).train()
    before = flat(supernet.state_dict().values())
    architecture = Trellis(space).sample(1, seed=4)[0]
    supernet(torch.randn(4, *space.input_shape), architecture)
    moved = flat(supernet.state_dict().values()) != before
    assert moved.any()
    where = positions(numbered(supernet), architecture)
    moved[joined(array for name, array in where.items() if "running" in name)] = False
    assert not moved.any()


def test_the_slices_are_those_of_the_papers():
    space = space_of(Decision("width", {"w4": ConvBlock(4, 3), "w6": ConvBlock(6, 5)}), Decision("next", {
        "d3": MBConv(6, 3, 2), "d7": MBConv(8, 7, 3)}))
    supernet = SlicedSupernet(space)
    state = supernet.state_dict()
    weights = extract_weights(supernet, space.architecture({"width": "w4", "next": "d3"}))
    first, hidden, depthwise = (state[f"{layer}.weight"].numpy() for layer in (
        "width/w4/conv", "next/d3/expand_conv", "next/d3/depthwise_conv"))
    assert first.shape == (6, 8, 5, 5) and hidden.shape == (18, 6, 1, 1) and depthwise.shape == (18, 1, 7, 7)
    assert np.array_equal(weights["width/conv.weight"], first[:4, :, 1:4, 1:4])
    assert np.array_equal(weights["next/expand_conv.weight"], hidden[:8, :4])  # arXiv 1904.00420, sec. 3.4: W[:c_out, :c_in]
    assert np.array_equal(weights["next/depthwise_conv.weight"], depthwise[:8, :, 2:5, 2:5])
    assert np.array_equal(weights["next/depthwise_bn.running_var"], state["next/d3/depthwise_bn.running_var"][:8])
    assert np.array_equal(weights["head/classifier.weight"], state["head/head/classifier.weight"][:, :6])
    assert np.array_equal(weights["head/classifier.bias"], state["head/head/classifier.bias"])


def test_a_convolution_with_a_slice_is_that_of_torch():
    space = SearchSpace("one", TensorShape(5, 9, 9), (
        Decision("conv", {"small": ConvBlock(3, 3, activation=None), "large": ConvBlock(7, 5, activation=None)}),))
    supernet = used(SlicedSupernet(space)).eval()
    images, weight = torch.randn(2, 5, 9, 9), supernet.state_dict()["conv/small/conv.weight"]
    norm = [supernet.state_dict()[f"conv/small/bn.{name}"][:3] for name in ("running_mean", "running_var", "weight", "bias")]
    expected = functional.batch_norm(functional.conv2d(images, weight[:3, :, 1:4, 1:4], padding=1), *norm)
    torch.testing.assert_close(supernet(images, [0]), expected)


@pytest.mark.parametrize("name", ["ofa-cpu", "plain-conv-small", "resnet-bits-cpu", "elastic"])
def test_the_largest_network_has_all_weights(name):
    space = space_called(name)
    supernet = SlicedSupernet(space)
    numbers = numbered(supernet)
    where = joined(positions(numbers, largest(space)).values()).tolist()
    idle = [weight for weight, tensor in numbers.state_dict().items() if not set(tensor.flatten().tolist()) & set(where)]
    assert len(where) == len(set(where)) == sum(supernet.state_dict()[weight].numel() for weight in numbers.state_dict()
                                                if weight not in idle)
    apart = {"plain-conv-small": "_s2/", "resnet-bits-cpu": "_quantize.scale"}.get(name)  # other strides, other bits
    assert all(apart is not None and apart in weight for weight in idle)


def test_channel_search_stores_the_widest_blocks_alone():
    space = SPACES["spos-blocks-channels-cpu"]()
    widest = space.architecture({decision.name: "shuffle_3x3_x14" for decision in space.decisions})
    others = [space.architecture({decision.name: f"{kind}_x14" for decision in space.decisions})
              for kind in ("shuffle_5x5", "shuffle_7x7", "xception")]
    searched = [sum(np.prod(shape) for name, shape in space.network(each).weight_shapes.items() if name.startswith("stage"))
                for each in (widest, *others)]
    fixed = sum(np.prod(shape) for name, shape in space.network(widest).weight_shapes.items() if not name.startswith("stage"))
    state = SlicedSupernet(space, sharing="channels").state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == sum(searched) + fixed


# What shares


def sharers(space, sharing):
    """Groups of a decision's options whose networks share weights of its layer; the decision is the only one."""
    numbers = numbered(SlicedSupernet(space, 0, sharing))
    decision, = space.decisions
    taken = {}
    for option in decision.options:
        where = positions(numbers, space.architecture({decision.name: option}))
        taken[option] = {each for name, array in where.items() for each in array.flatten().tolist()
                         if name.startswith(f"{decision.name}/") and not name.endswith(".scale")}
    return {frozenset(other for other in taken if taken[other] & taken[option]) for option in taken if taken[option]}


def sets(*groups):
    return {frozenset(group.split()) for group in groups}


@pytest.mark.parametrize(("options", "channels", "elastic"), [
    ({"k3_x06": ShuffleUnit(8, 3, 1, 2), "k3_x14": ShuffleUnit(8, 3, 1, 6), "k5_x06": ShuffleUnit(8, 5, 1, 2),
      "k5_x14": ShuffleUnit(8, 5, 1, 6), "xception_x06": ShuffleUnit(8, 3, 1, 2, xception=True),
      "xception_x14": ShuffleUnit(8, 3, 1, 6, xception=True)},
     sets("k3_x06 k3_x14", "k5_x06 k5_x14", "xception_x06 xception_x14"),
     sets("k3_x06 k3_x14 k5_x06 k5_x14", "xception_x06 xception_x14")),
    ({"k3_e1": MBConv(8, 3, 1), "k3_e3": MBConv(8, 3, 3), "k3_w12": MBConv(12, 3, 6), "k5_e3": MBConv(8, 5, 3),
      "gated": MBConv(8, 3, 3, se_ratio=0.5), "swish": MBConv(8, 3, 3, activation="silu"), "skip": Identity()},
     sets("k3_e1 k3_e3 k3_w12", "k5_e3", "gated", "swish"), sets("k3_e1 k3_e3 k3_w12 k5_e3", "gated", "swish")),
    ({"f4_k3": ConvBlock(4, 3), "f8_k3": ConvBlock(8, 3), "f8_k5": ConvBlock(8, 5), "f4_s2": ConvBlock(4, 3, 2),
      "f8_s2": ConvBlock(8, 3, 2), "g2": ConvBlock(8, 3, groups=2), "depthwise": ConvBlock(8, 3, groups=8)},
     sets("f4_k3 f8_k3", "f8_k5", "f4_s2 f8_s2", "g2", "depthwise"), sets("f4_k3 f8_k3 f8_k5", "f4_s2 f8_s2", "g2", "depthwise")),
    ({"fp32": ConvBlock(8, 3), "int8": Quantized(ConvBlock(8, 3), 8, 8), "w1": Quantized(ConvBlock(4, 3), 1, 32),
      "bf16": HalfPrecision(ConvBlock(8, 3), "bf16"), "other": Quantized(MBConv(8), 8, 8)},
     sets("fp32 int8 w1 bf16", "other"), sets("fp32 int8 w1 bf16", "other")),
    ({"one": Sequence((MBConv(8, 3, 2),)), "two": Sequence((MBConv(12, 3, 3), MBConv(8, 3, 3))),
      "conv": Sequence((ConvBlock(8),))},
     sets("one two", "conv"), sets("one two", "conv")),
    ({"e1_g2": FBNetBlock(8, 3, 1, groups=2), "e2_g2": FBNetBlock(8, 3, 2, groups=2), "e2": FBNetBlock(8, 3, 2)},
     sets("e1_g2 e2_g2", "e2"), sets("e1_g2 e2_g2", "e2")),
])
def test_what_options_share(options, channels, elastic):
    space = space_of(Decision("searched", options))
    assert sharers(space, "channels") == channels
    assert sharers(space, "elastic") == elastic


def test_layers_never_share():
    space = elastic_space()
    where = joined(positions(numbered(SlicedSupernet(space)), largest(space)).values())
    assert len(where.unique()) == len(where)


def test_resolutions_share_everything():
    space = SPACES["ofa-cpu"]()
    numbers = numbered(SlicedSupernet(space))
    choices = dict(Trellis(space).sample(1, seed=1)[0].choices)
    one, other = (positions(numbers, space.architecture(choices | {"resolution": size})) for size in ("r24", "r32"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_grouped_convolutions_share_between_equal_widths_alone():
    options = {"k3_e1": FBNetBlock(8, 3, 1, groups=2), "k5_e1": FBNetBlock(8, 5, 1, groups=2),
               "k3_e2": FBNetBlock(8, 3, 2, groups=2)}
    space = space_of(Decision("searched", options))
    numbers = numbered(SlicedSupernet(space))
    first, kernel, width = (positions(numbers, space.architecture({"searched": option})) for option in options)
    convolution, depthwise = "searched/expand_conv.weight", "searched/depthwise_conv.weight"
    assert torch.equal(first[convolution], kernel[convolution])
    assert not torch.isin(first[convolution], width[convolution]).any()
    assert torch.isin(first[depthwise], kernel[depthwise]).all() and torch.isin(first[depthwise], width[depthwise]).all()


def test_quantisers_have_a_scale_for_each_number_of_bits():
    space = SPACES["resnet-bits-cpu"]()
    names = [name for name in SlicedSupernet(space).state_dict() if name.startswith("stage1_1/") and name.endswith(".scale")]
    assert names == [f"stage1_1/w1_a{bits}/{tensor}_quantize.scale" for bits in (1, 2, 3, 4) for tensor in ("input", "first_act")]


def test_the_rule_knows_every_number_that_a_block_has():
    """A new field that holds a size must be named in `SHARED_FIELDS`, or be among those in which blocks that share agree."""
    numbers = {field.name for block in BLOCKS.values() for field in dataclasses.fields(block)
               if field.type in (int, float, int | None)}
    assert numbers - SHARED_FIELDS["elastic"] == {"size", "stride", "dilation", "groups", "repeats", "se_ratio", "classes",
                                                  "dropout", "weight_bits", "activation_bits"}


# Weights as a state


def test_names_are_readable_and_stable():
    names = list(SlicedSupernet(elastic_space()).state_dict())
    assert names[:4] == [f"stem/stem/{name}" for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean")]
    assert {"first/k3_e1_w6/depthwise_conv.weight", "first/k3_e2_w6/expand_conv.weight", "gated/w8/se_expand.bias",
            "head/head/classifier.weight"} <= set(names)
    assert not any("skip" in name or "resolution" in name for name in names)
    grouped = space_of(Decision("width", {"w8": ConvBlock(8), "w12": ConvBlock(12)}), Fixed("grouped", ConvBlock(8, groups=4)))
    assert {"grouped/conv/conv.weight", "grouped/conv/conv@12x8x8.weight"} <= set(SlicedSupernet(grouped).state_dict())


@pytest.mark.parametrize("name", ["elastic", "joint"])
def test_a_state_goes_into_another_supernet(name, tmp_path):
    space = space_called(name)
    supernet, other = used(SlicedSupernet(space, 1)).eval(), SlicedSupernet(space, 2).eval()
    load_state(other, supernet.state_dict(), tmp_path)
    images = torch.randn(2, *space.input_shape)
    for architecture in Trellis(space).sample(5, seed=1):
        assert torch.equal(supernet(images, architecture), other(images, architecture))
    with pytest.raises(InputError, match="missing, unknown or of another shape"):
        load_state(LayeredSupernet(space, 1), supernet.state_dict(), tmp_path)


def test_a_state_of_another_sharing_is_refused(tmp_path):
    space = elastic_space()
    with pytest.raises(InputError, match="missing, unknown or of another shape"):
        load_state(SlicedSupernet(space, 1, "channels"), SlicedSupernet(space, 1).state_dict(), tmp_path)


def test_initial_weights_follow_from_the_seed_and_fit_the_largest_network():
    space = space_called("plain-conv-small")
    first, second, other = (SlicedSupernet(space, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    weight = first["layer2/f24_k3_s1/conv.weight"]
    assert weight.shape == (64, 64, 7, 7)
    assert not torch.equal(weight, other["layer2/f24_k3_s1/conv.weight"])
    assert float(weight.std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.02)  # He et al., outputs of the largest
    assert float(weight[:24, :24, 2:5, 2:5].std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def test_batch_norms_that_always_end_a_branch_start_at_zero():
    always = SlicedSupernet(space_of(Decision("block", {"e2": MBConv(8, 3, 2), "e3": MBConv(8, 5, 3)}))).state_dict()
    sometimes = SlicedSupernet(space_of(Decision("block", {"w8": MBConv(8, 3, 2), "w12": MBConv(12, 3, 3)}))).state_dict()
    assert not always["block/e2/project_bn.weight"].any() and always["block/e2/expand_bn.weight"].all()
    assert sometimes["block/w8/project_bn.weight"].all()


def test_a_copy_shares_nothing():
    space = elastic_space()
    supernet = used(SlicedSupernet(space)).eval()
    other = copy.deepcopy(supernet)
    architecture, images = Trellis(space).sample(1, seed=3)[0], torch.randn(2, 3, 16, 16)
    expected = supernet(images, architecture)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.fill_(0.5)
    assert torch.equal(supernet(images, architecture), expected)
    assert not torch.equal(other(images, architecture), expected)


def test_an_unknown_sharing_is_refused():
    with pytest.raises(InputError, match="channels, elastic"):
        SlicedSupernet(tiny_space(), 0, "slices")


# At work


def test_a_mixture_is_the_weighed_sum_of_networks():
    options = {"k3": MBConv(8, 3, 2), "k5": MBConv(8, 5, 3), "skip": Identity()}
    space = SearchSpace("mixed", TensorShape(8, 8, 8), (Decision("only", options),))
    supernet = used(SlicedSupernet(space)).eval()
    images, shares = torch.randn(2, 8, 8, 8), torch.tensor([0.5, 0.3, 0.2])
    found = supernet.mix(images, [{(0, option): Weighed(shares[option]) for option in range(3)}])
    expected = sum(share * supernet(images, [option]) for option, share in enumerate(shares))
    torch.testing.assert_close(found, expected)


def test_dropout_and_training_mode_reach_every_path():
    space = elastic_space()
    supernet = used(SlicedSupernet(space))
    architecture, images = Trellis(space).sample(1, seed=3)[0], torch.randn(2, 3, 16, 16)
    assert not torch.equal(supernet(images, architecture), supernet(images, architecture))  # dropout
    supernet.eval()
    assert torch.equal(supernet(images, architecture), supernet(images, architecture))
    supernet.train()
    for module in supernet.modules():  # as in-place distillation switches it off
        if isinstance(module, torch.nn.Dropout):
            module.training = False
    assert torch.equal(supernet(images, architecture), supernet(images, architecture))


def test_the_evaluator_leaves_the_supernet_as_it_is(dataset):
    space = elastic_space()
    supernet = used(SlicedSupernet(space)).eval()
    before = flat(supernet.state_dict().values())
    architectures = Trellis(space).sample(2, seed=0)
    evaluator = SupernetEvaluator(supernet, dataset)
    assert evaluator(architectures) == evaluator(architectures)
    recalibrate_batch_norm(extract(supernet, architectures[0]), [torch.randn(4, *extract(
        supernet, architectures[0]).network.input_shape)])
    assert torch.equal(flat(supernet.state_dict().values()), before)


CONFIG = LoopConfig(epochs=2, batch_size=16, learning_rate=0.05, gradient_clip=5.0, max_shift=1, seed=3, threads=1)


@pytest.mark.parametrize("sandwich", [False, True])
def test_training_resumes_to_the_bit(dataset, tmp_path, sandwich):
    space = elastic_space()

    def task(supernet):
        return sandwich_task(supernet, Sandwich(1), CONFIG) if sandwich else spos_task(supernet, SinglePath(), CONFIG)

    whole, cut = (task(SlicedSupernet(space, 3)) for _ in range(2))
    before = flat(whole.model.state_dict().values())
    state = run_loop(whole, dataset, CONFIG, {}, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_loop(cut, dataset, CONFIG, {}, tmp_path / "cut", lambda step, *_: interrupt() if step == 7 else None)
    resumed = task(SlicedSupernet(space, 9))
    assert run_loop(resumed, dataset, CONFIG, {}, tmp_path / "cut").epoch_losses == state.epoch_losses
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not torch.equal(flat(expected.values()), before)
    assert state.epoch_losses[1] < state.epoch_losses[0]
