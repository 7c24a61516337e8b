"""The benchmark's judgement: on a table of the repository, and on figures at the goal's edges."""

import json
from dataclasses import replace

import numpy as np

from hwnas.latency.table import NetworkRecord, SittingRecord, load_table
from hwnas.profiling.profiler import plan_blocks, with_estimates
from tests.tools.test_schemes import ROOT, load_tool

bench = load_tool("bench_latency_prediction")


def _row():
    """Of a table that was not judged in another hour yet."""
    table = replace(load_table(ROOT / "latency_tables/amd-epyc-26-2-1/onnxruntime-cpu-fp32-1t/mobile-cpu.json"), sittings=())
    return bench.with_goals([bench.compare(table, None, resplits=1)])[0], table


def test_the_default_scheme_is_the_table_s_own_prediction():
    row, table = _row()
    found = row["schemes"][bench.DEFAULT]
    assert abs(found["mean_error"] - table.held_out.mean_error) < 1e-9
    assert abs(found["interval"] - table.held_out.same_hour_interval) < 1e-9
    json.dumps(row, allow_nan=False)
    for text in (bench.markdown([row]), bench.schemes_markdown([row])):
        assert len(text.splitlines()) == 3 and len({line.count("|") for line in text.splitlines()}) == 1


def test_what_rounds_have_in_common_is_told_from_what_networks_scatter_by():
    generator = np.random.default_rng(0)
    rounds = np.array([-0.03, 0.0, 0.01, 0.03, 0.02])
    sizes = generator.uniform(1, 50, 200)
    alike = [size * np.exp(rounds) for size in sizes]
    assert np.isclose(bench.between_rounds(alike), np.std(rounds, ddof=1))
    scattered = [size * np.exp(rounds + generator.normal(0, 0.02, 5)) for size in sizes]
    assert np.isclose(bench.between_rounds(scattered), np.std(rounds, ddof=1), rtol=0.15)
    unlike = [size * np.exp(generator.normal(0, 0.02, 5 + index % 2)) for index, size in enumerate(sizes)]
    assert bench.between_rounds(unlike) < 0.004
    assert bench.between_rounds([np.array([1.0]), np.array([2.0, 2.1])]) is None


def _sitting(table, *errors):
    """A sitting whose networks are so far off the table's predictions."""
    records = table.judging_networks[:len(errors)]
    ratios = table.predicted_ratios(records) * (1 + np.array(errors))
    return SittingRecord(measured_utc="2026-11-22T00:00:00+00:00", anchor_ms=1.0, networks=tuple(
        NetworkRecord(choices=record.choices, role="held_out", sessions=((ratio,),))
        for record, ratio in zip(records, ratios, strict=True)))


def test_a_sitting_is_judged_by_the_interval_before_it():
    table = _row()[1]
    half = table.held_out.interval
    near, far = _sitting(table, -0.9 * half, 0.9 * half), _sitting(table, -2 * half, 2 * half, 1.9 * half, 0.0)
    hours = bench.other_hours(table.with_sitting(near).with_sitting(far).with_sitting(far))
    assert hours[0]["interval"] == half and [hour["networks"] for hour in hours] == [2, 4, 4]
    assert [hour["covered"] for hour in hours][:2] == [2, 1] and hours[2]["interval"] > hours[1]["interval"]
    assert bench.coverage(hours) == (3 + hours[2]["covered"]) / 10
    assert bench.coverage([]) is None and bench.other_hours(table.with_sitting(far))[0]["interval"] == half
    text = bench.hours_markdown([{"device": "d", "runtime": runtime, "space": "s", "hours": found}
                                 for runtime, found in (("r", hours), ("q", []))])
    assert len(text.splitlines()) == 7
    for line, whose in zip(text.splitlines()[-2:], ("d | r", "all | all"), strict=True):
        assert line.startswith(f"| {whose} | all | 3 sittings | 10 |")


def test_a_device_of_which_all_networks_take_half_as_long_again_is_mended_by_one_factor():
    table = _row()[1]
    slower = replace(table, environment=dict(table.environment) | {"device_id": "1/2/3"}, networks=tuple(
        record.model_copy(update={"sessions": tuple(tuple(1.5 * ratio for ratio in session) for session in record.sessions)})
        for record in table.networks))
    another_runtime = replace(slower, environment=dict(slower.environment) | {"runtime": "another"})
    there, back = bench.transfers([table, slower, another_runtime, table])[:2]
    assert (there["from"], there["to"]) == ("amd-epyc-26-2-1", "amd-epyc-1-2-3") and (back["from"], back["to"]) == (
        "amd-epyc-26-2-1", "amd-epyc-1-2-3")[::-1]
    assert abs(there["factor"] - 1.5) < 0.01 and there["spearman"] > 0.99 and there["mean_error"] > 0.4
    assert abs(there["scaled_mean_error"] - there["own_mean_error"]) < 0.003
    assert len(bench.transfers_markdown([there, back]).splitlines()) == 4
    assert not bench.transfers([table, another_runtime]) and not bench.transfers([slower, slower])


def test_coverage_is_judged_over_a_runtimes_spaces():
    row, table = _row()
    errors = [0.0] * 37 + [1.0] * 3
    some = bench.other_hours(table.with_sitting(_sitting(table, *errors)))
    all_covered = bench.other_hours(table.with_sitting(_sitting(table, *[0.0] * 40)))
    rows = [row | {"hours": some}, row | {"hours": all_covered}, row | {"runtime": "another", "hours": all_covered},
            row | {"device": "another", "hours": some}]
    found = bench.with_goals(rows)
    assert [one["coverage"] for one in found] == [77 / 80, 77 / 80, 1.0, 37 / 40]
    assert [one["goal"]["coverage"]["met"] for one in found] == [True, True, False, True]


def test_goal_is_met_at_its_edges_and_missed_beyond():
    figures = {"networks": 40, "within_2_percent": 0.85, "within_5_percent": 0.99, "within_10_percent": 1.0, "spearman": 0.99}
    row = {"schemes": {bench.DEFAULT: figures}, "minutes": 10.0, "held_out_sessions": 5, "coverage": 0.92}
    assert all(part["met"] for part in bench.goal(row).values())
    worse = {"networks": 39, "within_2_percent": 0.84, "within_5_percent": 0.98, "within_10_percent": 0.99, "spearman": 0.98}
    for part, value in worse.items():
        found = bench.goal(row | {"schemes": {bench.DEFAULT: figures | {part: value}}})
        assert [name for name in found if not found[name]["met"]] == [part]
    assert not bench.goal(row | {"minutes": None})["minutes"]["met"]
    assert not bench.goal(row | {"held_out_sessions": 4})["sessions"]["met"]
    assert [bench.goal(row | {"coverage": share})["coverage"]["met"] for share in (None, 0.91, 0.98, 0.99)] == [
        False, False, True, False]


def test_fewer_measured_blocks_make_a_table_hardly_worse():
    """Where blocks are many; a table that was measured so has nothing to be compared with."""
    whole = load_table(ROOT / "latency_tables/amd-epyc-25-17-1/mnn-cpu-fp32-1t/fbnet.json")
    (found,) = bench.estimates([whole, _row()[1]])
    assert found["space"] == "fbnet" and found["blocks"] == 104 and found["mean_error"] == whole.held_out.mean_error
    half, quarter = found["shares"]["0.5"], found["shares"]["0.25"]
    assert 0 < half["block_error"] < quarter["block_error"] < 0.15
    assert half["mean_error"] < quarter["mean_error"] < found["mean_error"] + 0.01
    few = {one.key for one in plan_blocks(whole.search_space, 1, 52)}
    entries = with_estimates(whole.search_space, {key: entry for key, entry in whole.entries.items() if key in few}, ())
    assert not bench.estimates([replace(whole, entries=entries)])
    text = bench.estimates_markdown([found])
    assert len(text.splitlines()) == 3 and "| 104 |" in text and len({line.count("|") for line in text.splitlines()}) == 1


def test_blocks_are_counted_as_far_as_they_were_measured():
    whole = load_table(ROOT / "latency_tables/amd-epyc-25-17-1/mnn-cpu-fp32-1t/fbnet.json")
    few = {one.key for one in plan_blocks(whole.search_space, 1, 52)}
    entries = with_estimates(whole.search_space, {key: entry for key, entry in whole.entries.items() if key in few}, ())
    row = bench.compare(replace(whole, entries=entries), None, resplits=0)
    assert (row["blocks"], row["estimated"], bench.say_blocks(row)) == (52, 52, "52 of 104")
    assert row["effort"]["blocks_per_minute"] == 52 / whole.effort.minutes
