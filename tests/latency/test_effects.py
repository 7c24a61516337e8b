"""Effects in levels: their equations against independent forms of them, and spreads that are found again."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, WhiteKernel

from hwnas.ir.quantized import Quantized
from hwnas.latency.effects import _generalised_least_squares, _unlikeliness, block_traits, fit_levels, trait_matrix
from hwnas.spaces.load import load_space


def _fit(line: np.ndarray, level: np.ndarray, variance: float, figures: np.ndarray):
    return _generalised_least_squares(line, [level], [level @ level.T], [variance], figures)


def test_shrunken_effects_are_penalised_least_squares():
    """Stacked least squares: residuals, and the penalty of effects in units of their spread."""
    generator = np.random.default_rng(2)
    line, level, variance = generator.uniform(0.5, 2, (15, 2)), generator.uniform(0, 1, (15, 6)), 0.49
    design = np.block([[line, level], [np.zeros((6, 2)), np.eye(6) / np.sqrt(variance)]])
    solution = np.linalg.lstsq(design, np.concatenate([np.ones(15), np.zeros(6)]), rcond=None)[0]
    found = _fit(line, level, variance, np.ones(15))
    np.testing.assert_allclose(found.coefficients, solution[:2], atol=1e-10)
    np.testing.assert_allclose(found.effects[0], solution[2:], atol=1e-10)


def test_without_a_line_effects_are_a_gaussian_process():
    generator = np.random.default_rng(3)
    columns = generator.uniform(0, 1, (12, 4))
    line = np.full((12, 1), 1e-9)
    process = GaussianProcessRegressor(0.49 * DotProduct(0.0, "fixed") + WhiteKernel(1.0, "fixed"), optimizer=None)
    found = _fit(line, columns, 0.49, np.ones(12))
    process.fit(columns, np.ones(12) - line[:, 0] * found.coefficients[0])
    new = generator.uniform(0, 1, (5, 4))
    np.testing.assert_allclose(new @ found.effects[0], process.predict(new), atol=1e-9)


def test_left_out_residuals_are_those_of_fits_without_the_row():
    generator = np.random.default_rng(4)
    line, level = generator.normal(1, 0.3, (12, 2)), generator.normal(0, 1, (12, 5))
    figures = generator.normal(1, 0.5, 12)
    whole = _fit(line, level, 0.7, figures)
    for row in range(12):
        kept = np.arange(12) != row
        part = _fit(line[kept], level[kept], 0.7, figures[kept])
        expected = line[row] @ part.coefficients + level[row] @ part.effects[0]
        assert figures[row] - expected == pytest.approx(whole.left_out[row])


def test_restricted_likelihood_matches_its_definition():
    """The density of what the line leaves, in a basis of the rest of the space; two levels, one of them varied."""
    generator = np.random.default_rng(3)
    line, level, other = generator.normal(1, 0.3, (12, 2)), generator.normal(0, 1, (12, 5)), generator.normal(0, 1, (12, 3))
    ones, kernel, others = np.ones(12), level @ level.T, np.eye(12) + 0.3 * other @ other.T
    basis = np.linalg.svd(np.eye(12) - line @ np.linalg.pinv(line))[0][:, :10]
    rest, variances, densities = basis.T @ ones, np.array([0.0, 0.1, 1.0, 30.0]), []
    for variance in variances:
        covariance = basis.T @ (others + variance * kernel) @ basis
        noise = rest @ np.linalg.solve(covariance, rest) / 10
        densities.append(-0.5 * (10 * np.log(noise) + np.linalg.slogdet(covariance)[1]))
    found = _unlikeliness(line, ones, others, kernel, variances)
    np.testing.assert_allclose(found - found[0], densities[0] - np.array(densities), atol=1e-9)
    one_by_one = [_generalised_least_squares(line, [level, other], [kernel, other @ other.T], [variance, 0.3], ones).unlikeliness
                  for variance in variances]
    np.testing.assert_allclose(found, one_by_one, atol=1e-9)


def test_spreads_are_found_that_made_the_data():
    """Two levels, of a tenth and of three times the noise: the likeliest spreads are within a factor of these."""
    generator = np.random.default_rng(5)
    line, levels = np.ones((400, 1)), [generator.normal(0, 1, (400, 40)), generator.normal(0, 1, (400, 30))]
    target = 1 + 1e-3 * (generator.normal(0, 1, 400) + 3 * levels[0] @ generator.normal(0, 1, 40) / np.sqrt(40))
    found = fit_levels(line, levels, target)
    spreads = [np.std(level @ effect) for level, effect in zip(levels, found.effects, strict=True)]
    assert spreads[0] == pytest.approx(3e-3, rel=0.3) and spreads[1] < 5e-4
    assert np.std(found.left_out) == pytest.approx(1e-3, rel=0.3)


def test_traits_tell_some_blocks_from_others_and_look_inside():
    parts = list(load_space("mobile-cpu+int8+fp32").measured_parts.values())
    told = [block_traits(part) for part in parts]
    inside = next(own for part, own in zip(parts, told, strict=True) if isinstance(part.block, Quantized) and
                  part.block.block.kind == "mbconv")
    assert {"mbconv", "mbconv.activation=relu", "quantized.weight_bits=8"} <= inside
    matrix = trait_matrix(told)
    assert ((matrix > 0).sum(axis=0) > 1).all() and ((matrix > 0).sum(axis=0) < len(parts)).all()
    assert (matrix**2).sum(axis=1).mean() == pytest.approx(1)
    assert trait_matrix([frozenset()] * 3).shape == (3, 0)
