"""The calibration recovers what generated the data, and does not invent terms that the data do not show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.latency.calibration import Calibration, _leave_one_out_error, fit_calibration
from hwnas.latency.effects import trait_matrix

BLOCKS = 30


def random_networks(count: int, seed: int = 0, depth: int | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """How often each network has each block, and the blocks' isolated ratios."""
    generator = np.random.default_rng(seed)
    ratios = {f"block{number}": float(ratio) for number, ratio in enumerate(generator.uniform(0.02, 0.3, BLOCKS))}
    counts = np.stack([np.bincount(generator.integers(BLOCKS, size=depth or generator.integers(4, 20)), minlength=BLOCKS)
                       for _ in range(count)])
    return counts, ratios


def once(measured: np.ndarray) -> list[np.ndarray]:
    """As networks of one session each."""
    return [np.array([value]) for value in measured]


def line_of(counts: np.ndarray, ratios: dict[str, float], scale: float, intercept: float, per_block: float) -> np.ndarray:
    return intercept + scale * counts @ np.array(list(ratios.values())) + per_block * counts.sum(axis=1)


def predicted(found: Calibration, counts: np.ndarray, ratios: dict[str, float]) -> np.ndarray:
    return found.intercept + counts @ np.array([found.cost(workload, ratio) for workload, ratio in ratios.items()])


@pytest.mark.parametrize(("scale", "intercept", "per_block"), [(1.0, 0.0, 0.0), (0.8, 0.05, 0.0), (0.9, 0.1, -0.01)])
def test_exact_data_are_recovered(scale, intercept, per_block):
    counts, ratios = random_networks(60)
    found = fit_calibration(counts, ratios, once(line_of(counts, ratios, scale, intercept, per_block)))
    assert np.allclose([found.scale, found.intercept, found.per_block], [scale, intercept, per_block], atol=1e-6)
    assert found.networks == 60 and found.leave_one_out_error < 1e-6
    assert max(map(abs, found.corrections.values()), default=0) < 1e-6


def test_blocks_that_cost_more_in_networks_are_corrected():
    """Half the blocks cost twice as much as alone: no line says that, and forty networks do."""
    counts, ratios = random_networks(120)
    true = np.array(list(ratios.values())) * np.where(np.arange(BLOCKS) % 2, 2.0, 1.0)
    noisy = (counts @ true) * np.random.default_rng(1).normal(1, 0.01, len(counts))
    line = fit_calibration(counts[:80], ratios, once(noisy[:80]), corrections=False)
    found = fit_calibration(counts[:80], ratios, once(noisy[:80]))
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
        line, found = (fit_calibration(counts[:60], ratios, once(noisy[:60]), corrections=wanted) for wanted in (False, True))
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


TRAITS = {f"block{number}": frozenset({f"row{number // 6}", f"column{number % 6}"}) for number in range(BLOCKS)}


def test_blocks_that_share_a_trait_are_corrected_together():
    """What blocks share is learned from fewer networks than each on its own, and for blocks that no network had."""
    counts, ratios = random_networks(400)
    counts[:40, [0, 7, 22]] = 0
    isolated = np.array(list(ratios.values()))
    true = isolated * (1 + trait_matrix(list(TRAITS.values())) @ np.random.default_rng(2).normal(0, 0.4, 11))
    truth = counts @ true
    noisy = truth * np.random.default_rng(1).normal(1, 0.02, len(counts))
    alone, shared = (fit_calibration(counts[:40], ratios, once(noisy[:40]), traits) for traits in (None, TRAITS))
    errors = [np.abs(predicted(one, counts[40:], ratios) / truth[40:] - 1).mean() for one in (alone, shared)]
    assert errors[1] < 0.6 * errors[0]
    unseen = list(ratios)[7]
    assert unseen not in alone.corrections and shared.cost(unseen, ratios[unseen]) == pytest.approx(true[7], rel=0.15)


def test_a_bad_session_hardly_moves_the_fit():
    """One session in eight takes half as long again; with two sessions a network, a median cannot tell which."""
    counts, ratios = random_networks(80)
    truth = line_of(counts, ratios, 0.8, 0.05, 0.0)
    sessions = list(truth[:, None] * np.random.default_rng(1).normal(1, 0.005, (80, 2)))
    for one in sessions[::4]:
        one[0] *= 1.5
    weighed, medians = (fit_calibration(counts[:60], ratios, sessions[:60], weigh=weigh) for weigh in (True, False))
    errors = [np.abs(predicted(one, counts[60:], ratios) / truth[60:] - 1).mean() for one in (weighed, medians)]
    assert errors[0] < 0.01 and errors[0] < 0.2 * errors[1]


def test_blocks_that_would_shorten_networks_cost_nothing_and_the_rest_makes_up_for_it():
    """Every third block is free inside of a network: corrections, shrunken towards a line, may go below nothing."""
    counts, ratios = random_networks(120)
    true = np.array(list(ratios.values())) * np.where(np.arange(BLOCKS) % 3, 1.5, 0.0)
    noisy = (0.2 + counts @ true) * np.random.default_rng(1).normal(1, 0.02, len(counts))
    found = fit_calibration(counts[:80], ratios, once(noisy[:80]))
    raw = [found.scale * ratio + found.per_block + found.corrections.get(workload, 0.0) for workload, ratio in ratios.items()]
    assert min(raw) > -1e-9 and sum(value < 1e-9 for value in raw) > 0
    errors = predicted(found, counts[80:], ratios) / (0.2 + counts[80:] @ true) - 1
    assert np.abs(errors).mean() < 0.02 and abs(errors.mean()) < 0.005


def test_a_term_of_the_line_is_not_missed_for_corrections():
    """What corrections explain is in the way of seeing that every network costs something beyond its blocks."""
    counts, ratios = random_networks(160, seed=2)
    true = np.array(list(ratios.values())) * np.random.default_rng(0).uniform(0.2, 2.0, BLOCKS)
    found = fit_calibration(counts[:60], ratios, once(0.2 + counts[:60] @ true))
    assert found.intercept == pytest.approx(0.2, abs=0.02)
    assert np.abs(predicted(found, counts[60:], ratios) / (0.2 + counts[60:] @ true) - 1).mean() < 0.005


def test_without_networks_the_table_is_a_plain_sum():
    assert fit_calibration(np.empty((0, 1), np.int64), {"block": 1.0}, []) == Calibration()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_few_networks_never_fit_more_terms_than_they_can_bear(count, seed):
    counts, ratios = random_networks(count, seed)
    noisy = line_of(counts, ratios, 0.8, 0.05, 0.0) * np.random.default_rng(seed).normal(1, 0.02, count)
    found = fit_calibration(counts, ratios, once(noisy))
    assert np.isfinite([found.scale, found.intercept, found.per_block]).all() and not found.corrections
    if count < 8:
        assert found.intercept == 0 and found.per_block == 0
        assert found.scale == pytest.approx(0.8, rel=0.6)


def test_a_network_much_smaller_than_all_others_is_not_what_their_intercept_says():
    """Networks of about one size hardly show an intercept, and what little of it they seem to show is much of a small network."""
    small, errors = np.eye(BLOCKS, dtype=int)[:5].sum(axis=0), []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        _, ratios = random_networks(1)
        counts = np.stack([np.bincount(generator.integers(BLOCKS, size=generator.integers(60, 90)), minlength=BLOCKS)
                           for _ in range(40)])
        isolated = np.array(list(ratios.values()))
        found = fit_calibration(counts, ratios, once(counts @ isolated * generator.normal(1, 0.02, len(counts))))
        errors.append(abs(predicted(found, small[None], ratios)[0] / (small @ isolated) - 1))
    assert np.median(errors) < 0.05


def test_networks_of_one_depth_cannot_show_a_cost_per_block():
    counts, ratios = random_networks(30, depth=8)
    found = fit_calibration(counts, ratios, once(line_of(counts, ratios, 0.9, 0.1, 0.0)))
    assert found.per_block == 0 and found.intercept == pytest.approx(0.1)


def test_no_block_shortens_a_network():
    assert Calibration(per_block=-1.0).cost("block", 0.5) == 0.0
    assert Calibration(corrections={"block": 0.25}).cost("block", 0.5) == 0.75
