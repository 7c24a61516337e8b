"""The supernet of cells computes exactly the networks of its space, and mixtures as their definition has them."""

import contextlib
import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.ir.blocks import Head
from hwnas.ir.layers import BatchNorm
from hwnas.ir.trellis import Trellis
from hwnas.lower.torch import to_torch
from hwnas.supernet import SupernetEvaluator, build_supernet, extract, extract_weights, recalibrate_batch_norm
from hwnas.supernet.cells import WeighedTerm, term_name
from tests.supernet.cell_spaces import darts_like, nasnet_like, one_shot_like, used_supernet
from tests.supernet.samples import tiny_dataset

BUILDERS = {"darts-like": darts_like, "one-shot-like": one_shot_like, "nasnet-like": nasnet_like}
every_space = pytest.mark.parametrize("name", BUILDERS)


@functools.cache
def used(name):
    return used_supernet(BUILDERS[name]())


def images_for(space, count=3, seed=0):
    return torch.randn(count, *space.input_shape, generator=torch.Generator().manual_seed(seed))


# One network at a time


@every_space
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1 << 32))
def test_extraction_equals_the_supernet(name, seed):
    supernet = used(name)
    space, images = supernet.space, images_for(supernet.space)
    (architecture,) = Trellis(space).sample(1, seed=seed)
    assert {key: array.shape for key, array in extract_weights(supernet, architecture).items()} == (
        space.network(architecture).weight_shapes)
    module = extract(supernet, architecture)
    assert not module.training
    with torch.inference_mode():
        expected, got = module(images), supernet(images, architecture)
        assert torch.equal(got, supernet(images, space.indices([architecture])[0]))
    # Columns of zeros are summed up in another order than none at all.
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4) if name == "nasnet-like" else torch.equal(got, expected)


def place_in_supernet(space, architecture, key):
    """The supernet's name of a network's weight."""
    for cell in space.skeleton.cells:
        for state, node in enumerate(space.genotypes(architecture)[cell.kind].nodes, 2):
            for side, (operation, source) in enumerate(node, 1):
                prefix = f"{cell.name}/state{state}_{side}_{operation}/"
                if key.startswith(prefix):
                    return f"{cell.name}/state{state}/{operation}@{source}.block/{key.removeprefix(prefix)}"
    around, _, rest = key.rpartition("/")
    return f"{around}.block/{rest}"


@every_space
def test_gradients_are_those_of_the_network_and_reach_nothing_else(name):
    space = BUILDERS[name]()
    supernet = build_supernet(space, seed=3).double()
    for module in supernet.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    images, labels = images_for(space, 6).double(), torch.arange(6) % 4
    for architecture in Trellis(space).sample(8, seed=5):
        module = to_torch(space.network(architecture), extract_weights(supernet, architecture)).double()
        for each in module.modules():
            each.train(not isinstance(each, nn.Dropout))
        functional.cross_entropy(module(images), labels).backward()
        expected = {}
        for key, parameter in module.named_parameters():
            if parameter.grad is not None:
                expected.setdefault(place_in_supernet(space, architecture, key), []).append(parameter.grad)
        supernet.zero_grad(set_to_none=True)
        functional.cross_entropy(supernet(images, architecture), labels).backward()
        got = {key: parameter.grad for key, parameter in supernet.named_parameters() if parameter.grad is not None}
        assert got.keys() == expected.keys()
        for key, gradient in got.items():
            both = torch.stack(expected[key]).sum(0)  # of a term that is there twice
            if both.shape != gradient.shape:  # columns of states that are not passed on
                gradient = gradient[:, gradient.abs().amax([0, *range(2, gradient.ndim)]) > 0]
            assert torch.allclose(gradient, both, rtol=1e-6, atol=1e-9)


def test_a_term_that_is_there_twice_has_one_set_of_weights_and_counts_twice():
    supernet = used("nasnet-like")
    space = supernet.space
    row = [0] * len(space.decisions)
    names = [decision.name for decision in space.decisions]
    for decision in ("normal_2_first", "normal_2_second"):
        row[names.index(decision)] = 2  # separable_3x3, on 0 and 0
    (architecture,) = space.architectures(np.array([row]))
    assert space.genotypes(architecture)["normal"].nodes[0] == (("separable_3x3", 0),) * 2
    weights = extract_weights(supernet, architecture)
    first, second = (f"normal2/state2_{side}_separable_3x3/pointwise1.weight" for side in (1, 2))
    assert np.array_equal(weights[first], weights[second]) and not np.shares_memory(weights[first], weights[second])
    assert supernet.mixture_of(row)["normal"][0] == {("separable_3x3", 0): WeighedTerm(2.0)}


def test_a_state_meets_the_same_weights_wherever_it_is_passed_on():
    """What reads a cell of varying width reads each state with columns of that state's own."""
    supernet = used("nasnet-like")
    head = supernet.state_dict()["head.block/classifier.weight"]
    width = supernet.space.skeleton.cells[-1].channels
    seen = set()
    for architecture in Trellis(supernet.space).sample(40, seed=0):
        passed_on = supernet.space.genotypes(architecture)["normal"].concat
        columns = torch.cat([head[:, (state - 2) * width:(state - 1) * width] for state in passed_on], 1)
        assert np.array_equal(extract_weights(supernet, architecture)["head/classifier.weight"], columns.numpy())
        seen.add(passed_on)
    assert len(seen) > 2


def test_an_output_that_has_the_width_already_is_read_as_it_is():
    """NASNet's rule; it depends on how many states the cell before passes on."""
    supernet = used("nasnet-like")
    found = {}
    for architecture in Trellis(supernet.space).sample(60, seed=1):
        passed_on = len(supernet.space.genotypes(architecture)["normal"].concat)
        found.setdefault(passed_on, any(key.startswith("reduce/previous/") for key in extract_weights(supernet, architecture)))
    assert found == {1: True, 2: False, 3: True}


def test_names_are_readable_and_weights_follow_from_the_seed():
    space = darts_like()
    first, second, other = (build_supernet(space, seed).state_dict() for seed in (5, 5, 6))
    names = {key.split(".")[0] for key in first}
    assert {"stem", "cell1/current", "cell1/previous", "cell2/state2/conv@0", "cell3/state3/conv@2", "head"} <= names
    assert "cell2/state2/skip@0" in names and "cell1/state2/skip@0" not in names  # a skip that reduces has weights
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    key = "cell1/state2/conv@0.block/pointwise.weight"
    assert not torch.equal(first[key], other[key]) and not torch.equal(first[key], first[key.replace("@0", "@1")])


@every_space
def test_every_term_that_can_be_chosen_has_weights_and_no_other(name):
    """`possible_terms` against the genotypes of every single choice, in company of random others."""
    space = BUILDERS[name]()
    rng = np.random.default_rng(0)
    counts = [len(decision.options) for decision in space.decisions]
    rows = [[int(rng.integers(count)) for count in counts] for _ in range(3000)]
    for _ in range(20):
        for column, count in enumerate(counts):
            rows += [[*row[:column], option, *row[column + 1:]] for row in rows[:1] for option in range(count)]
        rows.pop(0)
    seen = {kind: [set() for _ in each.possible_terms] for kind, each in space.kinds.items()}
    for architecture in space.architectures(np.array(rows)):
        with contextlib.suppress(InputError):  # a cell that nothing reads
            for kind, genotype in space.genotypes(architecture).items():
                for state, node in zip(seen[kind], genotype.nodes, strict=True):
                    state.update(node)
    assert seen == {kind: list(map(set, each.possible_terms)) for kind, each in space.kinds.items()}


def test_a_head_that_cannot_read_a_varying_width_is_refused():
    space = nasnet_like()

    @dataclasses.dataclass(frozen=True)
    class NormalisingHead(Head):
        kind = "normalising_head"

        def build(self, net, x):
            return super().build(net, net.add("first", BatchNorm(), x))

    broken = dataclasses.replace(space, skeleton=dataclasses.replace(space.skeleton, head=NormalisingHead(4, 8)))
    with pytest.raises(InputError, match=r"'head'.*BatchNorm.*use a cell_head"):
        build_supernet(broken)


@pytest.mark.parametrize("path", [[0], [0] * 11, [99] * 10, [0.0] * 10])
def test_a_path_that_is_not_of_the_space_is_refused(path):
    with pytest.raises(InputError, match="one option index for each decision"):
        used("darts-like")(images_for(darts_like()), path)


# Many at once


def by_hand(supernet, images, mixture):
    """A mixture of the darts-like space, written out."""
    modules, cells = supernet._modules, supernet.space.skeleton.cells
    before = last = modules["stem"](images)
    for cell in cells:
        states = [modules[f"{cell.name}/previous"](before), modules[f"{cell.name}/current"](last)]
        for state, terms in enumerate(mixture[cell.kind], 2):
            total = 0
            for term, how in terms.items():
                module = modules.get(term_name(cell, state, term))
                y = states[term[1]] if module is None else module(states[term[1]])
                total = total + how.weight * y
            states.append(total)
        before, last = last, torch.cat(states[2:], 1)
    return modules["head"](last)


def test_a_mixture_is_the_weighed_sum_of_its_terms():
    supernet = used("darts-like")
    images = images_for(supernet.space)
    rng = np.random.default_rng(0)
    for _ in range(5):
        mixture = {kind: [{term: WeighedTerm(float(rng.uniform(0.1, 2))) for term in terms if rng.random() < 0.6} or
                          {terms[0]: WeighedTerm(1.0)} for terms in each.possible_terms]
                   for kind, each in supernet.space.kinds.items()}
        with torch.inference_mode():
            assert torch.allclose(supernet.mix(images, mixture), by_hand(supernet, images, mixture), rtol=1e-4, atol=1e-5)


@every_space
def test_the_terms_of_a_network_alone_are_the_network(name):
    supernet = used(name)
    images = images_for(supernet.space)
    for architecture in Trellis(supernet.space).sample(5, seed=2):
        with torch.inference_mode():
            assert torch.equal(supernet.mix(images, supernet.mixture_of(architecture)), supernet(images, architecture))


def test_only_the_terms_of_a_mixture_get_gradients_and_frozen_ones_only_to_their_weight():
    supernet = build_supernet(darts_like())
    weights = torch.full((3,), 0.5, requires_grad=True)
    mixture = {"normal": [{("conv", 0): WeighedTerm(weights[0]), ("conv", 1): WeighedTerm(weights[1], is_frozen=True)},
                          {("skip", 2): WeighedTerm(weights[2])}],
               "reduction": [{("max_pool", 1): WeighedTerm(1.0)}, {("skip", 0): WeighedTerm(1.0)}]}
    supernet.mix(images_for(supernet.space), mixture).square().sum().backward()
    touched = {key.split(".")[0] for key, parameter in supernet.named_parameters() if parameter.grad is not None}
    # Cell 3 reads cell 1 as state 0, and cell 2 as state 1, so that nothing but a frozen term reads cell 2.
    assert {name for name in touched if "@" in name} == {"cell1/state2/conv@0", "cell3/state2/conv@0"}
    assert (weights.grad != 0).all()


def test_a_frozen_skip_is_a_constant_too():
    supernet = build_supernet(darts_like())
    skips = {("skip", 0): WeighedTerm(1.0, is_frozen=True), ("skip", 1): WeighedTerm(1.0, is_frozen=True)}
    mixture = {"normal": [skips, {("skip", 2): WeighedTerm()}], "reduction": [{("conv", 0): WeighedTerm()}] * 2}
    supernet.mix(images_for(supernet.space), mixture).square().sum().backward()
    assert {key for key, parameter in supernet.named_parameters() if parameter.grad is not None} == {
        "head.block/classifier.weight", "head.block/classifier.bias"}


def test_a_state_without_terms_is_zero():
    supernet = used("darts-like")
    images = images_for(supernet.space)
    one = {("conv", 0): WeighedTerm(1.0)}
    mixture = {"normal": [{}, {("skip", 2): WeighedTerm(1.0)}], "reduction": [one, one]}
    silent = {"normal": [{("conv", 0): WeighedTerm(0.0)}, {("skip", 2): WeighedTerm(1.0)}], "reduction": [one, one]}
    with torch.inference_mode():
        assert torch.allclose(supernet.mix(images, mixture), supernet.mix(images, silent))


def test_normalised_operations_have_no_mean_and_variance_one():
    supernet = used("darts-like")
    images = images_for(supernet.space, 8)
    mixture = {kind: [{("max_pool", 0): WeighedTerm(is_normalised=True)}] * 2 for kind in ("normal", "reduction")}
    seen = []
    handle = supernet._modules["head"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        supernet.mix(images, mixture)
    handle.remove()
    assert seen[0].mean((0, 2, 3)).abs().max() < 1e-4
    assert (seen[0].var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("mixture", [{}, {"normal": [{}], "reduction": [{}, {}]},
                                     {"normal": [{("convolution", 0): WeighedTerm(1.0)}, {}], "reduction": [{}, {}]},
                                     {"normal": [{("conv", 2): WeighedTerm(1.0)}, {}], "reduction": [{}, {}]}])
def test_a_term_that_no_network_has_is_refused(mixture):
    with pytest.raises(InputError, match="terms that some architecture has"):
        used("darts-like").mix(images_for(darts_like()), mixture)


# Scores


def test_scores_are_those_of_the_recalibrated_networks():
    supernet, dataset = used("darts-like"), tiny_dataset()
    architectures = Trellis(supernet.space).sample(4, seed=0)
    expected = []
    for architecture in architectures:
        module = to_torch(supernet.space.network(architecture), extract_weights(supernet, architecture))
        train = torch.from_numpy(dataset.normalise(dataset.train.images))
        recalibrate_batch_norm(module, [train[:80], train[80:]])
        with torch.inference_mode():
            predicted = module.eval()(torch.from_numpy(dataset.normalise(dataset.validation.images))).argmax(1).numpy()
        expected.append(float((predicted == dataset.validation.labels).mean()))
    assert SupernetEvaluator(supernet, dataset)(architectures) == pytest.approx(expected, abs=1e-9)


def test_all_networks_together_use_every_weight():
    supernet = build_supernet(darts_like())
    space = supernet.space
    rows = list(itertools.islice(itertools.product(*(range(len(one.options)) for one in space.decisions)), 0, None, 997))
    reached = {place_in_supernet(space, one, key) for one in space.architectures(np.array(rows))
               for key in space.network(one).weight_shapes}
    assert reached == set(supernet.state_dict())
