"""The benchmark's judgement: on a table of the repository, and on figures at the goal's edges."""

import json

from hwnas.latency.table import load_table
from tests.tools.test_schemes import ROOT, load_tool

bench = load_tool("bench_latency_prediction")


def _row():
    table = load_table(next((ROOT / "latency_tables").rglob("onnxruntime*/mobile-cpu.json")))
    return bench.compare(table, None, resplits=1), table


def test_the_default_scheme_is_the_table_s_own_prediction():
    row, table = _row()
    found = row["schemes"][bench.DEFAULT]
    assert abs(found["mean_error"] - table.held_out.mean_error) < 1e-9
    assert abs(found["interval"] - table.held_out.interval) < 1e-9
    json.dumps(row, allow_nan=False)
    for text in (bench.markdown([row]), bench.schemes_markdown([row])):
        assert len(text.splitlines()) == 3 and len({line.count("|") for line in text.splitlines()}) == 1


def test_an_interval_that_is_too_narrow_does_not_cover():
    table = _row()[1]
    interval, networks = table.held_out.interval, bench.read_networks(table)
    scheme = bench.SCHEMES[bench.DEFAULT]
    covered = [bench.cross_validate(scheme, networks, 2, share * interval)["interval_coverage"] for share in (0.3, 1.0, 100.0)]
    assert covered[0] < 0.9 and covered[0] < covered[1] <= covered[2] == 1


def test_goal_is_met_at_its_edges_and_missed_beyond():
    figures = {"networks": 40, "within_2_percent": 0.85, "within_5_percent": 0.99, "within_10_percent": 1.0, "spearman": 0.99,
               "interval_coverage": 0.92}
    row = {"schemes": {bench.DEFAULT: figures}, "minutes": 10.0, "held_out_sessions": 5}
    assert all(part["met"] for part in bench.goal(row).values())
    worse = {"networks": 39, "within_2_percent": 0.84, "within_5_percent": 0.98, "within_10_percent": 0.99, "spearman": 0.98,
             "interval_coverage": 0.99}
    for part, value in worse.items():
        found = bench.goal(row | {"schemes": {bench.DEFAULT: figures | {part: value}}})
        assert [name for name in found if not found[name]["met"]] == [part]
    assert not bench.goal(row | {"minutes": None})["minutes"]["met"]
    assert not bench.goal(row | {"held_out_sessions": 4})["sessions"]["met"]
