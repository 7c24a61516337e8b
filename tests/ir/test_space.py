"""A space: refused as a whole when anything in it cannot be built, otherwise every path of it is a network."""

import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import block_network
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Resolution, Sequence, ShuffleUnit, Stem
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.documents import space_from_dict
from hwnas.ir.network import Network
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis

SPACE = SearchSpace("tiny", TensorShape(3, 32, 32), (
    Fixed("stem", Stem(8)),
    Decision("depth", {"mb3": MBConv(8, 3, 3), "mb5": MBConv(8, 5, 3), "skip": Identity()}),
    Decision("width", {"narrow": MBConv(12, 3, 3, 2), "wide": MBConv(16, 3, 3, 2), "wide_stay": MBConv(16, 3, 3)}),
    Decision("last", {"k3": MBConv(24, 3), "k5": MBConv(24, 5)}),
    Fixed("head", Head(10))), "A space for tests.")


def options(**blocks) -> Decision:
    return Decision("choice", blocks)


def space(*layers, shape=(3, 8, 8)) -> SearchSpace:
    return SearchSpace("s", shape, layers)


def every_path() -> list[Architecture]:
    return SPACE.architectures(np.array(list(itertools.product(*(range(len(decision.options)) for decision in SPACE.decisions)))))


def test_size_is_the_number_of_paths() -> None:
    paths = every_path()
    assert SPACE.size == len(paths) == len(set(paths)) == 18


def test_the_size_of_a_large_space_is_exact() -> None:
    kernels = {f"k{kernel}": MBConv(8, kernel) for kernel in (3, 5, 7)}
    layers = [Decision(f"layer{index}", kernels) for index in range(100)]
    assert space(Fixed("stem", Stem(8)), *layers).size == 3**100 > 2**63


def test_every_path_is_the_network_that_its_edges_say() -> None:
    """Walks the trellis by hand: the blocks, the shapes between them, and MACs and parameters as sums over edges."""
    for architecture in every_path():
        network = SPACE.network(architecture)
        state, macs, parameters = 0, 0, 0
        for step in SPACE.steps:
            option = step.options.index(architecture.choices[step.name]) if step.is_decision else 0
            (edge,) = [edge for edge in step.edges if (edge.source, edge.option) == (state, option)]
            assert edge.input_shape == step.inputs[state]
            part = block_network(edge.block, edge.input_shape)
            assert part.output_shape == step.outputs[edge.target]
            state, macs, parameters = edge.target, macs + part.macs, parameters + part.parameters
        assert (macs, parameters) == (network.macs, network.parameters)
        assert network.output_shape == SPACE.steps[-1].outputs[state] == (10, 1, 1)


def test_steps_hold_every_shape_that_is_reached_and_no_other() -> None:
    reached: list[set[TensorShape]] = [set() for _ in SPACE.steps]
    for architecture in every_path():
        shape = SPACE.input_shape
        for found, (_, block) in zip(reached, SPACE.blocks(architecture), strict=True):
            shape = block_network(block, shape).output_shape
            found.add(shape)
    assert [set(step.outputs) for step in SPACE.steps] == reached
    assert len(reached[2]) == 3
    for step, following in itertools.pairwise(SPACE.steps):
        assert step.outputs == following.inputs
        assert [(edge.source, edge.option) for edge in step.edges] == list(
            itertools.product(range(len(step.inputs)), range(len(step.options))))


def test_equal_work_has_one_workload() -> None:
    workloads = [edge.workload for step in SPACE.steps for edge in step.edges]
    assert len(workloads) == 1 + 3 + 3 + 3 * 2 + 2
    assert "mbconv(out_channels=24, kernel=5," in workloads[-3] and workloads[-3].endswith("@ 16x16x16")
    twice = space(options(a=MBConv(3)), Decision("again", {"b": MBConv(3)}))
    first, second = (step.edges[0].workload for step in twice.steps)
    assert first == second


def test_indices_and_architectures_are_inverse() -> None:
    rows = np.array([[0, 1, 1], [2, 2, 0]])
    assert np.array_equal(SPACE.indices(SPACE.architectures(rows)), rows)
    assert SPACE.indices([]).shape == (0, 3)
    assert SPACE.architectures(rows)[1].choices == {"depth": "skip", "width": "wide_stay", "last": "k3"}


def test_an_architecture_is_put_into_the_spaces_order() -> None:
    made = SPACE.architecture({"last": "k5", "width": "wide", "depth": "skip"})
    assert list(made.choices) == ["depth", "width", "last"]
    assert made == SPACE.architectures(np.array([[2, 1, 1]]))[0]
    assert [name for name, _ in SPACE.blocks(made)] == ["stem", "depth", "width", "last", "head"]
    assert SPACE.blocks(made)[1][1] == Identity()


@pytest.mark.parametrize(("choices", "words"), [
    ({"depth": "skip", "width": "wide"}, ["'last'"]),
    ({"depth": "skip", "width": "wide", "last": "k3", "more": "k3"}, ["'more'", "'tiny'"]),
    ({"depth": "skip", "width": "wide", "last": "k7"}, ["'last'", "'k7'", "k3, k5"]),
])
def test_choices_that_the_space_does_not_have_are_refused(choices: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        SPACE.architecture(choices)
    assert all(word in str(error.value) for word in words)


def test_an_architecture_of_another_space_is_refused() -> None:
    other = space(options(a=MBConv(8)))
    with pytest.raises(InputError, match=r"'s' .*'tiny'"):
        SPACE.check(other.architecture({"choice": "a"}))


def test_a_residual_over_unequal_shapes_names_decision_option_and_shapes() -> None:
    with pytest.raises(InputError) as error:
        space(Fixed("stem", Stem(8, stride=1)), options(fine=MBConv(8, residual=True), wider=MBConv(16, residual=True)))
    assert str(error.value) == ("Space 's', decision 'choice', option 'wider', cannot take the shape 8x8x8 that reaches it: "
                                "a residual sum needs equal shapes, but gets 8x8x8 and 16x8x8.")


def test_an_option_that_cannot_take_one_of_several_shapes_is_refused() -> None:
    """Only the path through `b` fails, so a check along one path would miss it."""
    with pytest.raises(InputError, match=r"decision 'next', option 'unit', cannot take the shape 16x8x8 .* 16 channels for 8\.$"):
        space(options(a=ConvBlock(8), b=ConvBlock(16)), Decision("next", {"unit": ShuffleUnit(8)}))


def test_a_resolution_that_a_stride_reduces_below_one_is_refused() -> None:
    """Three strides bring 7 pixels to one, and the fourth has nothing left to halve; only the path that never keeps does so."""
    layers = [Decision(f"layer{index}", {"keep": ConvBlock(4), "halve": ConvBlock(4, stride=2)}) for index in range(4)]
    assert space(*layers[:3], shape=(3, 7, 7)).size == 8
    with pytest.raises(InputError) as error:
        space(*layers, shape=(3, 7, 7))
    assert str(error.value) == (
        "Space 's', decision 'layer3', option 'halve', cannot take the shape 4x1x1 that reaches it: a convolution of stride 2 "
        "must find a resolution of at least 2x2, but would reduce 1x1 below 1x1.")


def test_a_fixed_layer_that_cannot_take_its_shape_is_named() -> None:
    with pytest.raises(InputError, match=r"layer 'unit', cannot take the shape 8x8x8 that reaches it"):
        space(options(a=ConvBlock(8)), Fixed("unit", ShuffleUnit(8, stride=2)))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Decision("choice", {}), ["at least one option", "'choice'"]),
    (lambda: Decision("choice", [("a", Identity()), ("a", ConvBlock(8))]), ["'choice'", "'a' twice"]),
    (lambda: options(a=ConvBlock(8), b=ConvBlock(8)), ["'a'", "'b'", "'choice'", "conv(out_channels=8"]),
    (lambda: options(a=MBConv(8, expansion=6), b=MBConv(8, expansion=6.0)), ["'a'", "'b'"]),
    (lambda: options(a="mbconv"), ["'a'", "'choice'", "'mbconv'"]),
    (lambda: Decision("choice", [ConvBlock(8)]), ["'choice'", "names to blocks"]),  # type: ignore[list-item]
    (lambda: Decision("choice", None), ["'choice'", "None"]),  # type: ignore[arg-type]
    (lambda: Fixed("stem", 3), ["'stem'", "3"]),  # type: ignore[arg-type]
    (lambda: space(), ["at least one decision", "'s'"]),
    (lambda: space(Fixed("stem", Stem(8))), ["at least one decision", "'s'"]),
    (lambda: space(Stem(8)), ["'s'", "Stem"]),
    (lambda: space(options(a=MBConv(8)), options(b=MBConv(8))), ["'choice' twice"]),
    (lambda: space(Decision("my choice", {"a": MBConv(8)})), ["'my choice'", "rename"]),
    (lambda: space(Decision("a/b", {"a": MBConv(8)})), ["'a/b'"]),
    (lambda: space(Decision("", {"a": MBConv(8)})), ["''"]),
    (lambda: space(options(**{"k 3": MBConv(8)})), ["'k 3'"]),
    (lambda: SearchSpace("", (3, 8, 8), (options(a=MBConv(8)),)), ["''"]),
    (lambda: space(options(a=MBConv(8)), shape=(3, 8)), ["(3, 8)"]),
    (lambda: space(options(a=MBConv(8)), shape=(3, 0, 8)), ["(3, 0, 8)"]),
    (lambda: space(options(a=MBConv(8)), shape=(3, 8.0, 8)), ["8.0"]),
    (lambda: space(options(a=MBConv(8)), shape=8), ["8"]),
])
def test_a_space_that_makes_no_sense_is_refused_in_one_sentence(make, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    message = str(error.value)
    assert all(word in message for word in words)
    assert message.endswith(".") and "\n" not in message


DOCUMENT = {"name": "s", "input_shape": [3, 8, 8],
            "layers": [{"name": "choice", "options": {"a": {"kind": "conv", "out_channels": 8}}}]}


def with_options(blocks: object) -> dict:
    return {**DOCUMENT, "layers": [{"name": "choice", "options": blocks}]}


@pytest.mark.parametrize(("document", "words"), [
    (None, ["mapping"]), ([], ["mapping"]), ("space", ["mapping", "'space'"]),
    ({**DOCUMENT, "schema": "hwnas.space/9"}, ["hwnas.space/1", "hwnas.space/9"]),
    ({key: value for key, value in DOCUMENT.items() if key != "input_shape"}, ["'input_shape'"]),
    ({**DOCUMENT, "layers": None}, ["'layers'"]), ({**DOCUMENT, "layers": {"a": 1}}, ["'layers'"]),
    ({**DOCUMENT, "layers": "abc"}, ["layer", "'a'"]), ({**DOCUMENT, "layers": [3]}, ["layer", "'3'"]),
    ({**DOCUMENT, "layers": [{"name": "x"}]}, ["'x'", "block or options"]),
    ({**DOCUMENT, "layers": [{"name": "x", "block": {"kind": "stem", "out_channels": 8}, "options": {}}]}, ["either"]),
    ({**DOCUMENT, "layers": [{"name": "x", "block": {"kind": "stem"}}]}, ["Layer 'x'", "'out_channels'"]),
    ({**DOCUMENT, "input_shape": "3,8,8"}, ["'3,8,8'"]), ({**DOCUMENT, "name": None}, ["None"]),
    (with_options([1]), ["'choice'", "mapping"]), (with_options({}), ["'choice'", "at least one option"]),
    (with_options({"a": {"kind": "attention"}}), ["'choice'", "'a'", "attention", "mbconv"]),
    (with_options({"a": {"kind": "conv", "out_channels": 8, "kernel": 4}}), ["'choice'", "'a'", "kernel", "odd", "4"]),
    (with_options({"a": {"kind": "conv", "outchannels": 8}}), ["'choice'", "'a'", "'outchannels'", "out_channels"]),
    (with_options({"a": {"kind": "conv"}}), ["'choice'", "'a'", "'out_channels'"]),
    (with_options({"a": None}), ["'choice'", "'a'", "None"]),
    (with_options({3: {"kind": "conv", "out_channels": 8}, "3": {"kind": "conv", "out_channels": 9}}), ["'3' twice"]),
])
def test_documents_that_are_no_space_are_refused(document: object, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        space_from_dict(document)
    assert all(word in str(error.value) for word in words)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats(allow_nan=False) | st.sampled_from(
        ("conv", "mbconv", "name", "kind", "relu", "", "hwnas.space/1")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("name", "kind", "block", "options", "out_channels", "kernel", "layers", "input_shape", "schema")), inner,
        max_size=4), max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(json_values, st.sampled_from(("whole", "name", "input_shape", "layers", "layer", "options", "option", "kernel")))
def test_any_document_is_a_space_or_an_input_error(value: object, where: str) -> None:
    """No document, however wrong, ends in another exception."""
    conv = {"kind": "conv", "out_channels": 8}
    documents = {
        "whole": value, "layer": {**DOCUMENT, "layers": [value]}, "options": with_options(value),
        "option": with_options({"a": value}), "kernel": with_options({"a": {**conv, "kernel": value}})}
    try:
        made = space_from_dict(documents.get(where, {**DOCUMENT, where: value}))
    except InputError as error:
        assert str(error)
    else:
        assert space_from_dict(made.to_dict()) == made


def test_a_space_survives_json_and_yaml() -> None:
    for text in (json.dumps(SPACE.to_dict()), yaml.safe_dump(SPACE.to_dict())):
        again = space_from_dict(yaml.safe_load(text))
        assert again == SPACE and hash(again) == hash(SPACE) and again.hash == SPACE.hash
        assert again.description == SPACE.description
        assert [decision.name for decision in again.decisions] == ["depth", "width", "last"]
    again = space_from_dict(json.loads(json.dumps(SPACE.to_dict())))
    assert [list(decision.options) for decision in again.decisions] == [list(decision.options) for decision in SPACE.decisions]


def test_the_hash_is_of_the_content_alone() -> None:
    renamed = SearchSpace("other", SPACE.input_shape, SPACE.layers, "Other words.")
    assert renamed.hash == SPACE.hash
    assert SearchSpace("tiny", (3, 32, 33), SPACE.layers).hash != SPACE.hash
    changed = (*SPACE.layers[:-1], Fixed("head", Head(11)))
    assert SearchSpace("tiny", SPACE.input_shape, changed).hash != SPACE.hash
    assert space(options(a=MBConv(8, expansion=3))).hash == space(options(a=MBConv(8, expansion=3.0))).hash


def test_the_hash_is_the_same_in_every_process() -> None:
    program = ("import json, sys; from hwnas.ir.documents import space_from_dict; "
               "print(space_from_dict(json.load(sys.stdin)).hash)")
    for seed in ("1", "2"):
        result = subprocess.run([sys.executable, "-c", program], input=json.dumps(SPACE.to_dict()), text=True, check=True,
                                capture_output=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": seed})
        assert result.stdout.strip() == SPACE.hash


def test_equal_decisions_hash_alike_in_any_order() -> None:
    first = Decision("d", {"a": MBConv(8), "b": Identity()})
    second = Decision("d", {"b": Identity(), "a": MBConv(8)})
    assert first == second and hash(first) == hash(second)


def test_node_names_start_with_the_layers_name() -> None:
    network: Network = SPACE.network(every_path()[0])
    assert {node.name.split("/")[0] for node in network.nodes} == {"stem", "depth", "width", "last", "head"}
    assert math.prod(network.input_shape) == 3 * 32 * 32


# Conditions: options that exclude each other

BLOCKS = {"k3": MBConv(8, 3), "k5": MBConv(8, 5)}


def elastic(depth: int) -> SearchSpace:
    """A unit of one block or more, which may end early."""
    layers = [Decision("block1", BLOCKS)]
    for number in range(2, depth + 1):
        after = dict.fromkeys(BLOCKS, tuple(BLOCKS)) if number > 2 else {}
        layers.append(Decision(f"block{number}", BLOCKS | {"skip": Identity()}, after=after))
    return space(Fixed("stem", Stem(8)), *layers, Fixed("head", Head(3)))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 10])
def test_a_block_that_follows_blocks_alone_makes_depth_a_choice(depth: int) -> None:
    """Every depth from 1, and every kernel of the blocks that there are: nothing is counted twice."""
    made = elastic(depth)
    assert made.size == sum(2**blocks for blocks in range(1, depth + 1))
    if depth > 4:
        return
    legal = {blocks + ("skip",) * (depth - len(blocks)) for count in range(1, depth + 1)
             for blocks in itertools.product(BLOCKS, repeat=count)}
    names = [decision.name for decision in made.decisions]
    rows = list(itertools.product(*(decision.options for decision in made.decisions)))
    assert legal <= set(rows)
    trellis = Trellis(made, MacsCost())
    for row in rows:
        choices = dict(zip(names, row, strict=True))
        if row in legal:
            assert trellis.cost(made.architecture(choices)) == made.network(made.architecture(choices)).macs
        else:
            with pytest.raises(InputError, match="may only choose skip"):
                made.architecture(choices)
    assert {tuple(one.choices.values()) for one in trellis.sample(40 * made.size)} == legal


def test_a_skipped_block_is_not_followed_by_a_block() -> None:
    made = elastic(4)
    ended = {"block1": "k3", "block2": "k5", "block3": "skip", "block4": "skip"}
    assert made.architecture(ended).choices["block4"] == "skip"
    with pytest.raises(InputError, match=r"'block4' of space 's' may only choose skip .* chooses 'k3'"):
        made.architecture({**ended, "block4": "k3"})


def test_a_condition_passes_over_fixed_layers() -> None:
    first = Decision("first", {"a": ConvBlock(8, 3), "b": ConvBlock(8, 5)})
    second = Decision("second", {"x": ConvBlock(8, 3), "y": ConvBlock(8, 5)}, after={"y": ("a",)})
    made = space(first, Fixed("between", ConvBlock(8)), Fixed("pool", ConvBlock(8, 1, 2)), second)
    assert made.size == 3
    assert [len(step.inputs) for step in made.steps] == [1, 2, 2, 2]  # what came first is remembered, though the shape is one
    assert {str(state) for state in made.steps[1].inputs} == {"8x8x8 (2 options follow)", "8x8x8 (1 options follow)"}
    assert [len(step.inputs) for step in space(first, second, Decision("third", first.options)).steps] == [1, 2, 1]


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Decision("choice", BLOCKS, after={"k7": ("k3",)}), ["'choice'", "no option 'k7'"]),
    (lambda: space(Decision("choice", BLOCKS, after={"k3": ("k5",)})), ["'choice'", "'k3'", "none before it"]),
    (lambda: space(Decision("one", BLOCKS), Decision("two", BLOCKS, after={"k3": ("k5", "skip")})),
     ["'two'", "'k3'", "k5, skip", "'one' has no 'skip'"]),
    (lambda: space(Decision("one", BLOCKS), Decision("two", BLOCKS, after={"k3": ()})), ["'k3'", "'two'", "never is"]),
    (lambda: space(Decision("one", BLOCKS), Decision("two", BLOCKS, after={"k3": ("k3",), "k5": ("k3",)})),
     ["'k5'", "'one'", "never is"]),
    (lambda: space(Decision("one", BLOCKS), Decision("two", BLOCKS, after={"k3": (), "k5": ()})), ["'s'", "no combination"]),
])
def test_conditions_that_make_no_sense_are_refused_in_one_sentence(make, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_an_option_is_left_out_where_it_does_not_fit() -> None:
    halving = {"keep": ConvBlock(4), "halve": ConvBlock(4, stride=2)}
    made = space(*(Decision(f"layer{index}", halving, where_fits=True) for index in range(5)), shape=(3, 8, 8))
    assert made.size == sum(math.comb(5, strides) for strides in range(4))  # 8, 4, 2, 1
    with pytest.raises(InputError, match=r"'layer3' .* may only choose keep"):
        made.architecture(dict.fromkeys(("layer0", "layer1", "layer2", "layer3", "layer4"), "halve"))
    with pytest.raises(InputError, match=r"'halve' of decision 'layer0' of space 's' never is"):
        space(Decision("layer0", halving, where_fits=True), shape=(3, 1, 1))
    with pytest.raises(InputError, match="no combination of options is allowed"):
        space(Decision("layer0", {"halve": ConvBlock(4, stride=2)}, where_fits=True), shape=(3, 1, 1))
    with pytest.raises(InputError, match=r"layer 'last', cannot take the shape 4x1x1"):  # a fixed layer always has to fit
        space(Decision("layer0", halving, where_fits=True), Fixed("last", ConvBlock(4, stride=2)), shape=(3, 2, 2))


def test_a_way_that_ends_too_early_is_left_out_from_its_start() -> None:
    """One stride is possible at the first layer, but leaves the second, which must stride, nothing."""
    must = Decision("second", {"k1": ConvBlock(4, 1, 2), "k3": ConvBlock(4, 3, 2)}, where_fits=True)
    made = space(Decision("first", {"keep": ConvBlock(4), "wide": ConvBlock(6), "k5": ConvBlock(4, 5)}), must, shape=(3, 2, 2))
    assert made.size == 6
    with pytest.raises(InputError, match=r"'halve' of decision 'first' .* never is"):
        space(Decision("first", {"keep": ConvBlock(4), "halve": ConvBlock(4, stride=2)}), must, shape=(3, 2, 2))


def test_conditions_survive_json_and_are_part_of_the_hash() -> None:
    conditioned = space(Decision("one", BLOCKS), Decision("two", BLOCKS, after={"k3": ("k5",)}))
    fitting = space(Decision("one", BLOCKS), Decision("two", BLOCKS, where_fits=True))
    plain = space(Decision("one", BLOCKS), Decision("two", BLOCKS))
    for made in (conditioned, fitting, plain):
        again = space_from_dict(json.loads(json.dumps(made.to_dict())))
        assert again == made and again.hash == made.hash and hash(again) == hash(made) and again.steps == made.steps
    assert len({conditioned.hash, fitting.hash, plain.hash}) == 3 and len({conditioned, fitting, plain}) == 3
    assert "after" not in json.dumps(plain.to_dict()) and "where_fits" not in json.dumps(plain.to_dict())


@pytest.mark.parametrize("after", [3, ["k3"], {"k3": 3}, {"k3": "k5"}, None])
def test_documents_with_malformed_conditions_are_refused(after: object) -> None:
    blocks = {name: block.to_dict() for name, block in BLOCKS.items()}
    layers = [{"name": "one", "options": blocks}, {"name": "two", "options": blocks, "after": after}]
    with pytest.raises(InputError, match=r"conditions \('after'\) of decision 'two'"):
        space_from_dict({"name": "s", "input_shape": [3, 8, 8], "layers": layers})


# Resolutions and sequences

SIZES = Decision("size", {f"r{size}": Resolution(size) for size in (6, 8, 11)})


def test_the_network_takes_images_of_the_chosen_resolution() -> None:
    made = space(SIZES, Fixed("stem", Stem(4)), Decision("kernel", BLOCKS), Fixed("head", Head(3)))
    assert made.size == 6
    costs = Trellis(made, MacsCost()), Trellis(made, ParametersCost())
    for size, kernel in itertools.product((6, 8, 11), BLOCKS):
        architecture = made.architecture({"size": f"r{size}", "kernel": kernel})
        plain = space(Fixed("stem", Stem(4)), Decision("kernel", BLOCKS), Fixed("head", Head(3)), shape=(3, size, size))
        network = made.network(architecture)
        assert network == plain.network(plain.architecture({"kernel": kernel})) and network.input_shape == (3, size, size)
        assert [trellis.cost(architecture) for trellis in costs] == [network.macs, network.parameters]
    assert all(edge.parts[0].block.is_free for edge in made.steps[0].edges)


def test_a_fixed_resolution_is_that_of_every_network() -> None:
    made = space(Fixed("size", Resolution(5)), Decision("kernel", BLOCKS))
    assert {made.network(one).input_shape for one in Trellis(made).sample(5)} == {(3, 5, 5)}


@pytest.mark.parametrize("layer", [Fixed("size", Resolution(8)), SIZES])
def test_a_resolution_stands_first(layer: Fixed | Decision) -> None:
    with pytest.raises(InputError, match=r"must be the first layer, but space 's' has one at 'size': move it to the front\."):
        space(Fixed("stem", Stem(8)), Decision("kernel", BLOCKS), layer)


def test_a_sequence_is_the_layers_that_it_lists() -> None:
    """One option of three blocks makes the layers of three fixed layers, and its parts are these blocks at their shapes."""
    blocks = (ConvBlock(6, 5, 2), MBConv(6, 3, 3), ConvBlock(4))
    made = space(options(stage=Sequence(blocks), one=ConvBlock(4, stride=2)), Fixed("head", Head(3)))
    apart = space(*(Fixed(f"layer{index}", block) for index, block in enumerate(blocks)), options(head=Head(3)))
    network = made.network(made.architecture({"choice": "stage"}))
    expected = apart.network(apart.any_architecture)
    assert [(node.layer, node.input_shapes) for node in network.nodes] == [
        (node.layer, node.input_shapes) for node in expected.nodes]
    assert {node.name.split("/")[1] for node in network.nodes[:-2]} == {"1", "2", "3"}
    edge = made.steps[0].edges[0]
    assert [(part.name, part.block, str(part.input_shape)) for part in edge.parts] == [
        ("1", blocks[0], "3x8x8"), ("2", blocks[1], "6x4x4"), ("3", blocks[2], "6x4x4")]
    for costs, total in ((MacsCost(), network.macs), (ParametersCost(), network.parameters)):
        assert Trellis(made, costs).cost(made.architecture({"choice": "stage"})) == total
    again = space_from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made and again.steps == made.steps


def test_a_sequence_that_does_not_fit_together_is_refused_by_name_and_shape() -> None:
    with pytest.raises(InputError) as error:
        space(options(stage=Sequence((ConvBlock(6), ShuffleUnit(8))), one=ConvBlock(8)))
    assert str(error.value) == ("Space 's', decision 'choice', option 'stage', cannot take the shape 3x8x8 that reaches it: a "
                                "shuffle unit of stride 1 keeps an even width, but gets 6 channels for 8.")
    for blocks in ((), (3,)):
        with pytest.raises(InputError, match="one block or more"):
            Sequence(blocks)
