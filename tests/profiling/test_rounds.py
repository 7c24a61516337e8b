"""In which rounds what has its sessions; profiles in rounds are in `test_profiler.py`."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.profiling.rounds import Schedule


def rounds_of(schedule, key):
    """The rounds in which a model has a session."""
    planned = [0, *(schedule.planned(key, index) for index in range(schedule.rounds))]
    assert all(after - before in (0, 1) for before, after in pairwise(planned))
    return [index for index in range(schedule.rounds) if planned[index + 1] > planned[index]]


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 7), max_size=20))
def test_everything_has_its_sessions_at_most_one_a_round(least):
    schedule = Schedule.of(least)
    for key, count in least.items():
        assert len(rounds_of(schedule, key)) == count
        assert schedule.planned(key, schedule.rounds + 3) == count


@pytest.mark.parametrize(("least", "rounds"), [(2, 5), (3, 5), (2, 4), (1, 4), (3, 4), (5, 5), (4, 6)])
def test_what_has_fewer_sessions_has_as_many_of_them_in_each_round(least, rounds):
    schedule = Schedule.of({"most": rounds} | {f"{index}": least for index in range(4 * rounds)})
    shares = Counter(index for number in range(4 * rounds) for index in rounds_of(schedule, f"{number}"))
    assert shares == dict.fromkeys(range(rounds), 4 * least)
    assert rounds_of(schedule, "0")[0] == 0  # so that a run that is cut short has some of all
    gaps = [after - before for number in range(rounds)
            for chosen in [rounds_of(schedule, f"{number}")] for before, after in pairwise(chosen)]
    assert all(rounds // least <= gap <= -(-rounds // least) for gap in gaps)


def test_nothing_needs_no_round():
    assert Schedule.of({}).rounds == 0
