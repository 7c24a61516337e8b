"""The benchmark of promises: its counting, its searches on a table of the repository, and all of it on a tiny space."""

import json
from dataclasses import replace

import pytest
from scipy import stats

from hwnas.export.certify import CertificationPlan
from hwnas.export.verify import verify_artifact
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import load_table
from hwnas.pipeline.measure import target_of_table
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import ProfilePlan, profile_space
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig
from tests.pipeline.samples import make_space
from tests.tools.test_schemes import ROOT, load_tool

bench = load_tool("bench_promise")
PLAN = CertificationPlan(confidence=0.75, max_observations=4)
QUICK = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=2, fit_sessions=1, held_out_networks=2, held_out_sessions=1,
                    timing=TimingPlan(sample_ms=0.1, min_pairs=6, max_pairs=6, max_seconds=0.1, max_warmup_seconds=0.01))


def no_bar(done, total, key):
    assert 0 < done <= total and key


# On a table of the repository


def test_budgets_bind_and_can_be_promised():
    """The network that a score chooses within what may be promised keeps the budget, and is less than it would choose freely."""
    table = load_table(ROOT / "latency_tables/amd-epyc-26-2-1/onnxruntime-cpu-fp32-1t/mobile-cpu.json")
    trellis = Trellis(table.search_space, table)
    budgets = bench.spread_budgets(table, 7, seed=0)
    assert budgets == bench.spread_budgets(table, 7, seed=0) != bench.spread_budgets(table, 7, seed=1)
    for index, budget in enumerate(budgets):
        scores = bench.random_scores(index)
        chosen = trellis.best(scores, max_cost=table.promise_budget(budget))
        free = trellis.best(scores)
        assert table.predict(chosen).upper_ms <= budget * (1 + 1e-9) and float(f"{budget:.4g}") == budget
        assert table.predict(free).latency_ms > table.promise_budget(budget) and chosen != free


# Counting


def row(promised=True, use=0.98, again="kept"):
    return {"promised": promised, "broken": promised and use > 1, "budget_use": use if promised else None,
            "again": {"verdict": again} if promised else None, "remeasured_ms": 2 * use if promised else None,
            "attempts": [{"predicted_ms": 3.0}, {"predicted_ms": 2.0}]}


def table_row(runtime, rows):
    return {"runtime": runtime, "space": "s", "interval": 0.05, "minutes": 1.5, "first_round": 1, "sessions_per_test": 6.0,
            "promises": rows, **bench.count_promises(rows)}


def test_figures_are_counts():
    found = bench.count_promises([row(), row(use=0.9), row(use=1.01, again="undecided"), row(use=1.2, again="broken"),
                                  row(promised=False)])
    assert found == {"budgets": 5, "promised": 4, "broken": 2, "shown_broken": 1, "not_certifiable": 1,
                     "budget_use": pytest.approx((0.98 + 1.01) / 2), "least_budget_use": 0.9}
    nothing = bench.count_promises([row(promised=False)])
    assert (nothing["promised"], nothing["broken"], nothing["budget_use"]) == (0, 0, None)


@pytest.mark.parametrize("promised", [0, 1, 6, 20, 100, 117])
def test_as_many_may_be_broken_as_the_confidence_allows(promised):
    allowed = bench.allowed_broken(promised, 0.95)
    assert stats.binom.sf(allowed, promised, 0.05) <= 0.05  # one more would be shown to be too many
    assert allowed <= 0 or stats.binom.sf(allowed - 1, promised, 0.05) > 0.05


def test_the_goal_is_met_at_its_edges_and_missed_beyond():
    def goals(**changes):
        settings = {"count": 34, "runtimes": 3, "broken": 9, "use": 0.95} | changes
        rows = [row(use=settings["use"])] * settings["count"]
        tables = [table_row(f"r{number}", rows) for number in range(settings["runtimes"])]
        tables[0] = table_row("r0", rows[settings["broken"]:] + [row(use=1.001)] * settings["broken"])
        total = bench.summarise(tables, CertificationPlan())
        return {part for part, found in total["goal"].items() if not found["met"]}

    assert goals() == set()
    assert goals(count=33) == {"promises"} and goals(broken=10) == {"broken"} and goals(use=0.949) == {"median budget use"}
    assert goals(count=51, runtimes=2) == {"runtimes"}
    assert goals(count=0, broken=0) == {"promises", "runtimes", "median budget use"}


def test_predictions_are_those_of_the_network_that_was_promised():
    assert bench.predictions_held(table_row("r", [row(), row(use=0.949), row(use=1.06), row(promised=False)])) == 1


def test_the_table_for_the_documentation_is_even():
    tables = [table_row("onnxruntime-cpu", [row(), row(promised=False)]), table_row("mnn-cpu", [row(promised=False)])]
    text = bench.markdown(tables, bench.summarise(tables, CertificationPlan()))
    assert len(text.splitlines()) == 5 and len({line.count("|") for line in text.splitlines()}) == 1


# All of it, on a real runtime


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.json"
    with open_device("onnxruntime-cpu", RuntimeConfig()) as device:
        return profile_space(make_space(), device, path, plan=QUICK)


def test_promises_are_made_and_measured_again_and_a_second_run_finds_everything(profiled, tmp_path):
    """Budgets that anything keeps, and one that nothing does though the table says so."""
    fastest = Trellis(profiled.search_space, profiled).min_cost()
    target = target_of_table(profiled)
    generous = bench.Bench(profiled, target, tmp_path / "generous", PLAN, (1000.0, 2000.0), 2, 0)
    promises = generous.promise(no_bar)
    assert [one.promised for one in promises] == [True, True] and all(len(one.attempts) == 1 for one in promises)
    generous.remeasure(promises, 3, no_bar)
    assert not any(one.broken for one in promises) and all(0 < one.remeasured_ms < 1000 for one in promises)
    assert all((one.attempts[0].certification.observations, one.again.observations) == (2, 2) for one in promises)
    for one in promises:
        manifest = verify_artifact(generous.folder / one.attempts[0].name).manifest
        assert manifest.budget_ms == one.budget_ms
    described = bench.describe(generous, promises)
    json.dumps(described, allow_nan=False)
    assert (described["promised"], described["broken"], described["first_round"]) == (2, 0, 2)
    assert described["minutes"] > 0 and described["sessions_per_test"] == 2

    journals = {path: path.read_bytes() for path in generous.folder.glob("*.journal")}
    assert {path.stem: content.count(b"\n") for path, content in journals.items()} == {"certify": 5, "remeasure": 7}
    again = generous.promise(no_bar)
    generous.remeasure(again, 3, no_bar)
    assert bench.describe(generous, again) == described
    assert {path: path.read_bytes() for path in generous.folder.glob("*.journal")} == journals

    slow = replace(target, anchor_ms=1000 * profiled.anchor_ms)
    tight = bench.Bench(profiled, slow, tmp_path / "tight", PLAN, (1.5 * fastest,), 3, 0)
    (promise,) = tight.promise(no_bar)
    assert not promise.promised and 1 <= len(promise.attempts) <= 3
    assert all(one.certification.verdict == "broken" for one in promise.attempts)
    tight.remeasure([promise], 3, no_bar)
    assert bench.describe(tight, [promise])["not_certifiable"] == 1
