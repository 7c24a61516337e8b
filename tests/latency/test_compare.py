"""Tables beside each other and by themselves: differences that are there are found, and none that are not."""

from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from hwnas.errors import VerificationError
from hwnas.latency.compare import compare_tables, is_additive, require_complete, table_warnings
from hwnas.latency.correlation import rank_correlation
from hwnas.latency.refusals import network_key
from hwnas.latency.summary import estimate_error
from hwnas.latency.table import AnchorRecord, EffortRecord, EntryRecord, HeldOut
from hwnas.spaces.load import load_space
from tests.latency.test_table import _table


def _scaled(table, factors, label="ok"):
    entries = {key: EntryRecord(sessions=((entry.ratio * factor,),), label=label)
               for (key, entry), factor in zip(table.entries.items(), factors, strict=True)}
    return replace(table, entries=entries)


def test_a_table_does_not_differ_from_itself():
    found = compare_tables(_table(), _table())
    assert (found.unit, found.only_in_first, found.only_in_second, found.changed) == ("ratio", (), (), ())
    assert found.median_change == 0 and found.spearman == pytest.approx(1.0) and len(found.common) == len(_table().entries)


def test_what_changed_beyond_both_intervals():
    table = _scaled(_table(), [1.0] * len(_table().entries))
    (low, high), ratio = (entry := next(iter(table.entries.values()))).ratio_ci, entry.ratio
    parting = high / low  # the intervals of one session each are a share of the ratio, the same for all
    assert 1.05 < parting < 1.1 and low < ratio < high
    factors = [1.0, 0.99 * parting, 1.01 * parting, 0.5, 2.5, *[1.01] * (len(table.entries) - 5)]
    found = compare_tables(table, _scaled(table, factors))
    names = list(table.entries)
    assert [change.workload for change in found.changed] == [names[4], names[3], names[2]]  # by how far, in either direction
    assert [change.relative for change in found.changed] == pytest.approx([1.5, -0.5, 1.01 * parting - 1])
    assert found.median_change == pytest.approx(median(factors) - 1)


def test_entries_of_one_table_alone():
    table = _table()
    first, second, *_ = table.entries
    without = [replace(table, entries={key: entry for key, entry in table.entries.items() if key != name})
               for name in (first, second)]
    found = compare_tables(*without)
    assert (found.only_in_first, found.only_in_second) == ((second,), (first,))
    nothing = compare_tables(replace(table, entries={}), table)
    assert nothing.common == () and nothing.median_change is None and nothing.spearman is None


def test_ratios_to_different_anchors_are_not_compared():
    table = _table()
    other = replace(table, anchor=AnchorRecord(name="other", sha256="1" * 64, sessions_ms=(1.0,)))  # twice as slow
    found = compare_tables(table, other)
    assert found.unit == "ms" and len(found.changed) == len(table.entries)
    assert {round(change.relative, 9) for change in found.common} == {1.0}
    assert found.common[0].before == pytest.approx(table.anchor_ms * next(iter(table.entries.values())).ratio)


def test_unknown_intervals_say_nothing():
    table = _table()
    found = compare_tables(table, _scaled(table, [9.0] * len(table.entries), "imported"))
    assert found.changed == () and {change.beyond_intervals for change in found.common} == {None}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_rank_correlation_is_spearmans(pairs):
    """Few values, so that many are equal."""
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert rank_correlation(first, second) is None
    else:
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_rank_correlation_of_two_is_none():
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None


@pytest.mark.parametrize("networks, mean_error, spearman, verdict", [
    (24, 0.013, 0.997, True), (24, 0.05, 0.9, True), (24, 0.051, 0.99, False), (24, 0.01, 0.89, False), (2, 0.0, 0.0, None)])
def test_additivity(networks, mean_error, spearman, verdict):
    assert is_additive(HeldOut(networks, mean_error, 0.2, 0.9, spearman, 0.1, 0.1, 0.0)) is verdict


def test_completeness():
    table = _table(networks=0)
    require_complete(table)
    require_complete(table, table.search_space)
    first, *rest = table.entries
    short = replace(table, entries={key: table.entries[key] for key in rest})
    with pytest.raises(VerificationError, match=rf"1 of {len(rest) + 1} of 'toy' are missing, the first being stem\(") as refusal:
        require_complete(short)
    assert first in str(refusal.value) and "hwnas profile" in str(refusal.value)
    require_complete(replace(short, refused={first: "it crashes."}))  # nothing is missing then
    with pytest.raises(VerificationError, match=r"'toy' .* 'mobile-cpu' .* has 0 of that one's 22 blocks"):
        require_complete(table, load_space("mobile-cpu"))


def test_warnings():
    assert table_warnings(_table(noise=0.005)) == []
    assert [one for one in table_warnings(_table(held_out=10)) if "Only 10 networks" in one]
    assert [one for one in table_warnings(_table(held_out=0)) if "No network has judged" in one]
    noise = np.random.default_rng(0).uniform(0.3, 3, len(_table().networks))
    records = [record.model_copy(update={"sessions": ((record.ratio * factor,),)})
               for record, factor in zip(_table().networks, noise, strict=True)]
    assert [one for one in table_warnings(replace(_table(), networks=tuple(records))) if "do not add up" in one]
    table = _table(noise=0.005)
    name = list(table.entries)[2]
    worst = EntryRecord(sessions=((0.1,), (0.14,), (0.18,)), label="noisy")
    half = 100 * (worst.ratio_ci[1] / worst.ratio - 1)
    (warning,) = table_warnings(replace(table, entries={**table.entries, name: worst}))
    assert f"1 of {len(table.entries)} entries are noisy; the worst, {name}, is known to ± {half:.1f} %" in warning and half > 20
    effort = EffortRecord(minutes=2.0, timing_minutes=1.0, sessions=300, planned_sessions=491)
    network = table.search_space.architecture(table.networks[0].choices)
    (warning,) = table_warnings(replace(table, refused={network_key(network): "It crashes."}))
    assert warning.startswith("onnxruntime-cpu refuses 1 whole network(s) though it runs each of their blocks, the first being "
                              f"{network} (It crashes): ")
    (warning,) = table_warnings(replace(table, effort=effort))
    assert "300 of 491" in warning and "the same 'hwnas profile' command" in warning
    assert table_warnings(replace(table, effort=effort.model_copy(update={"sessions": 491}))) == []
    imported = _scaled(replace(table, networks=()), [1.0] * len(table.entries), "imported")
    assert table_warnings(imported)[0].startswith(f"{len(table.entries)} entries were imported")


@pytest.mark.parametrize(("high_ms", "warned"), [(0.59, False), (0.61, True)])
def test_an_anchor_that_drifted_is_a_warning(high_ms, warned):
    """A tenth of the sessions; a single one is none."""
    anchor = AnchorRecord(name="a", sha256="0" * 64, sessions_ms=(*[0.5] * 90, *[high_ms] * 10, 5.0))
    warnings = table_warnings(replace(_table(noise=0.005), anchor=anchor))
    assert len(warnings) == warned
    assert all(one.startswith("The anchor took 0.5 to 0.61 ms") and "'hwnas table judge'" in one for one in warnings)


def test_poor_estimates_are_a_warning():
    """Blocks whose times follow no law cannot be estimated from others; those that follow their multiply-accumulates can."""
    table = _table(load_space("fbnet-cpu"), networks=0)
    some = list(table.entries)[1:-1:6]

    def warnings(entries):
        return [one for one in table_warnings(replace(table, entries=entries)) if "estimated" in one]

    labels = {key: "estimated" if key in some else "ok" for key in table.entries}
    lawless = {key: entry.model_copy(update={"label": labels[key]}) for key, entry in table.entries.items()}
    (warning,) = warnings(lawless)
    assert warning.startswith(f"{len(some)} of {len(lawless)} blocks are estimated, and estimates are off ")
    assert f"by {100 * estimate_error(replace(table, entries=lawless)):.0f} % in the median" in warning
    parts = table.search_space.measured_parts
    lawful = {key: EntryRecord(sessions=((0.01 + parts[key].network.macs / 1e6,),), label=label) for key, label in labels.items()}
    assert not warnings(lawful) and not warnings(table.entries)
