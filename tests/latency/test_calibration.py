"""The calibration recovers what generated the data, and does not invent terms that the data do not show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, WhiteKernel

from hwnas.latency.calibration import Calibration, _leave_one_out_error, _Ridge, fit_calibration

BLOCKS = 30


def random_networks(count: int, seed: int = 0, depth: int | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """How often each network has each block, and the blocks' isolated ratios."""
    generator = np.random.default_rng(seed)
    ratios = {f"block{number}": float(ratio) for number, ratio in enumerate(generator.uniform(0.02, 0.3, BLOCKS))}
    counts = np.stack([np.bincount(generator.integers(BLOCKS, size=depth or generator.integers(4, 20)), minlength=BLOCKS)
                       for _ in range(count)])
    return counts, ratios


def line_of(counts: np.ndarray, ratios: dict[str, float], scale: float, intercept: float, per_block: float) -> np.ndarray:
    return intercept + scale * counts @ np.array(list(ratios.values())) + per_block * counts.sum(axis=1)


def predicted(found: Calibration, counts: np.ndarray, ratios: dict[str, float]) -> np.ndarray:
    return found.intercept + counts @ np.array([found.cost(workload, ratio) for workload, ratio in ratios.items()])


@pytest.mark.parametrize(("scale", "intercept", "per_block"), [(1.0, 0.0, 0.0), (0.8, 0.05, 0.0), (0.9, 0.1, -0.01)])
def test_exact_data_are_recovered(scale, intercept, per_block):
    counts, ratios = random_networks(60)
    found = fit_calibration(counts, ratios, line_of(counts, ratios, scale, intercept, per_block))
    assert np.allclose([found.scale, found.intercept, found.per_block], [scale, intercept, per_block], atol=1e-6)
    assert found.networks == 60 and found.leave_one_out_error < 1e-6
    assert max(map(abs, found.corrections.values()), default=0) < 1e-6


def test_blocks_that_cost_more_in_networks_are_corrected():
    """Half the blocks cost twice as much as alone: no line says that, and forty networks do."""
    counts, ratios = random_networks(120)
    true = np.array(list(ratios.values())) * np.where(np.arange(BLOCKS) % 2, 2.0, 1.0)
    noisy = (counts @ true) * np.random.default_rng(1).normal(1, 0.01, len(counts))
    line = fit_calibration(counts[:80], ratios, noisy[:80], corrections=False)
    found = fit_calibration(counts[:80], ratios, noisy[:80])
    errors = [np.abs(predicted(one, counts[80:], ratios) / (counts[80:] @ true) - 1).mean() for one in (line, found)]
    assert not line.corrections and errors[0] > 0.05
    assert len(found.corrections) == BLOCKS and errors[1] < errors[0] / 2
    fresh = np.sqrt(np.mean((predicted(found, counts[80:], ratios) / noisy[80:] - 1) ** 2))
    assert found.leave_one_out_error == pytest.approx(fresh, rel=0.5)


def test_noise_is_not_taken_for_corrections():
    """On data that a line explains, corrections may not make the prediction of new networks worse by much."""
    for seed in range(5):
        counts, ratios = random_networks(100, seed)
        truth = line_of(counts, ratios, 0.8, 0.05, 0.0)
        noisy = truth * np.random.default_rng(seed).normal(1, 0.02, len(counts))
        line, found = (fit_calibration(counts[:60], ratios, noisy[:60], corrections=wanted) for wanted in (False, True))
        errors = [np.sqrt(np.mean((predicted(one, counts[60:], ratios) / truth[60:] - 1) ** 2)) for one in (line, found)]
        assert errors[1] < errors[0] + 0.004


def test_leave_one_out_error_equals_refitting_without_each_row():
    generator = np.random.default_rng(1)
    columns = generator.uniform(0.5, 2, (12, 3))
    residuals = []
    for row in range(12):
        rest = np.delete(columns, row, axis=0)
        solution = np.linalg.lstsq(rest, np.ones(11), rcond=None)[0]
        residuals.append(1 - columns[row] @ solution)
    assert _leave_one_out_error(columns) == pytest.approx(np.sqrt(np.mean(np.square(residuals))))


def test_the_ridge_is_the_penalised_least_squares_solution_and_its_leave_one_out_refits():
    generator = np.random.default_rng(2)
    line, columns, weights = generator.uniform(0.5, 2, (15, 2)), generator.uniform(0, 1, (15, 6)), generator.uniform(1, 2, 6)
    spread = 0.7

    def solve(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stacked least squares: residuals, and the penalty |u|^2 / spread^2 on the standardised corrections."""
        design = np.block([[line[rows], columns[rows] * weights], [np.zeros((6, 2)), np.eye(6) / spread]])
        solution = np.linalg.lstsq(design, np.concatenate([np.ones(len(rows)), np.zeros(6)]), rcond=None)[0]
        return solution[:2], solution[2:] * weights

    found = _Ridge(line, columns * weights, weights, spread)
    coefficients, corrections = solve(np.arange(15))
    np.testing.assert_allclose(found.coefficients, coefficients, atol=1e-10)
    np.testing.assert_allclose(found.corrections, corrections, atol=1e-10)
    left_out = [1 - line[row] @ solve(np.delete(np.arange(15), row))[0] - columns[row] @ solve(np.delete(np.arange(15), row))[1]
                for row in range(15)]
    assert found.error == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=1e-9)


def test_without_a_line_the_ridge_is_a_gaussian_process():
    generator = np.random.default_rng(3)
    columns = generator.uniform(0, 1, (12, 4))
    line = np.full((12, 1), 1e-9)
    process = GaussianProcessRegressor(0.49 * DotProduct(0.0, "fixed") + WhiteKernel(1.0, "fixed"), optimizer=None)
    process.fit(columns, np.ones(12))
    new = generator.uniform(0, 1, (5, 4))
    found = _Ridge(line, columns, np.ones(4), 0.7)
    rest = np.ones(12) - line[:, 0] * found.coefficients[0]
    process.fit(columns, rest)
    np.testing.assert_allclose(new @ found.corrections, process.predict(new), atol=1e-9)


def test_without_networks_the_table_is_a_plain_sum():
    assert fit_calibration(np.empty((0, 1), np.int64), {"block": 1.0}, np.empty(0)) == Calibration()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_few_networks_never_fit_more_terms_than_they_can_bear(count, seed):
    counts, ratios = random_networks(count, seed)
    noisy = line_of(counts, ratios, 0.8, 0.05, 0.0) * np.random.default_rng(seed).normal(1, 0.02, count)
    found = fit_calibration(counts, ratios, noisy)
    assert np.isfinite([found.scale, found.intercept, found.per_block]).all() and not found.corrections
    if count < 8:
        assert found.intercept == 0 and found.per_block == 0
        assert found.scale == pytest.approx(0.8, rel=0.6)


def test_networks_of_one_depth_cannot_show_a_cost_per_block():
    counts, ratios = random_networks(30, depth=8)
    found = fit_calibration(counts, ratios, line_of(counts, ratios, 0.9, 0.1, 0.0))
    assert found.per_block == 0 and found.intercept == pytest.approx(0.1)


def test_no_block_shortens_a_network():
    assert Calibration(per_block=-1.0).cost("block", 0.5) == 0.0
    assert Calibration(corrections={"block": 0.25}).cost("block", 0.5) == 0.75
