"""Judging a table in another hour, on a real runtime: which networks are measured, what is kept, and what it says."""

import json
import math
from dataclasses import replace

import pytest
from scipy import stats

from hwnas.errors import InputError, VerificationError
from hwnas.files import locked
from hwnas.latency.table import NetworkRecord, SittingRecord, load_table
from hwnas.profiling.judging import Judgement, judge_table, unseen_networks
from hwnas.profiling.rounds import RoundsPlan
from hwnas.runtimes import RuntimeConfig
from tests.profiling.open_devices import device_of
from tests.profiling.test_profiler import CONFIG, PLAN, SPACE, TIMING, Told, make_large_space, profile

JUDGING = RoundsPlan(min_sessions=2, max_sessions=2, timing=TIMING, max_anchor_change=math.inf)


def judge(path, config=CONFIG, plan=JUDGING, **arguments):
    told = Told()
    return judge_table(path, device_of("onnxruntime-cpu", config), plan=plan, progress=told, **arguments), told


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("judged") / "table.json"
    profile(path, make_large_space(3, 3), replace(PLAN, fit_networks=4, held_out_networks=3))
    return path


@pytest.fixture
def table_path(measured, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(measured.read_bytes())
    return path


def choices_of(networks):
    return [tuple(sorted(one.choices.items())) for one in networks]


def test_networks_that_the_table_has_not_seen_are_measured(table_path):
    before = table_path.read_bytes()
    found, told = judge(table_path, networks=6)
    table = load_table(table_path)
    chosen = choices_of(found.sitting.networks)
    assert len(set(chosen)) == 6 and not set(chosen) & set(choices_of(table.networks))
    assert all(len(record.sessions) == 2 for record in found.sitting.networks) and told[-1][:2] == (12, 12)
    assert found.table == table and not found.refused and found.sitting.anchor_ms > 0
    for error, record in zip(found.errors, found.sitting.networks, strict=True):
        predicted = table.predict(table.search_space.architecture(record.choices))
        assert error == pytest.approx(record.ratio * table.anchor_ms / predicted.latency_ms - 1)
    assert table_path.read_bytes() == before  # not kept
    assert sorted(path.name for path in table_path.parent.iterdir()) == ["table.json"]


def test_they_spread_over_the_space(measured):
    table = load_table(measured)
    macs = [table.search_space.network(table.search_space.architecture(one.choices)).macs
            for one in unseen_networks(table, 8, 1, seed=1)]
    every = [table.search_space.network(one).macs for one in table.search_space.architectures(
        [[a, b, c] for a in range(3) for b in range(3) for c in range(3)])]
    assert min(macs) < sorted(every)[6] and max(macs) >= sorted(every)[-7]


def test_what_is_kept_is_never_measured_again(table_path):
    first, _ = judge(table_path, networks=5, keep=True)
    second, _ = judge(table_path, networks=5, keep=True)
    table = load_table(table_path)
    assert table.sittings == (first.sitting, second.sitting) and table.held_out.sittings == 2
    assert second.table == first.table.with_sitting(first.sitting)
    seen = [*choices_of(table.networks), *choices_of(first.sitting.networks), *choices_of(second.sitting.networks)]
    assert len(set(seen)) == len(seen) == 17
    assert table.calibration == first.table.calibration


def test_known_networks_stand_in_where_there_are_no_others(tmp_path):
    path = tmp_path / "table.json"
    profile(path)
    table = load_table(path)
    chosen = unseen_networks(table, 8, 1, seed=1)
    known = choices_of(table.networks)
    assert [one in known for one in choices_of(chosen)] == [False] * 3 + [True] * 5  # of eight networks
    assert len(unseen_networks(table, 20, 1, seed=1)) == SPACE.size == 8


def test_a_sitting_goes_on_where_it_was_cut_short(table_path):
    with pytest.raises(InputError, match="raise --max-minutes"):
        judge(table_path, networks=4, plan=replace(JUDGING, max_minutes=0.0))
    journal = table_path.with_name("table.json.judging")
    whole, _ = judge(table_path, networks=4)
    assert not journal.exists()
    with pytest.raises(InputError, match="raise --max-minutes"):
        judge(table_path, networks=4, plan=replace(JUDGING, max_minutes=0.0))
    keys = [f"network {whole.table.search_space.architecture(record.choices)}" for record in whole.sitting.networks]
    with open(journal, "a") as file:  # two sessions of the first network, then a kill amid a line
        for ratio in (7.0, 7.5):
            file.write(json.dumps({"key": keys[0], "ratios": [ratio], "anchor_ms": 0.5}) + "\n")
        file.write('{"key": "netw')
    found, told = judge(table_path, networks=4)
    assert len(told) == 6 and keys[0] not in told.keys
    assert found.sitting.networks[0].sessions == ((7.0,), (7.5,))
    with pytest.raises(InputError, match="raise --max-minutes"):
        judge(table_path, networks=4, plan=replace(JUDGING, max_minutes=0.0))
    with pytest.raises(InputError, match=r"its networks is 4 and this call's is 5"):
        judge(table_path, networks=5)


def test_another_environment_is_refused(table_path):
    with pytest.raises(InputError, match="threads is 1 there and 2 here"):
        judge(table_path, RuntimeConfig(threads=2))


def test_an_incomplete_table_is_refused(tmp_path, table_path):
    table = load_table(table_path)
    first = next(iter(table.entries))
    replace(table, entries={key: entry for key, entry in table.entries.items() if key != first}, networks=()).save(
        tmp_path / "part.json")
    with pytest.raises(VerificationError, match=r"1 of 5 .*missing"):
        judge(tmp_path / "part.json")


def test_one_process_at_a_time(table_path):
    with locked(table_path, "latency table"), pytest.raises(InputError, match="one process at a time"):
        judge(table_path)


@pytest.mark.parametrize("networks", [0, -3])
def test_no_network_judges_nothing(networks, table_path):
    with pytest.raises(InputError, match="1 network or more"):
        judge(table_path, networks=networks)


@pytest.mark.parametrize("count", [1, 5, 20, 60])
def test_it_holds_unless_chance_would_rarely_leave_so_few_within_the_interval(count, measured):
    table = load_table(measured)
    for within in range(count + 1):
        records = [table.judging_networks[index % 3] for index in range(count)]
        far = 1 + 2 * table.held_out.interval
        ratios = table.predicted_ratios(records) * [1.0 if index < within else far for index in range(count)]
        sitting = SittingRecord(measured_utc="2026-11-22T00:00:00+00:00", anchor_ms=1.0, networks=tuple(
            NetworkRecord(choices=record.choices, sessions=((ratio,),), role="held_out")
            for record, ratio in zip(records, ratios, strict=True)))
        found = Judgement(table, sitting, {})
        assert found.covered == within and found.holds == (stats.binom.cdf(within, count, 0.95) > 0.01)
        assert found.departure == pytest.approx(0.0 if 2 * within > count else found.departure)
