"""What changes of precision cost, on the command line: against brute force over all networks of a table whose truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hwnas.files import write_json
from hwnas.latency.seams import cost_model
from hwnas.latency.table import load_table
from hwnas.pipeline.budget import latency_budget
from hwnas.profiling.device import open_device
from hwnas.runtimes import RuntimeConfig
from hwnas.supernet.methods import Budget
from tests.cli.command import hwnas
from tests.cli.conftest import DATA, DEVICE
from tests.latency.mixed import equal_seams, make_space, make_table, true_latencies

SPACE = make_space()
TABLE = make_table(SPACE, equal_seams(SPACE))
TRUTH = true_latencies(TABLE)
LATENCIES = np.array(sorted(TRUTH.values()))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return TABLE.save(tmp_path_factory.mktemp("mixed") / "table.json")


def test_predict_tells_what_networks_take(table, tmp_path):
    rows = hwnas("predict", "--table", table, "--random", 200, "--json").json
    assert len({tuple(row["architecture"]["choices"].values()) for row in rows}) > 90
    for row in rows:
        truth = TRUTH[SPACE.architecture(row["architecture"]["choices"])]
        assert row["latency_ms"] == pytest.approx(truth, rel=1e-6)
    one = max(TRUTH, key=lambda each: abs(TRUTH[each] - load_table(table).predict(each).latency_ms))
    assert abs(load_table(table).predict(one).latency_ms / TRUTH[one] - 1) > 0.1  # what blocks alone say
    (row,) = hwnas("predict", "--table", table, "--architecture", write_json(tmp_path / "one.json", one.to_dict()), "--json").json
    assert row["latency_ms"] == pytest.approx(TRUTH[one], rel=1e-6)


def test_feasible_counts_the_networks_within_a_budget(table):
    ranks = (1, 20, 64, 128)
    budgets = [(low + high) / 2 for low, high in zip(LATENCIES, [*LATENCIES[1:], 2 * LATENCIES[-1]], strict=True)]
    found = hwnas("feasible", "--table", table, *(part for rank in ranks for part in ("--max-latency-ms", budgets[rank - 1])),
                  "--json").json
    assert found["feasible_range_ms"] == pytest.approx([LATENCIES[0], LATENCIES[-1]], rel=1e-6)
    assert [row["count"] for row in found["budgets"]] == list(ranks)
    for row in found["budgets"]:
        example = TRUTH[SPACE.architecture(row["example"]["choices"])]
        assert row["example"]["latency_ms"] == pytest.approx(example, rel=1e-6) and example <= row["max_latency_ms"]


def test_the_table_is_judged_so_too(table):
    shown, checked = (hwnas("table", verb, table, "--json").json for verb in ("show", "check"))
    for document in (shown, checked):
        assert document["held_out"]["mean_error"] < 1e-6 < TABLE.held_out.mean_error and document["additive"]
    assert checked["warnings"] == []


def test_train_search_and_export_count_them(tmp_path):
    space = make_space(channels=1, classes=10, bodies=2)
    with open_device(DEVICE, RuntimeConfig()) as device:
        made = replace(make_table(space, equal_seams(space), networks=24, held_out=8), environment=device.environment(1))
    truth, table, supernet = true_latencies(made), made.save(tmp_path / "table.json"), tmp_path / "supernet"
    latencies = sorted(truth.values())
    budget = (latencies[9] + latencies[10]) / 2
    (tmp_path / "mixed.py").write_text("from tests.latency.mixed import make_space\n"
                                       "SPACE = make_space(channels=1, classes=10, bodies=2)\n")
    name = f"{tmp_path / 'mixed.py'}:SPACE"
    trained = hwnas("train", "--space", name, "--data", DATA, "--output", supernet, "--epochs", 1, "--batch-size", 40,
                    "--threads", 1, "--table", table, "--max-latency-ms", budget)
    assert trained.code == 0 and "does not count" not in trained.err, trained.err
    drawn = json.loads((supernet / "supernet.json").read_text())["budget"]
    assert drawn == latency_budget(made, budget, "spos", say=print).identity(space)
    assert drawn["costs_sha256"] != Budget(made, budget).identity(space)["costs_sha256"]

    interval = cost_model(made).held_out.interval
    found = hwnas("search", "--supernet", supernet, "--output", tmp_path / "search", "--table", table, "--max-latency-ms",
                  budget * (1 + interval), "--method", "random", "--population", 4, "--generations", 4, "--parents", 2,
                  "--validation-images", 20, "--calibration-images", 32, "--json")
    assert found.code == 0 and found.json["exhaustive"], found.err
    rows = [json.loads(line) for line in (tmp_path / "search" / "history.jsonl").read_text().splitlines()[1:]]
    assert {space.architecture(row["choices"]) for row in rows} == {one for one, latency in truth.items() if latency <= budget}

    for options in (("--architecture", tmp_path / "search" / "best.json", "--weights", supernet, "--calibration-images", 32),
                    ("--space", name, "--random", 3)):
        exported = hwnas("export", *options, "--output", tmp_path / options[0][2:], "--table", table, "--sessions", 1, "--json")
        assert exported.code == 0, exported.err
        one = space.architecture(exported.json["architecture"]["choices"])
        assert exported.json["predicted_ms"] == pytest.approx(truth[one], rel=1e-6)
