"""Seams on made-up latencies whose makings are known: what is fitted, what is predicted, and what the trellis finds."""

from dataclasses import replace

import numpy as np
import pytest

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Stem
from hwnas.ir.blocks import Sequence as BlockSequence
from hwnas.ir.cell_operations import PoolOperation
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.compare import is_additive, table_warnings
from hwnas.latency.seams import SeamSpace, SeamTable, cost_model, precision_of
from hwnas.latency.summary import held_out_document, measured_networks
from hwnas.latency.table import LatencyTable
from hwnas.pipeline.compile import next_constraint
from hwnas.spaces.load import load_space
from tests.latency.mixed import SEAM, all_networks, changes, equal_seams, make_space, make_table, seam_ratios, true_latencies
from tests.pipeline.samples import make_table as make_plain_table


def test_seams_stand_where_the_precision_changes():
    space = make_space()
    for one in all_networks(space):
        found = [seam for edge in SeamSpace(space).path(one) for seam in edge.seams]
        assert found == [f"seam before {name}: fp32 and int8" for name in changes(space, one)]
    assert len(SeamSpace(space).seams) == len(space.layers) - 1


def test_layers_without_convolutions_pass_a_precision_on():
    space = SearchSpace("pools", (3, 16, 16), (
        Decision("stem", {"int8": Quantized(Stem(8), 8, 8, integer=True), "fp32": Stem(8)}),
        Fixed("pool", PoolOperation("max", 3, 1)),
        Decision("last", {"bf16": HalfPrecision(ConvBlock(8), "bf16"), "fp32": ConvBlock(8)})))
    seams = {str(one): [seam for edge in SeamSpace(space).path(one) for seam in edge.seams] for one in all_networks(space)}
    assert seams == {"int8 bf16": ["seam before last: bf16 and int8"], "int8 fp32": ["seam before last: fp32 and int8"],
                     "fp32 bf16": ["seam before last: bf16 and fp32"], "fp32 fp32": []}


def test_parts_of_an_option_have_seams_between_them():
    mixed = BlockSequence((Quantized(ConvBlock(8), 8, 8), ConvBlock(8)))
    space = SearchSpace("parts", (3, 8, 8), (Fixed("stem", Stem(8)), Decision("stage", {"mixed": mixed, "plain": ConvBlock(8)})))
    (mixed_path, plain_path) = (SeamSpace(space).path(one) for one in all_networks(space))
    assert [seam for edge in mixed_path for seam in edge.seams] == ["seam before stage/1: fp32 and int8",
                                                                    "seam before stage/2: fp32 and int8"]
    assert not [seam for edge in plain_path for seam in edge.seams]


def test_precisions_have_names():
    assert [precision_of(block) for block in (
        Quantized(Stem(8), 8, 8), Quantized(Stem(8), 4, 8), HalfPrecision(Stem(8), "fp16"), Stem(8))] == [
            "int8", "w4_a8", "fp16", "fp32"]


def test_the_seam_space_has_the_networks_of_its_space():
    space = make_space()
    seams = SeamSpace(space)
    assert (seams.size, seams.hash, seams.name, seams.classes) == (space.size, space.hash, space.name, space.classes)
    for one in all_networks(space)[::9]:
        assert seams.network(seams.check(one)) == space.network(one)
        assert [edge.parts for edge in seams.path(one)] == [edge.parts for edge in space.path(one)]


def test_equal_seams_are_found_exactly():
    space = make_space()
    table = make_table(space, equal_seams(space))
    found = SeamTable(table)
    assert found.held_out.mean_error < 1e-6 < table.held_out.mean_error
    np.testing.assert_allclose([found.calibration.scale, found.calibration.per_block], [0.8, SEAM], rtol=1e-3)


def test_seams_of_their_own_predict_better_than_blocks_alone():
    space = make_space()
    table = make_table(space, seam_ratios(space), noise=0.005)
    found = SeamTable(table)
    assert found.held_out.mean_error < 0.01 < table.held_out.mean_error
    assert found.held_out.spearman > table.held_out.spearman


def test_the_trellis_adds_up_what_is_predicted_and_finds_the_optimum():
    space = make_space()
    table = SeamTable(make_table(space, seam_ratios(space), noise=0.005))
    trellis = Trellis(table.search_space, table)
    every = all_networks(space)
    predicted = np.array([one.latency_ms for one in table.predict_many(every)])
    np.testing.assert_allclose(trellis.costs_of(space.indices(every)), predicted, rtol=1e-9)
    np.testing.assert_allclose(trellis.min_cost(), predicted.min(), rtol=1e-9)
    scores = {decision.name: [0.0, 1.0 + index % 3] for index, decision in enumerate(space.decisions)}
    total = np.array([sum(scores[name][list(decision.options).index(one.choices[name])]
                          for name, decision in zip(one.choices, space.decisions, strict=True)) for one in every])
    for budget in np.quantile(predicted, [0.1, 0.5, 0.9]):
        best = trellis.best(scores, budget)
        assert total[every.index(best)] == total[predicted <= budget].max()


def test_prediction_intervals_are_those_of_held_out_networks():
    space = make_space()
    table = SeamTable(make_table(space, seam_ratios(space), noise=0.01))
    (prediction,) = table.predict_many(all_networks(space)[:1])
    assert prediction.upper_ms == pytest.approx(prediction.latency_ms * (1 + table.held_out.interval))
    assert 0 < table.held_out.interval < 0.1
    assert table.predict(all_networks(space)[0]) == prediction
    assert table.promise_budget(prediction.upper_ms) == pytest.approx(prediction.latency_ms)


def test_a_network_that_joined_the_fit_does_not_judge():
    space = make_space()
    table = make_table(space, seam_ratios(space), noise=0.01)
    judge = next(record for record in table.networks if record.role == "held_out")
    refined = table.with_networks([judge.model_copy(update={"role": "exported"})])
    assert SeamTable(refined).held_out.networks == SeamTable(table).held_out.networks - 1


def test_a_budget_is_constrained_as_by_a_table_without_seams():
    """What fails is above the next limit, and what could be had for the budget is within it."""
    space = make_space()
    table = SeamTable(make_table(space, seam_ratios(space), noise=0.01))
    trellis = Trellis(table.search_space, table)
    budget = (trellis.min_cost() + trellis.max_cost()) / 2
    constraint = next_constraint(table, budget, {})
    assert constraint.promised and constraint.search_limit == table.promise_budget(budget)
    (found,) = trellis.sample(1, max_cost=constraint.search_limit)
    after = next_constraint(table, budget, {found: 1.05 * budget})
    assert after.search_limit == pytest.approx(min(constraint.search_limit, trellis.cost(found) / 1.05))


def test_refused_blocks_cost_infinity():
    space = make_space()
    table = make_table(space, seam_ratios(space))
    edge = space.steps[1].edges[0]
    refusing = LatencyTable(space, table.environment, table.anchor, table.entries, table.networks,
                            refused={edge.workload: "no kernel"})
    costs = SeamTable(refusing)
    found = Trellis(costs.search_space, costs)
    assert found.count() == space.size // 2
    assert edge.option not in {list(space.decisions[1].options).index(one.choices["first"]) for one in found.sample(20)}


def test_seams_are_counted_where_they_pay():
    space = make_space()
    costly = make_table(space, seam_ratios(space), noise=0.005)
    assert isinstance(cost_model(costly), SeamTable) and cost_model(costly).table is costly
    for networks in (10, 30, 60):
        free = make_table(space, dict.fromkeys(seam_ratios(space), 0.0), noise=0.02, networks=networks)
        assert cost_model(free) is free
    few = LatencyTable(space, costly.environment, costly.anchor, costly.entries, ())
    one_precision = make_plain_table()
    cells = LatencyTable(load_space("darts"), costly.environment, costly.anchor, {}, ())
    for table in (few, one_precision, cells):  # no network, no seam, no order
        assert cost_model(table) is table


def test_a_table_is_judged_by_what_predicts():
    space = make_space()
    table = make_table(space, equal_seams(space))
    assert not is_additive(table.held_out) and table_warnings(table) == []
    assert held_out_document(table)["mean_error"] < 1e-6 < table.held_out.mean_error
    truth = true_latencies(table)
    for network, record in zip(measured_networks(table), table.networks, strict=True):
        assert network.predicted_ms == pytest.approx(truth[space.architecture(record.choices)], rel=1e-6)


def test_mistakes():
    space = make_space()
    table = make_table(space, seam_ratios(space))
    workload = space.steps[0].edges[0].workload
    entries = {key: entry for key, entry in table.entries.items() if key != workload}
    with pytest.raises(InputError, match="no entry for"):
        SeamTable(LatencyTable(space, table.environment, table.anchor, entries, ())).predict_many(all_networks(space)[:1])
    with pytest.raises(InputError, match="search_space"):
        Trellis(space, SeamTable(table))
    refusing = SeamTable(replace(table, refused={workload: "no kernel"}))
    with pytest.raises(InputError, match="refuses option 'a_int8' of decision 'stem'"):
        refusing.predict_many(all_networks(space)[:1])
    cells = load_space("darts")
    with pytest.raises(InputError, match="layers in order"):
        SeamTable(LatencyTable(cells, table.environment, table.anchor, {}, ()))
