"""Path sampling: uniform, and a pure function of (seed, step)."""

import numpy as np
from scipy import stats

from hwnas.supernet.paths import uniform_paths
from hwnas.supernet.streams import stream_seed


def test_every_path_is_equally_likely(space):
    paths = uniform_paths(space, seed=0)
    rows = np.concatenate([paths(step) for step in range(9000)])
    counts = [len(decision.options) for decision in space.decisions]
    for column, options in zip(rows.T, counts, strict=True):
        assert stats.chisquare(np.bincount(column, minlength=options)).pvalue > 1e-3
    joint = np.bincount(np.ravel_multi_index(tuple(rows.T), counts), minlength=space.size)
    assert len(joint) == space.size
    assert stats.chisquare(joint).pvalue > 1e-3


def test_paths_follow_from_seed_and_step_in_any_order(space):
    forwards = [uniform_paths(space, 4)(step) for step in range(20)]
    backwards = [uniform_paths(space, 4)(step) for step in reversed(range(20))][::-1]
    assert np.array_equal(forwards, backwards)
    assert not np.array_equal(forwards, [uniform_paths(space, 5)(step) for step in range(20)])


def test_streams_do_not_meet():
    seeds = {stream_seed(seed, purpose, index) for seed in range(5) for purpose in ("paths", "dropout") for index in range(200)}
    assert len(seeds) == 5 * 2 * 200
    assert all(0 <= each < 1 << 63 for each in seeds)
