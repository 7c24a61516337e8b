"""What every kind of space shares: sizes, paths and checks, on random spaces and on every network of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Part
from hwnas.ir.blocks import ConvBlock, Head, Identity
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.steps import Edge, Space, Step
from tests.ir.strategies import all_indices, is_allowed, spaces, walked_edges

WIDE, NARROW = TensorShape(4, 8, 8), TensorShape(2, 8, 8)
PARTS = {shape: (Part("", ConvBlock(4), shape),) for shape in (WIDE, NARROW)}
# The second state has no third option.
STEP = Step("layer", True, ("a", "b", "c"), (WIDE, NARROW), (WIDE, NARROW), (
    Edge(0, 0, 0, PARTS[WIDE]), Edge(0, 1, 1, PARTS[WIDE]), Edge(0, 2, 1, PARTS[WIDE]),
    Edge(1, 0, 1, PARTS[NARROW]), Edge(1, 1, 0, PARTS[NARROW])))


def test_tables_of_a_step_say_where_there_is_an_edge() -> None:
    assert np.array_equal(STEP.numbers, [[0, 1, 2], [3, 4, -1]])
    assert np.array_equal(STEP.targets, [[0, 1, 1], [1, 0, -1]])
    assert STEP.edge(1, 1) is STEP.edges[4] and STEP.edge(1, 2) is None
    assert not STEP.is_full
    assert Step("layer", True, ("a", "b"), STEP.inputs, STEP.outputs, (*STEP.edges[:2], *STEP.edges[3:])).is_full


def test_states_of_one_shape_count_once() -> None:
    assert STEP.reached_by_shapes == 2
    assert Step("layer", True, ("a",), ("one", "other"), (WIDE,), (Edge(0, 0, 0, PARTS[WIDE]), Edge(1, 0, 0, PARTS[WIDE]),
                                                                   )).reached_by_shapes == 1


def test_an_edge_of_one_part_is_its_block() -> None:
    edge = STEP.edges[3]
    assert (edge.block, edge.input_shape, edge.workload) == (ConvBlock(4), NARROW, PARTS[NARROW][0].workload)
    assert edge.workload.endswith("@ 2x8x8") and edge.workload.startswith("conv(out_channels=4")


@pytest.mark.parametrize("what", ["decisions", "steps", "hash"])
def test_a_kind_of_space_must_say_what_it_is(what: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(Space(), what)
    for call in (Space().to_dict, lambda: Space().network(Architecture("s", "h", {}))):
        with pytest.raises(NotImplementedError):
            call()


@settings(max_examples=60)
@given(spaces())
def test_size_and_paths_are_those_of_all_networks(space: SearchSpace) -> None:
    rows = all_indices(space)
    assert space.size == len(rows)
    for row, architecture in zip(rows[:40], space.architectures(rows[:40]), strict=True):
        assert space.path(architecture) == walked_edges(space, row)
    assert np.array_equal(space.indices(space.architectures(rows[:40])), rows[:40])


@settings(max_examples=60)
@given(spaces())
def test_every_edge_is_on_the_path_of_some_network(space: SearchSpace) -> None:
    taken = {edge for row in all_indices(space) for edge in walked_edges(space, row)}
    assert taken == {edge for step in space.steps for edge in step.edges}
    for step, following in itertools.pairwise(space.steps):
        assert step.outputs == following.inputs
    for step in space.steps:
        assert [(edge.source, edge.option) for edge in step.edges] == sorted((edge.source, edge.option) for edge in step.edges)
        assert step.is_full == (len(step.edges) == step.targets.size)


@settings(max_examples=60)
@given(spaces())
def test_options_that_exclude_each_other_are_refused(space: SearchSpace) -> None:
    ranges = [range(len(decision.options)) for decision in space.decisions]
    for row in itertools.islice(itertools.product(*ranges), 60):
        architecture = space.architectures(np.array([row]))[0]
        if is_allowed(space, row):
            assert space.check(architecture) == architecture
        else:
            with pytest.raises(InputError, match=r"may only choose .* but the architecture chooses"):
                space.check(architecture)


@settings(max_examples=60)
@given(spaces())
def test_there_is_always_some_network(space: SearchSpace) -> None:
    architecture = space.any_architecture
    assert space.check(architecture) == architecture
    assert space.classes == space.network(architecture).output_shape.channels


def test_what_may_follow_is_said() -> None:
    space = SearchSpace("s", (3, 2, 2), (
        Decision("first", {"keep": ConvBlock(4), "halve": ConvBlock(4, stride=2)}), Fixed("between", ConvBlock(4)),
        Decision("second", {"keep": ConvBlock(4), "halve": ConvBlock(4, stride=2), "skip": Identity()}, where_fits=True),
        Fixed("head", Head(3))))
    assert space.size == 5
    with pytest.raises(InputError) as error:
        space.architecture({"first": "halve", "second": "halve"})
    assert str(error.value) == ("Decision 'second' of space 's' may only choose keep, skip after the decisions before it, but "
                                "the architecture chooses 'halve'.")
