"""The calibration recovers what generated the data, and does not invent terms that the data do not show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.latency.calibration import Calibration, _leave_one_out_error, fit_calibration


def _networks(count: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    blocks = generator.integers(4, 20, count)
    sums = np.array([generator.uniform(0.02, 0.3, size).sum() for size in blocks])
    return sums, blocks


@pytest.mark.parametrize(("scale", "intercept", "per_block"), [(1.0, 0.0, 0.0), (0.8, 0.05, 0.0), (0.9, 0.1, -0.01)])
def test_exact_data_are_recovered(scale, intercept, per_block):
    sums, blocks = _networks(30)
    found = fit_calibration(sums.tolist(), blocks.tolist(), (intercept + scale * sums + per_block * blocks).tolist())
    assert np.allclose([found.scale, found.intercept, found.per_block], [scale, intercept, per_block], atol=1e-9)
    assert found.networks == 30


def test_leave_one_out_error_equals_refitting_without_each_row():
    generator = np.random.default_rng(1)
    columns = generator.uniform(0.5, 2, (12, 3))
    residuals = []
    for row in range(12):
        rest = np.delete(columns, row, axis=0)
        solution = np.linalg.lstsq(rest, np.ones(11), rcond=None)[0]
        residuals.append(1 - columns[row] @ solution)
    assert _leave_one_out_error(columns) == pytest.approx(np.sqrt(np.mean(np.square(residuals))))


def test_without_networks_the_table_is_a_plain_sum():
    assert fit_calibration([], [], []) == Calibration()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_few_networks_never_fit_more_terms_than_they_can_bear(count, seed):
    sums, blocks = _networks(count, seed)
    noisy = (sums * 0.8 + 0.05) * np.random.default_rng(seed).normal(1, 0.02, count)
    found = fit_calibration(sums.tolist(), blocks.tolist(), noisy.tolist())
    assert np.isfinite([found.scale, found.intercept, found.per_block]).all()
    if count < 8:
        assert found.intercept == 0 and found.per_block == 0
        assert found.scale == pytest.approx(0.8, rel=0.6)


def test_networks_of_one_depth_cannot_show_a_cost_per_block():
    sums, _ = _networks(30)
    found = fit_calibration(sums.tolist(), [8] * 30, (0.1 + 0.9 * sums).tolist())
    assert found.per_block == 0 and found.intercept == pytest.approx(0.1)
