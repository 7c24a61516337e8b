"""Against scipy's exact tests, published figures, and simulation."""

import numpy as np
import pytest
from scipy import stats

from hwnas.errors import InputError
from hwnas.pipeline.paired_accuracy import accuracy_interval, compare_accuracy


def pair(both, gained, lost, neither):
    first = np.repeat([True, True, False, False], [both, gained, lost, neither])
    second = np.repeat([True, False, True, False], [both, gained, lost, neither])
    return first, second


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (20, 7), (3, 40), (150, 86), (4000, 4100)])
def test_p_values_agree_with_scipy(gained, lost):
    found = compare_accuracy(*pair(100, gained, lost, 9000))
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.difference == pytest.approx((gained - lost) / (9100 + gained + lost))
    assert found.lower < found.difference < found.upper


def test_the_interval_is_the_published_one():
    """Agresti and Min's formula by hand: b = 86.5, c = 150.5, n = 1602."""
    found = compare_accuracy(*pair(794, 150, 86, 570))
    centre = 64 / 1602
    half = 1.959964 * np.sqrt(237 - 64**2 / 1602) / 1602
    np.testing.assert_allclose((found.lower, found.upper), (centre - half, centre + half), rtol=1e-6)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        first, second = pair(*rng.multinomial(500, [0.8, 0.03, 0.01, 0.16]))
        found = compare_accuracy(first, second)
        low, high = accuracy_interval(first)
        covered.append((found.lower <= 0.02 <= found.upper, low <= 0.83 <= high))
    assert (np.mean(covered, axis=0) > 0.93).all()


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (37, 50), (7700, 8000)])
def test_wilson_s_interval_agrees_with_scipy(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    np.testing.assert_allclose(accuracy_interval(np.arange(count) < right), (expected.low, expected.high), atol=1e-9)


def test_other_images_are_refused():
    with pytest.raises(InputError, match="same images"):
        compare_accuracy(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(InputError, match="same images"):
        compare_accuracy(np.ones(0, bool), np.ones(0, bool))
