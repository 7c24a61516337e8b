"""Path sampling: its frequencies, its fairness, its extremes; and a pure function of (seed, step)."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces import build_plain_conv_cpu, build_resnet_bits_cpu
from hwnas.supernet.paths import (
    fair_paths,
    largest_network,
    paths_within,
    sandwich_paths,
    smallest_network,
    uniform_paths,
)
from hwnas.supernet.streams import stream_seed

CHUNK = 256  # steps drawn together: what happens at its multiples is what could go wrong


def uneven_space() -> SearchSpace:
    """Decisions of 5, 3, 2, 1, 4 and again 3 options."""
    def decision(name: str, options: int) -> Decision:
        return Decision(name, {f"c{width}": ConvBlock(width, 1) for width in range(4, 4 + options)})

    return SearchSpace("uneven", TensorShape(3, 8, 8), (
        Fixed("stem", Stem(4)), decision("five", 5), decision("three", 3), decision("two", 2), decision("one", 1),
        decision("four", 4), decision("third", 3), Fixed("head", Head(4, 8))))


def depth_space() -> SearchSpace:
    """A skipped block is followed by skipped blocks."""
    options = {"k3": MBConv(8, 3, 2), "skip": Identity()}
    return SearchSpace("depth", TensorShape(3, 8, 8), (
        Fixed("stem", Stem(8)), Decision("first", options), Decision("second", options, after={"k3": ("k3",)}),
        Fixed("head", Head(4, 8))))


def all_rows(space):
    return np.array(list(itertools.product(*(range(len(decision.options)) for decision in space.decisions))))


def macs_of(space, rows):
    return np.array([space.network(each).macs for each in space.architectures(rows)])


def drawn(paths, steps):
    return np.concatenate([paths(step) for step in range(steps)])


def samplers(space):
    macs = macs_of(space, all_rows(space))
    return {"uniform": lambda seed: uniform_paths(space, seed, 3), "fair": lambda seed: fair_paths(space, seed),
            "within": lambda seed: paths_within(space, MacsCost(), float(np.median(macs)), seed),
            "sandwich": lambda seed: sandwich_paths(space, seed)}


@pytest.mark.parametrize("count", [1, 3])
def test_every_path_is_equally_likely(space, count):
    rows = drawn(uniform_paths(space, 0, count), 9000 // count)
    assert rows.shape == (9000, len(space.decisions))
    counts = [len(decision.options) for decision in space.decisions]
    for column, options in zip(rows.T, counts, strict=True):
        assert stats.chisquare(np.bincount(column, minlength=options)).pvalue > 1e-3
    joint = np.bincount(np.ravel_multi_index(tuple(rows.T), counts), minlength=space.size)
    assert len(joint) == space.size
    assert stats.chisquare(joint).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_paths_within_a_budget_are_those_of_an_enumeration_and_equally_likely(space, share):
    everything = all_rows(space)
    macs = macs_of(space, everything)
    budget = float(np.quantile(macs, share, method="lower"))
    fitting = {tuple(row) for row in everything[macs <= budget].tolist()}
    assert (1 <= len(fitting) < space.size) and (share == 0 or len(fitting) > 4)
    seen = Counter(map(tuple, drawn(paths_within(space, MacsCost(), budget, seed=1), 300 * len(fitting)).tolist()))
    assert seen.keys() == fitting
    assert len(fitting) == 1 or stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_a_budget_that_nothing_fits_is_refused_before_training(space):
    least = macs_of(space, all_rows(space)).min()
    paths_within(space, MacsCost(), least, seed=0)
    with pytest.raises(InfeasibleError, match=f"raise the budget to at least {least} MACs"):
        paths_within(space, MacsCost(), least - 1, seed=0)


@pytest.mark.parametrize("wrong", [lambda space: uniform_paths(space, 0, 0), lambda space: sandwich_paths(space, 0, -1),
                                   lambda space: paths_within(space, MacsCost(), 1e12, 0, 0)])
def test_numbers_of_paths_are_checked(space, wrong):
    with pytest.raises(InputError, match=r"number of paths .* must be at least"):
        wrong(space)


def test_strict_fairness_is_exact_also_for_decisions_of_fewer_options():
    space = uneven_space()
    paths = fair_paths(space, seed=2)
    steps = 12 * CHUNK  # 5 paths each: a whole number of permutations of 1, 2, 3, 4 and 5 options
    rows = np.stack([paths(step) for step in range(steps)])
    assert rows.shape == (steps, 5, 6)
    assert (np.sort(rows[:, :, 0], axis=1) == np.arange(5)).all()  # the most options: each exactly once in every step
    for column, decision in enumerate(space.decisions):
        options = len(decision.options)
        stream = rows[:, :, column].ravel()
        assert (np.sort(stream.reshape(-1, options), axis=1) == np.arange(options)).all()
        running = np.cumsum(stream[:, None] == np.arange(options), axis=0)
        assert np.ptp(running, axis=1).max() <= 1  # at no time is an option ahead by more than one training
        assert running[-1].tolist() == [steps * 5 // options] * options


def test_fairness_does_not_notice_that_training_was_resumed():
    space = uneven_space()
    until, after = fair_paths(space, seed=5), fair_paths(space, seed=5)
    resumed = CHUNK + 3  # within a chunk, and within the permutations of 2, 3 and 4 options
    rows = np.concatenate([*(until(step) for step in range(resumed)), *(after(step) for step in range(resumed, 2 * CHUNK + 4))])
    for column, decision in enumerate(space.decisions):
        running = np.cumsum(rows[:, column, None] == np.arange(len(decision.options)), axis=0)
        assert np.ptp(running, axis=1).max() <= 1


def test_fair_permutations_are_uniform_and_decisions_independent():
    space = uneven_space()
    paths = fair_paths(space, seed=3)
    rows = np.stack([paths(step) for step in range(12 * CHUNK)])
    for column in (1, 4):  # of 3 and of 4 options
        options = len(space.decisions[column].options)
        seen = Counter(map(tuple, rows[:, :, column].reshape(-1, options).tolist()))
        assert len(seen) == [1, 1, 2, 6, 24][options]
        assert stats.chisquare(list(seen.values())).pvalue > 1e-3
    first = rows[:, 0]  # one path of a step: permutations of up to five options give it one option each
    for one, other in itertools.combinations((0, 1, 2, 4, 5), 2):
        counts = len(space.decisions[one].options), len(space.decisions[other].options)
        joint = np.bincount(np.ravel_multi_index((first[:, one], first[:, other]), counts), minlength=counts[0] * counts[1])
        assert stats.chisquare(joint).pvalue > 1e-3


def test_fairness_is_refused_where_options_exclude_each_other():
    with pytest.raises(InputError, match=r"rule out options of decision 'second' of space 'depth'.*sandwich"):
        fair_paths(depth_space(), 0)
    with pytest.raises(InputError, match="'layer6' of space 'plain-conv-cpu'"):  # an option that a small image does not fit
        fair_paths(build_plain_conv_cpu(), 0)


@pytest.mark.parametrize("make", [uneven_space, depth_space])
def test_a_sandwich_has_the_largest_and_the_smallest_network(make):
    space = make()
    everything = {tuple(row): space.network(space.architectures(np.array([row]))[0]).macs
                  for row in all_rows(space) if make is uneven_space or tuple(row) != (1, 0)}
    assert len(everything) == space.size
    paths = sandwich_paths(space, seed=0, random=2)
    rows = np.stack([paths(step) for step in range(20 * space.size)])
    assert rows.shape[1] == 4
    extremes = np.unique(rows[:, :2], axis=0)
    assert len(extremes) == 1
    largest, smallest = map(tuple, extremes[0].tolist())
    assert everything[largest] == max(everything.values())
    assert everything[smallest] == min(everything.values())
    assert tuple(space.indices([largest_network(space)])[0]) == largest
    assert tuple(space.indices([smallest_network(space)])[0]) == smallest
    between = Counter(map(tuple, rows[:, 2:].reshape(-1, rows.shape[2]).tolist()))
    assert between.keys() == everything.keys()
    assert stats.chisquare(list(between.values())).pvalue > 1e-3
    assert sandwich_paths(space, seed=0, random=0)(0).shape == (2, rows.shape[2])


def test_where_bits_are_searched_the_largest_network_has_the_most():
    space = build_resnet_bits_cpu()
    assert {space.network(each).macs for each in (largest_network(space), smallest_network(space))} == {
        space.network(space.any_architecture).macs}
    assert set(largest_network(space).choices.values()) == {"w4_a4"}
    assert set(smallest_network(space).choices.values()) == {"w1_a1"}


@pytest.mark.parametrize("kind", ["uniform", "fair", "within", "sandwich"])
def test_paths_follow_from_seed_and_step_in_any_order(space, kind):
    make = samplers(space)[kind]
    steps = [0, 1, 7, *range(CHUNK - 2, CHUNK + 2), 3 * CHUNK, 10**6, 10**9]
    expected = {step: make(4)(step) for step in steps}  # each from a sampler that was asked for nothing else
    asked = make(4)
    for step in np.random.default_rng(0).choice(steps, 40).tolist():
        assert np.array_equal(asked(step), expected[step])
    other = make(5)
    assert not all(np.array_equal(other(step), expected[step]) for step in steps)
    assert len({expected[step].tobytes() for step in steps}) > len(steps) // 2
    with pytest.raises(ValueError, match="read-only"):
        asked(0)[:] = 0


def test_streams_do_not_meet():
    seeds = {stream_seed(seed, purpose, index) for seed in range(5) for purpose in ("paths", "dropout") for index in range(200)}
    assert len(seeds) == 5 * 2 * 200
    assert all(0 <= each < 1 << 63 for each in seeds)
