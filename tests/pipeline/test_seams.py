"""What changes of precision cost counts in every stage: against brute force over all networks of a table whose truth is known."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from hwnas.latency.seams import SeamTable, cost_model
from hwnas.pipeline.budget import latency_budget
from hwnas.pipeline.compile import compile_space
from hwnas.pipeline.config import load_config
from hwnas.pipeline.constraint import latency_constraint
from hwnas.pipeline.search import SearchSettings, search_supernet
from hwnas.profiling.device import open_device
from hwnas.runtimes import RuntimeConfig
from hwnas.spaces.load import load_space
from hwnas.supernet.build import build_supernet
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.methods import make_settings, make_task
from hwnas.supernet.train import train_supernet
from tests.latency.mixed import all_networks, equal_seams, make_space, make_table, true_latencies
from tests.pipeline.samples import DATA

SPACE = make_space(channels=1, classes=10, bodies=2)  # 32 networks
TABLE = make_table(SPACE, equal_seams(SPACE), networks=24, held_out=8)
TRUTH = true_latencies(TABLE)
LATENCIES = sorted(TRUTH.values())
SUPERNET = {"epochs": 1, "batch_size": 40, "max_shift": 1, "threads": 1}


def between(rank):
    """A budget that no network meets by a hair."""
    return (LATENCIES[rank - 1] + LATENCIES[rank]) / 2


def within(budget):
    return {one for one, latency in TRUTH.items() if latency <= budget}


def fits_without_seams(budget):
    return {one for one in all_networks(SPACE) if TABLE.predict(one).latency_ms <= budget}


def test_the_budgets_of_these_tests_tell_seams():
    assert isinstance(cost_model(TABLE), SeamTable) and len(TRUTH) == 32
    for rank in (6, 16):
        assert within(between(rank)) != fits_without_seams(between(rank))


@pytest.mark.parametrize("rank", [6, 16])
def test_paths_drawn_in_training_keep_the_budget_with_seams(rank):
    said = []
    budget = latency_budget(TABLE, between(rank), "spos", said.append)
    assert said == [] and budget.space.hash == SPACE.hash
    task = make_task("spos", build_supernet(SPACE), make_settings("spos", {}), TrainConfig(**SUPERNET), budget, 500)
    drawn = {task.describe(step).removeprefix("path ") for step in range(500)}
    assert drawn == set(map(str, within(between(rank))))


def test_a_differentiable_method_says_that_it_counts_no_seams_and_its_search_counts_them(dataset, tmp_path):
    said = []
    costs = cost_model(TABLE)
    budget = latency_budget(TABLE, float(np.mean(LATENCIES)), "fbnet", said.append)
    assert budget.costs is TABLE and budget.space is None
    assert len(said) == 1 and "does not count what a change of precision" in said[0]
    folder = tmp_path / "fbnet"
    train_supernet(SPACE, dataset, folder, TrainConfig(method="fbnet", **SUPERNET), budget=budget,
                   data_source={"spec": DATA, "seed": 0})
    probabilities = json.loads((folder / "architecture_parameters.json").read_text())["probabilities"]
    constraint = latency_constraint(costs, between(6) * (1 + costs.held_out.interval))
    result = search_supernet(folder, None, constraint, tmp_path / "search", SearchSettings("dnas", calibration_images=32),
                             dataset=dataset)
    assert result.best.architecture == max(within(between(6)), key=lambda one: math.prod(
        probabilities[name][option] for name, option in one.choices.items()))


@contextmanager
def stage(title):
    yield lambda *call: None


def test_compile_counts_them(tmp_path):
    """The table's latencies are far above real ones, so that the budget is kept at once."""
    with open_device("onnxruntime-cpu", RuntimeConfig()) as device:
        replace(TABLE, environment=device.environment(1)).save(tmp_path / "table.json")
    (tmp_path / "mixed.py").write_text("from tests.pipeline.test_seams import SPACE\n")
    (tmp_path / "config.yaml").write_text(json.dumps({
        "space": "mixed.py:SPACE", "data": DATA, "max_latency_ms": between(6), "profile": {"table": "table.json"},
        "train": {"method": "fbnet", "epochs": 1, "batch_size": 40, "threads": 1},
        "search": {"method": "dnas", "validation_images": 20, "calibration_images": 32},
        "export": {"sessions": 1, "rounds": 2, "confidence": 0.5}}))
    config, said = load_config(tmp_path / "config.yaml"), []
    summary = compile_space(config, load_space(config.space), tmp_path / "out", stage, say=said.append)
    assert summary.verdict == "kept" and summary.feasible_range_ms == pytest.approx((LATENCIES[0], LATENCIES[-1]), rel=1e-6)
    for row in summary.networks:
        assert row.predicted_ms == pytest.approx(TRUTH[SPACE.architecture(row.architecture)], rel=1e-6)
    assert summary.networks[0].predicted_upper_ms <= between(6) and summary.held_out["mean_error"] < 1e-6
    assert any("does not count" in line for line in said)
