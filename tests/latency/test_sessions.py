"""Statistics of sessions that are bare ratios; `tests/profiling/test_timing.py` checks their coverage by simulation."""

from dataclasses import dataclass

import pytest
from scipy import stats

from hwnas.errors import InputError
from hwnas.latency.sessions import combine_ratios, combine_sessions, median_relative_ci
from hwnas.latency.table import EntryRecord

SESSIONS = ((1.0, 1.02, 0.98), (1.1, 1.1, 1.12), (0.99, 1.01, 1.0))


@dataclass
class _Session:
    ratios: tuple[float, ...]


def test_an_entrys_interval_is_that_of_its_sessions():
    joined = combine_ratios(SESSIONS)
    assert joined == combine_sessions([_Session(ratios) for ratios in SESSIONS])
    entry = EntryRecord(sessions=SESSIONS, label="ok")
    assert entry.ratio_ci == joined.ratio_ci and entry.ratio == joined.ratio == 1.0
    assert EntryRecord(sessions=SESSIONS, label="imported").ratio_ci is None


def test_one_session_is_as_uncertain_as_sessions_are():
    """Nothing is known but the typical scatter between sessions, 1.3 % with the weight of four degrees of freedom."""
    low, high = combine_ratios([(2.0,)]).ratio_ci
    assert (high - low) / 4 == pytest.approx(0.013 * stats.t.ppf(0.975, 4), rel=0.003)
    with pytest.raises(InputError):
        combine_ratios([])


def test_few_samples_span_their_range():
    assert median_relative_ci((1.0, 2.0, 4.0)) == (4 - 1) / 2 / 2
