"""Spaces of cells: costs and counts against networks built one by one, and what is refused when a space is made."""

import collections
import copy
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.ir.block import Part
from hwnas.ir.blocks import ConvBlock, Head, Identity, Resolution
from hwnas.ir.cell_operations import (
    CellHead,
    FactorizedReduction,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
    UnpaddedStem,
)
from hwnas.ir.cells import Cell, CellDecision, CellKind, CellSpace, Pick, Skeleton, choices_of_pairs, chosen_pairs
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.documents import space_from_dict
from hwnas.ir.genotype import Genotype
from hwnas.ir.layers import Add, Concat, Layer
from hwnas.ir.network import Network
from hwnas.ir.shape import TensorShape
from hwnas.ir.trellis import Trellis
from hwnas.spaces import nasnet
from hwnas.spaces.darts import build_darts_cpu
from hwnas.spaces.one_shot import build_one_shot_cpu
from hwnas.spaces.pnasnet import build_pnasnet

SKIP_AND_CONV = {"skip": (Identity(), FactorizedReduction(2)), "conv": (SeparableOperation(1, 3, 1), SeparableOperation(1, 3, 2))}


def small_nasnet() -> CellSpace:
    """NASNet's skeleton, operations and free output with three states in a cell, four operations and six cells."""
    operations = ("identity", "conv_1x7_7x1", "max_pool_3x3", "separable_3x3")
    cells = (Cell("stem1", "reduction", 5, 2), Cell("normal1", "normal", 8), Cell("normal2", "normal", 8),
             Cell("reduce", "reduction", 16, 2), Cell("normal3", "normal", 16, back=3), Cell("normal4", "normal", 16))
    kinds = {kind: CellKind(chosen_pairs(kind, range(2, 5), operations, nasnet.any_two), None)
             for kind in ("normal", "reduction")}
    return CellSpace("small-nasnet", nasnet.stacked(47, 6, cells, 5, operations), kinds)


BUILDERS: dict[str, Callable[[], CellSpace]] = {
    "darts-cpu": build_darts_cpu, "one-shot-cpu": build_one_shot_cpu, "pnasnet": build_pnasnet, "small-nasnet": small_nasnet}


@functools.cache
def built(name: str) -> CellSpace:
    return BUILDERS[name]()


@functools.cache
def sampled(name: str) -> list[tuple[Any, Network]]:
    space = built(name)
    return [(architecture, space.network(architecture)) for architecture in Trellis(space).sample(8, seed=3)]


every_space = pytest.mark.parametrize("name", BUILDERS)


# What holds for every space of cells


@every_space
def test_costs_of_a_path_are_those_of_its_network(name: str) -> None:
    space = built(name)
    macs, parameters = Trellis(space, MacsCost()), Trellis(space, ParametersCost())
    for architecture, network in [*sampled(name), *((one, space.network(one)) for one in (macs.cheapest(), macs.dearest()))]:
        assert (macs.cost(architecture), parameters.cost(architecture)) == (network.macs, network.parameters)
        assert macs.min_cost() <= network.macs <= macs.max_cost()
        assert network.output_shape == (space.classes, 1, 1)


def layers(nodes: Iterator[Any]) -> collections.Counter[tuple[Layer, tuple[TensorShape, ...]]]:
    """What is computed on what; a cell's own sums and concatenations belong to no option, and have no weights."""
    return collections.Counter((node.layer, node.input_shapes) for node in nodes if not isinstance(node.layer, Add | Concat))


@every_space
def test_every_layer_of_a_network_is_in_exactly_one_part(name: str) -> None:
    space = built(name)
    for architecture, network in sampled(name):
        parts: list[Part] = [part for edge in space.path(architecture) for part in edge.parts]
        assert layers(node for part in parts for node in part.network.nodes) == layers(iter(network.nodes))


@every_space
def test_a_space_survives_json(name: str) -> None:
    space = built(name)
    again = space_from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and hash(again) == hash(space) and again.hash == space.hash and again.description == space.description
    assert isinstance(again, CellSpace) and again.steps == space.steps and again.size == space.size
    assert [list(decision.options) for decision in again.decisions] == [list(decision.options) for decision in space.decisions]
    assert again.network(sampled(name)[0][0]) == sampled(name)[0][1]


@every_space
def test_the_hash_is_of_the_content_alone(name: str) -> None:
    space = built(name)
    renamed = dataclasses.replace(space, name="other", description="Other words.")
    assert renamed.hash == space.hash and renamed != space
    for changed in (dataclasses.replace(space.skeleton, input_shape=(3, 64, 64)),
                    dataclasses.replace(space.skeleton, head=CellHead(7)),
                    dataclasses.replace(space.skeleton, previous_first=not space.skeleton.previous_first)):
        assert dataclasses.replace(space, skeleton=changed).hash != space.hash


@every_space
def test_choices_make_a_path_that_belongs_to_the_space(name: str) -> None:
    space = built(name)
    architectures = [architecture for architecture, _ in sampled(name)]
    assert space.architectures(space.indices(architectures)) == architectures
    assert len({str(one) for one in architectures}) == len(architectures)
    for one in architectures:
        assert space.architecture(dict(reversed(one.choices.items()))) == one
        assert len(space.path(one)) == len(space.decisions) + 1


@every_space
def test_a_space_can_be_copied_to_another_process(name: str) -> None:
    again = ForkingPickler.loads(ForkingPickler.dumps(built(name)))
    assert again == built(name) and again.hash == built(name).hash


def test_the_hash_is_the_same_in_every_process() -> None:
    program = "from hwnas.spaces.darts import build_darts_cpu; print(build_darts_cpu().hash)"
    result = subprocess.run([sys.executable, "-c", program], text=True, check=True, capture_output=True, timeout=60,
                            env={**os.environ, "PYTHONHASHSEED": "7"})
    assert result.stdout.strip() == built("darts-cpu").hash


# Small spaces against every one of their networks

PAIRS = {("normal", 2): [(0, 1)], ("normal", 3): [(0, 1), (1, 2), (2, 2)], ("reduction", 2): [(0, 1), (1, 1)]}
STATES = {"normal": (2, 3), "reduction": (2,)}
CHOSEN = "chosen-inputs"  # whose cells need not read both of their inputs
PAIRS_IF_CHOSEN = {("normal", 2): [(0, 1), (0, 0), (1, 1)], ("normal", 3): [(0, 1), (1, 2), (2, 2)],
                   ("reduction", 2): [(0, 0), (0, 1), (1, 1)]}


def pairs_of(name: str) -> dict[tuple[str, int], list[tuple[int, int]]]:
    return PAIRS_IF_CHOSEN if name == CHOSEN else PAIRS


def tiny(concats: Mapping[str, tuple[int, ...] | None], pairs: Mapping[tuple[str, int], list[tuple[int, int]]] = PAIRS,
         **around: Any) -> CellSpace:
    """(4 x 3 x 4) x (2 x 4) = 384 networks of four cells, or with chosen inputs the whole ones of 3 x 4 x 3 x 4 x 3 x 4."""
    cells = (Cell("one", "normal", 4), Cell("two", "reduction", 6, 2), Cell("three", "normal", 6), Cell("four", "normal", 5))
    skeleton = Skeleton((3, 9, 9), around.pop("stem", (ConvBlock(4),)), cells, CellHead(3), SKIP_AND_CONV, **around)
    kinds = {kind: CellKind(chosen_pairs(kind, range(states[0], states[-1] + 1), tuple(SKIP_AND_CONV),
                                         lambda state, kind=kind: pairs[kind, state]), concats[kind])
             for kind, states in STATES.items()}
    return CellSpace("tiny", skeleton, kinds)


TINY = {
    "nasnet-like": lambda: tiny({"normal": None, "reduction": None}),
    "darts-like": lambda: tiny({"normal": (2, 3), "reduction": (2,)}, previous_first=True, fitting="always"),
    "free-normal": lambda: tiny({"normal": None, "reduction": (0, 2)}, stem=(ConvBlock(2, 1), ConvBlock(4)), fitting="always",
                                strided_operations=False),
    "one-shot-like": lambda: tiny({"normal": (3, 2, 1), "reduction": (2,)}, fitting="where_needed", strided_operations=False),
    CHOSEN: lambda: tiny({"normal": None, "reduction": (2,)}, PAIRS_IF_CHOSEN, stem=(ConvBlock(2, 1), ConvBlock(4)),
                         previous_first=True, fitting="always"),
}
every_tiny = pytest.mark.parametrize("name", TINY)


def all_genotypes(name: str, space: CellSpace) -> Iterator[tuple[tuple[str, ...], dict[str, Genotype]]]:
    """Option names in the space's order, and the cells that they must make, spelled out from `pairs_of`."""
    def cells(kind: str) -> Iterator[tuple[tuple[str, ...], Genotype]]:
        choices = []
        for state in STATES[kind]:
            pairs = pairs_of(name)[kind, state]
            choices.append([((*([f"{one}-{other}"] if len(pairs) > 1 else []), first, second), ((first, one), (second, other)))
                            for one, other in pairs for first in SKIP_AND_CONV for second in SKIP_AND_CONV])
        for chosen in itertools.product(*choices):
            nodes = tuple(node for _, node in chosen)
            read = {source for node in nodes for _, source in node}
            concat = space.kinds[kind].concat or tuple(state for state in STATES[kind] if state not in read)
            yield tuple(name for names, _ in chosen for name in names), Genotype(nodes, concat)

    for (first, normal), (second, reduction) in itertools.product(cells("normal"), cells("reduction")):
        yield first + second, {"normal": normal, "reduction": reduction}


@functools.cache
def tiny_networks(name: str) -> tuple[CellSpace, dict[tuple[str, ...], Network]]:
    space = TINY[name]()
    networks = {names: space.skeleton.network(genotypes) for names, genotypes in all_genotypes(name, space)}
    return space, {names: network for names, network in networks.items() if is_whole(network)}


def is_whole(network: Network) -> bool:
    """Whether nothing was left out of it: every state of every cell has its sum in it, and the stem its convolutions."""
    sums = {f"{cell}/state{state}" for cell, kind in (("one", "normal"), ("two", "reduction"), ("three", "normal"),
                                                      ("four", "normal")) for state in STATES[kind]}
    names = {node.name for node in network.nodes}
    return sums <= names and any(name in names for name in ("stem/conv", "stem2/conv"))


@every_tiny
def test_paths_are_all_cells_and_no_others(name: str) -> None:
    space, networks = tiny_networks(name)
    every_one = list(itertools.product(*(decision.options for decision in space.decisions)))
    assert len(every_one) == (1728 if name == CHOSEN else 384)
    assert space.size == len(networks) and (name == CHOSEN) == (len(networks) < len(every_one))
    for names in set(every_one) - networks.keys():
        with pytest.raises(InputError, match="may only choose"):
            space.architecture({decision.name: option for decision, option in zip(space.decisions, names, strict=True)})
    for names, network in networks.items():
        choices = {decision.name: option for decision, option in zip(space.decisions, names, strict=True)}
        assert space.network(space.architecture(choices)) == network


@every_tiny
def test_counts_and_ranges_are_those_of_all_networks(name: str) -> None:
    space, networks = tiny_networks(name)
    for costs, values in ((MacsCost(), sorted(network.macs for network in networks.values())),
                          (ParametersCost(), sorted(network.parameters for network in networks.values()))):
        trellis = Trellis(space, costs)
        assert (trellis.min_cost(), trellis.max_cost(), trellis.count()) == (values[0], values[-1], len(values))
        assert len(set(values)) > 10
        for budget in sorted({*values, values[0] - 1, values[5] + 1}):
            assert trellis.count(budget) == sum(value <= budget for value in values)


@every_tiny
def test_samples_are_all_networks_within_the_budget_and_no_others(name: str) -> None:
    space, networks = tiny_networks(name)
    trellis = Trellis(space, MacsCost())
    budget = float(np.median([network.macs for network in networks.values()]))
    fitting = {names for names, network in networks.items() if network.macs <= budget}
    drawn = collections.Counter(tuple(one.choices.values()) for one in trellis.sample(40 * len(fitting), budget, seed=1))
    assert drawn.keys() == fitting
    # Pearson's statistic has mean n - 1 and standard deviation sqrt(2 (n - 1)) when all are equally likely.
    statistic = sum((count - 40) ** 2 / 40 for count in drawn.values())
    assert abs(statistic - (len(fitting) - 1)) < 5 * np.sqrt(2 * (len(fitting) - 1))


@every_tiny
def test_the_best_within_a_budget_and_the_mean_are_those_of_all_networks(name: str) -> None:
    space, networks = tiny_networks(name)
    trellis = Trellis(space, MacsCost())
    generator = np.random.default_rng(2)
    scores = {decision.name: generator.standard_normal(len(decision.options)) for decision in space.decisions}
    rows = [list(decision.options) for decision in space.decisions]

    def score(names: tuple[str, ...]) -> float:
        return sum(table[row.index(option)] for table, row, option in zip(scores.values(), rows, names, strict=True))

    for budget in np.quantile([network.macs for network in networks.values()], (0, 0.1, 0.5, 0.9, 1)):
        best = max((names for names, network in networks.items() if network.macs <= budget), key=score)
        assert tuple(trellis.best(scores, budget).choices.values()) == best
    probabilities = {decision: np.exp(table) / np.exp(table).sum() for decision, table in scores.items()}
    prefixes = {names[:length] for names in networks for length in range(len(names) + 1)}

    def likelihood(names: tuple[str, ...]) -> float:
        """Each option's share among those that may follow the ones before it."""
        chance = 1.0
        for place, (table, row) in enumerate(zip(probabilities.values(), rows, strict=True)):
            possible = [weight for weight, option in zip(table, row, strict=True) if (*names[:place], option) in prefixes]
            chance *= table[row.index(names[place])] / sum(possible)
        return float(chance)

    likelihoods = list(map(likelihood, networks))
    assert sum(likelihoods) == pytest.approx(1)
    mean = sum(weight * network.macs for weight, network in zip(likelihoods, networks.values(), strict=True))
    assert trellis.expected_cost(probabilities) == pytest.approx(mean, rel=1e-9)


def test_an_output_of_unread_states_costs_what_its_width_costs() -> None:
    """The trellis keeps apart paths that pass on one state of the normal cell and paths that pass on two."""
    space, networks = tiny_networks("nasnet-like")
    ends = space.steps[-1]
    assert {tuple(kind.passed_on for kind in state.finished) for state in ends.inputs} == {(1, 1), (2, 1)}
    width_of = {names: next(node for node in network.nodes if node.name == "head/act").shape.channels
                for names, network in networks.items()}
    assert {(names[2], width) for names, width in width_of.items()} == {("0-1", 10), ("1-2", 5), ("2-2", 5)}


def test_states_that_cost_the_same_share_a_node_of_the_trellis() -> None:
    """In a cell of stride 2, reading an input and reading an inner state differ; in others nothing does."""
    step = next(step for step in built("darts-cpu").steps if step.name == "normal_5_first")
    assert len(step.inputs) == 1
    step = next(step for step in built("darts-cpu").steps if step.name == "reduction_5_first")
    assert len(step.inputs) == 3  # two inputs, an input and an inner state, two inner states


# Cells by hand


def test_choices_make_the_cell_that_they_name() -> None:
    space = built("darts-cpu")
    choices = {}
    for kind in ("normal", "reduction"):
        choices |= {f"{kind}_2_first": "sep_conv_3x3", f"{kind}_2_second": "skip_connect",
                    f"{kind}_3_inputs": "0-2", f"{kind}_3_first": "max_pool_3x3", f"{kind}_3_second": "dil_conv_5x5",
                    f"{kind}_4_inputs": "2-3", f"{kind}_4_first": "skip_connect", f"{kind}_4_second": "skip_connect",
                    f"{kind}_5_inputs": "1-4", f"{kind}_5_first": "avg_pool_3x3", f"{kind}_5_second": "sep_conv_5x5"}
    architecture = space.architecture(choices)
    expected = Genotype(((("sep_conv_3x3", 0), ("skip_connect", 1)), (("max_pool_3x3", 0), ("dil_conv_5x5", 2)),
                         (("skip_connect", 2), ("skip_connect", 3)), (("avg_pool_3x3", 1), ("sep_conv_5x5", 4))), (2, 3, 4, 5))
    assert space.genotypes(architecture) == {"normal": expected, "reduction": expected}
    assert choices_of_pairs({"normal": expected})["normal_2_inputs"] == "0-1"
    assert {name: option for name, option in choices_of_pairs({"normal": expected, "reduction": expected}).items()
            if "2_inputs" not in name} == choices


def test_several_terms_in_one_option_are_summed() -> None:
    space = built("one-shot-cpu")
    architecture = space.architecture({
        "block1_inputs": "0+1", "block1_operations": "identity", "block2_inputs": "3",
        "block2_operations": "separable_3x3+max_pool_3x3", "block3_inputs": "1+5", "block3_operations": "avg_pool_3x3"})
    assert space.genotypes(architecture) == {"cell": Genotype((
        (("project", 0), ("project", 1)), (("identity", 2),), (("project", 3),),
        (("separable_3x3", 4), ("max_pool_3x3", 4)), (("project", 1), ("project", 5)), (("avg_pool_3x3", 6),)), (3, 5, 7))}


def test_an_output_without_named_states_is_those_that_nothing_reads() -> None:
    space, _ = tiny_networks("nasnet-like")
    names = {"normal_2_first": "skip", "normal_2_second": "conv", "normal_3_first": "conv", "normal_3_second": "conv",
             "reduction_2_inputs": "1-1", "reduction_2_first": "skip", "reduction_2_second": "conv"}
    concats = {inputs: space.genotypes(space.architecture({**names, "normal_3_inputs": inputs}))["normal"].concat
               for inputs in ("0-1", "1-2", "2-2")}
    assert concats == {"0-1": (2, 3), "1-2": (3,), "2-2": (3,)}


def test_a_cell_of_other_than_pairs_has_no_choices_of_pairs() -> None:
    with pytest.raises(InputError, match=r"state 3 of cell 'normal' sums 1"):
        choices_of_pairs({"normal": Genotype(((("a", 0), ("b", 1)), (("a", 0),)), (3,))})


def test_a_skeleton_needs_a_cell_of_every_kind_and_known_operations() -> None:
    space, _ = tiny_networks("darts-like")
    cell = Genotype(((("skip", 0), ("conv", 1)), (("skip", 2), ("conv", 1))), (2, 3))
    with pytest.raises(InputError, match=r"Cell 'two' .*'reduction' has none"):
        space.skeleton.network({"normal": cell})
    with pytest.raises(InputError, match=r"Cell 'one' .* skip, conv, but got 'jump'"):
        space.skeleton.network({"normal": Genotype(((("jump", 0), ("conv", 1)),), (2,)), "reduction": cell})
    with pytest.raises(InputError, match=r"Cell 'two' cannot be made of 6x9x9 and 6x9x9: .* 6x9x9 and 6x5x5"):
        space.skeleton.network({"normal": cell, "reduction": dataclasses.replace(cell, concat=(0, 2))})


# What is refused


def pick(*terms: tuple[str, int | None], sources: tuple[int, ...] = ()) -> Pick:
    return Pick(terms, sources)


GOOD = CellDecision("choice", 2, {"skip": pick(("skip", 0)), "conv": pick(("conv", 0))})


def small(*decisions: CellDecision, concat: Any = (2,), operations: Mapping[str, Any] = SKIP_AND_CONV, name: Any = "s",
          cells: tuple[Any, ...] = (Cell("one", "cell", 4), Cell("two", "cell", 4, 2)), **skeleton: Any) -> CellSpace:
    around = {"input_shape": (3, 8, 8), "stem": (ConvBlock(4),), "head": CellHead(3)} | skeleton
    return CellSpace(name, Skeleton(cells=cells, operations=operations, **around),
                     {"cell": CellKind(decisions or (GOOD,), concat)})


def decide(**options: Pick) -> CellDecision:
    return CellDecision("choice", 2, options)


OTHERS = {**SKIP_AND_CONV, "pooled": (Head(9), Head(9)), "grouped": (ConvBlock(4, groups=3), ConvBlock(4, 3, 2, groups=3))}


def test_no_network_has_a_state_that_nothing_reads() -> None:
    """States 2 and 3 are not passed on: one of the two that follow reads state 2."""
    wires = [decide(only=pick(("conv", 0))), CellDecision("third", 3, {"in": pick(("conv", 0)), "on": pick(("conv", 2))}),
             CellDecision("fourth", 4, {"in": pick(("conv", 3)), "both": pick(("conv", 2), ("conv", 3))})]
    space = small(*wires, concat=(4,))
    assert {(one.choices["third"], one.choices["fourth"]) for one in Trellis(space).sample(50)} == {
        ("in", "both"), ("on", "in"), ("on", "both")}
    assert space.size == 3
    with pytest.raises(InputError, match=r"'fourth' .* may only choose both after"):
        space.architecture({"choice": "only", "third": "in", "fourth": "in"})
    with pytest.raises(InputError, match=r"'in' of decision 'third' .* never is: it always leaves a state or a cell"):
        small(*wires[:2], concat=(3,))


def test_what_the_refused_spaces_differ_from_is_a_space() -> None:
    assert small().size == 2
    assert small().network(small().architecture({"choice": "conv"})).output_shape == (3, 1, 1)


@pytest.mark.parametrize("order", [1, -1])
def test_an_operation_that_changes_the_shape_names_decision_option_cell_and_shapes(order: int) -> None:
    options = {"fine": pick(("conv", 0)), "bad": pick(("pooled", 0))}
    with pytest.raises(InputError) as error:
        small(decide(**dict(list(options.items())[::order])), operations=OTHERS)
    assert str(error.value) == ("Space 's', decision 'choice', option 'bad', in 'one', must make 4x8x8 of 4x8x8, as the cell's "
                                "other states are, but makes 9x1x1.")


@pytest.mark.parametrize("order", [1, -1])
def test_an_operation_that_cannot_take_its_input_names_decision_option_cell_and_shape(order: int) -> None:
    options = {"fine": pick(("conv", 0)), "bad": pick(("grouped", 0))}
    with pytest.raises(InputError) as error:
        small(decide(**dict(list(options.items())[::order])), operations=OTHERS)
    assert str(error.value) == ("Space 's', decision 'choice', option 'bad', in 'one', cannot take the shape 4x8x8 that reaches "
                                "it: a convolution's groups must divide its channels, but 3 groups do not divide 4 input and 4 "
                                "output channels.")


def test_states_that_do_not_fit_in_one_of_the_cells_alone() -> None:
    """The stem is 4 wide and the cells 6: only the first cell reads it as it is."""
    with pytest.raises(InputError, match=r"decision 'choice', option 'skip', in 'one', must make 6x8x8 of 4x8x8"):
        small(CellDecision("choice", 2, {"skip": pick(("skip", 1)), "conv": pick(("conv", 1))}),
              cells=(Cell("one", "cell", 6), Cell("two", "cell", 6)))
    plain = {"skip": (Identity(), Identity()), "conv": (PreactivatedConv(1), PreactivatedConv(1, 1, 2))}
    with pytest.raises(InputError, match=r"option 'skip', in 'two', must make 4x4x4 of 4x8x8, .* but makes 4x8x8\."):
        small(operations=plain)


def test_a_resolution_that_a_stride_reduces_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"decision 'choice', option 'conv', in 'two', cannot take the shape 4x1x1 .* stride 2"):
        small(CellDecision("choice", 2, {"keep": pick(("keep", 0)), "conv": pick(("conv", 0))}), input_shape=(3, 1, 1),
              operations={**SKIP_AND_CONV, "keep": (Identity(), PreactivatedConv(1))})
    with pytest.raises(InputError, match=r"decision 'choice', option 'skip', in 'cell3', cannot take the shape 4x1x1"):
        small(cells=tuple(Cell(f"cell{number}", "cell", 4, 2) for number in range(4)))


@pytest.mark.parametrize(("make", "words"), [
    # Decisions and their options.
    (lambda: CellDecision("choice", 2, {}), ["at least one option", "'choice'"]),
    (lambda: CellDecision("choice", 2, None), ["at least one option", "'choice'"]),  # type: ignore[arg-type]
    (lambda: decide(a=pick(("skip", 0)), b=pick(("skip", 0))), ["'a'", "'b'", "'choice'", "remove"]),
    (lambda: decide(a=pick(("skip", 2))), ["'choice'", "'a'", "0 to 1", "reads 2"]),
    (lambda: decide(a=pick(("skip", -1))), ["'choice'", "'a'", "-1"]),
    (lambda: decide(a=pick(("skip", True))), ["'choice'", "'a'", "True"]),
    (lambda: decide(a=pick(("skip", 0)), b=pick(("skip", 1.0))), ["'choice'", "'b'", "1.0"]),
    (lambda: decide(a=pick((3, 0))), ["'choice'", "'a'", "3"]),  # type: ignore[arg-type]
    (lambda: decide(a=pick(("skip", None), sources=(2,))), ["'choice'", "'a'", "reads 2"]),
    (lambda: decide(a="skip"), ["'choice'", "'a'", "'skip'"]),  # type: ignore[arg-type]
    (lambda: Pick((("skip",),)), ["pairs", "('skip',)"]),  # type: ignore[arg-type]
    (lambda: Pick(3), ["pairs", "3"]),  # type: ignore[arg-type]
    (lambda: CellDecision("my choice", 2, GOOD.options), ["'my choice'", "rename"]),
    (lambda: CellDecision("choice", 2, {"a b": pick(("skip", 0))}), ["'choice'", "'a b'"]),
    (lambda: CellDecision("choice", 1, GOOD.options), ["'choice'", "state 1"]),
    (lambda: CellDecision("choice", "2", GOOD.options), ["'choice'", "'2'"]),  # type: ignore[arg-type]
    # What all choices together must make.
    (lambda: small(decide(a=pick(("skip", 0)), b=Pick())), ["'choice'", "'b'", "state 2"]),
    (lambda: small(decide(a=pick(("skip", 0)), b=pick(("skip", None)))), ["'choice'", "'b'", "-1"]),
    (lambda: small(decide(a=pick(("skip", None)))), ["'choice'", "'a'", "more sources than were picked"]),
    (lambda: small(decide(a=pick(("skip", 0), sources=(0,)))), ["1 are left", "'choice'"]),
    (lambda: small(CellDecision("choice", 3, GOOD.options)), ["'choice'", "in order", "3"]),
    (lambda: small(CellDecision("late", 3, GOOD.options), GOOD), ["'late'", "3, 2"]),
    (lambda: small(concat=()), ["0 to 2", "()"]), (lambda: small(concat=(3,)), ["0 to 2", "(3,)"]),
    (lambda: small(concat=(2, True)), ["True"]), (lambda: small(concat=2), ["0 to 2", "2"]),
    (lambda: CellKind((), None), ["at least one decision"]), (lambda: CellKind((3,), None), ["(3,)"]),  # type: ignore[arg-type]
    # The space.
    (lambda: small(decide(a=pick(("skip", 0)), b=pick(("jump", 0)))), ["'choice'", "'b'", "'one'", "skip, conv", "'jump'"]),
    (lambda: small(GOOD, CellDecision("choice", 3, GOOD.options), concat=(3,)), ["'choice' twice"]),
    (lambda: small(CellDecision("skeleton", 2, GOOD.options)), ["'skeleton'", "rename"]),
    (lambda: small(name="my space"), ["'my space'"]), (lambda: small(name=3), ["3"]),
    (lambda: CellSpace("s", small().skeleton, {}), ["cell", "none"]),
    (lambda: CellSpace("s", small().skeleton, {"cell": CellKind((GOOD,), None), "more": CellKind((GOOD,), None)}), ["more"]),
    (lambda: CellSpace("s", small().skeleton, {"cell": GOOD}), ["CellKind"]),  # type: ignore[dict-item]
    (lambda: small(concat=None, fitting="resolution"), ["'s'", "vary in width"]),
    (lambda: small(concat=(0, 2)), ["'two'", "4x8x8 and 4x4x4"]),
    (lambda: small(head=Identity()), ["'s'", "4x4x4", "cell_head"]),
    # The skeleton.
    (lambda: small(stem=()), ["stem", "empty"]), (lambda: small(cells=()), ["cells", "empty"]),
    (lambda: small(operations={}), ["operations", "empty"]),
    (lambda: small(input_shape=(3, 8)), ["(3, 8)"]), (lambda: small(input_shape="388"), ["'388'"]),
    (lambda: small(fitting="often"), ["'often'", "where_needed"]),
    (lambda: small(previous_first="yes"), ["previous_first", "'yes'"]),
    (lambda: small(strided_operations=1), ["strided_operations", "1"]),
    (lambda: small(stem=("conv",)), ["'conv'"]), (lambda: small(head=3), ["3"]),
    (lambda: small(stem=(Resolution(4), ConvBlock(4))), ["Resolution"]),
    (lambda: small(operations={**SKIP_AND_CONV, "jump": (Identity(),)}), ["'jump'", "1"]),
    (lambda: small(operations={**SKIP_AND_CONV, "jump": ("skip", "skip")}), ["'skip'"]),
    (lambda: small(operations={**SKIP_AND_CONV, "jump": SKIP_AND_CONV["skip"]}), ["'skip'", "'jump'"]),
    (lambda: small(operations={**SKIP_AND_CONV, "a/b": (PoolOperation("max"),) * 2}), ["'a/b'"]),
    (lambda: small(cells=(Cell("one", "cell", 4), Cell("one", "cell", 4))), ["'one' twice"]),
    (lambda: small(cells=(Cell("one", "cell", 4), 3)), ["3"]),
    (lambda: small(cells=(Cell("one", "cell", 4, back=3),)), ["'one'", "3 back", "2 is the most"]),
    (lambda: small(stem=(UnpaddedStem(4, 9),)), ["'stem'", "unpadded_stem", "3x8x8"]),
    (lambda: small(cells=(Cell("one", "cell", 4, 2), Cell("two", "cell", 4, 2), Cell("three", "cell", 4, back=4))),
     ["'three'", "4x2x2", "4x4x4"]),
    (lambda: small(cells=(Cell("one", "cell", 4, 2), Cell("two", "cell", 4, 2)), strided_operations=False),
     ["'two'", "4x8x8", "4x4x4"]),
    (lambda: small(cells=(Cell("one", "cell", 1, 2),), strided_operations=False), ["'one/current'", "at least 2"]),
    # Cells.
    (lambda: Cell("one", "cell", 0), ["'one'", "channels", "0"]), (lambda: Cell("one", "cell", 4.0), ["'one'", "4.0"]),
    (lambda: Cell("one", "cell", "4"), ["'one'", "'4'"]), (lambda: Cell("one", "cell", 4, 3), ["'one'", "stride", "3"]),
    (lambda: Cell("one", "cell", 4, back=1), ["'one'", "back", "1"]), (lambda: Cell("one", "cell", True), ["True"]),
    (lambda: Cell("a/b", "cell", 4), ["'a/b'"]), (lambda: Cell("one", None, 4), ["None"]),  # type: ignore[arg-type]
])
def test_a_space_that_makes_no_sense_is_refused_in_one_sentence(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    message = str(error.value)
    assert all(word in message for word in words)
    assert message.endswith(".") and not message.endswith("..") and "\n" not in message


# Documents

DOCUMENT = small(
    CellDecision("inputs", 2, {"0-1": pick(sources=(0, 1)), "1-1": pick(sources=(1, 1))}),
    CellDecision("first", 2, {"skip": pick(("skip", None)), "conv": pick(("conv", None))}),
    CellDecision("second", 2, {"skip": pick(("skip", None)), "conv": pick(("conv", None), ("conv", 0))}),
    CellDecision("third", 3, {"skip": pick(("skip", 2)), "conv": pick(("conv", 1))}), concat=None).to_dict()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in a document is, containers included."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from leaves(value[key], (*path, key))


def changed(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    container = document
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return document


def assert_is_a_space_or_refused(document: Any) -> None:
    try:
        space = space_from_dict(document)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert space_from_dict(json.loads(json.dumps(space.to_dict()))) == space
    trellis = Trellis(space, MacsCost())
    for architecture in [trellis.cheapest(), trellis.dearest(), *trellis.sample(3)]:
        assert space.network(architecture).macs == trellis.cost(architecture)


PATHS = list(leaves(DOCUMENT))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 40), st.floats(), st.sampled_from(
    ["", "skip", "conv", "0-1", "cell", "always", "resolution", "identity", "hwnas.space/1", [], {}, [2], [[2]], ["skip", 0],
     {"kind": "identity"}, {"kind": "conv", "out_channels": 4}, {"kind": "resolution", "size": 8}, {"kind": "head", "classes": 4},
     {"kind": "pool_operation", "pool": "max", "stride": 2}]))


@settings(max_examples=500)
@given(st.sampled_from(PATHS), VALUES)
def test_a_document_with_any_change_is_a_space_or_an_input_error(path: tuple[Any, ...], value: Any) -> None:
    """No document ends in another exception, and no space that is made fails later."""
    assert_is_a_space_or_refused(changed(path, lambda container, key: container.__setitem__(key, value)))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_document_without_a_part_is_a_space_or_an_input_error(path: tuple[Any, ...]) -> None:
    assert_is_a_space_or_refused(changed(path, lambda container, key: container.__delitem__(key)))


@given(st.sampled_from(PATHS), st.sampled_from(PATHS))
def test_a_document_with_parts_exchanged_is_a_space_or_an_input_error(path: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    value: Any = DOCUMENT
    for key in other:
        value = value[key]
    assert_is_a_space_or_refused(changed(path, lambda container, key: container.__setitem__(key, copy.deepcopy(value))))


@pytest.mark.parametrize(("path", "value", "words"), [
    (("skeleton", "cells", 0, "colour"), 3, ["form that hwnas writes", "colour"]),
    (("skeleton", "stem", 0, "kind"), "stone", ["'kind' among"]), (("skeleton", "cells"), 3, ["form that hwnas writes"]),
    (("kinds", "cell", "decisions", 0, "options", "0-1", "sources"), [0, 7], ["'inputs'", "'0-1'", "reads 7"]),
    (("kinds", "cell", "concat"), "2", ["'2'"]), (("name",), None, ["None"]),
])
def test_documents_that_are_no_space_are_refused_in_one_sentence(path: tuple[Any, ...], value: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        space_from_dict(changed(path, lambda container, key: container.__setitem__(key, value)))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
