"""The table: what is derived from the samples, what is refused, and that it is the trellis' cost model."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hwnas.errors import HwnasError, InfeasibleError, InputError
from hwnas.files import content_sha256
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import (
    _UPGRADES,
    SCHEMA,
    AnchorRecord,
    EffortRecord,
    EntryRecord,
    LatencyTable,
    NetworkRecord,
    SittingRecord,
    conformal_interval,
    judge,
    load_table,
)


def _space() -> SearchSpace:
    """Widths vary, so that an option's cost depends on the option before it."""
    return SearchSpace("toy", (3, 16, 16), (
        Fixed("stem", Stem(8)),
        Decision("width", {"narrow": ConvBlock(8), "wide": ConvBlock(16)}),
        Decision("body", {"k3": MBConv(16, 3, 3), "k5": MBConv(16, 5, 3), "plain": ConvBlock(16)}),
        Decision("tail", {"conv": ConvBlock(16), "skip": Identity()}),
        Fixed("head", Head(10)),
    ))


def _table(space: SearchSpace | None = None, networks: int = 40, noise: float = 0.0, held_out: int = 20) -> LatencyTable:
    """A table whose networks follow `0.05 + 0.8 * sum - 0.01 * blocks` exactly, or with noise."""
    space = space or _space()
    generator = np.random.default_rng(0)
    edges = {edge.workload: edge for step in space.steps for edge in step.edges if edge.block.kind != "identity"}
    entries = {key: EntryRecord(sessions=tuple(tuple(value * generator.normal(1, 0.01, 5)) for _ in range(3)), label="ok")
               for key, value in zip(edges, generator.uniform(0.05, 0.5, len(edges)), strict=True)}
    bare = LatencyTable(space, {"runtime": "onnxruntime-cpu", "threads": 1},
                        AnchorRecord(name="anchor", sha256="0" * 64, sessions_ms=(0.5, 0.52, 0.48)), entries, ())
    records = []
    for index, network in enumerate(Trellis(space).sample(networks, seed=3)):
        chosen = _edges_of(space, network)
        ratio = 0.05 + 0.8 * sum(entries[edge.workload].ratio for edge in chosen) - 0.01 * len(chosen)
        ratio *= generator.normal(1, noise) if noise else 1
        records.append(NetworkRecord(choices=dict(network.choices), sessions=((ratio,),),
                                     role="held_out" if index < held_out else "fit"))
    return bare.with_networks(records)


def _edges_of(space, network):
    source, edges = 0, []
    for step in space.steps:
        option = step.options.index(network.choices[step.name]) if step.is_decision else 0
        edge = next(edge for edge in step.edges if (edge.source, edge.option) == (source, option))
        source = edge.target
        if edge.block.kind != "identity":
            edges.append(edge)
    return edges


def test_prediction_is_the_calibrated_sum_of_the_path():
    table = _table()
    for network in Trellis(table.search_space).sample(20, seed=9):
        edges = _edges_of(table.search_space, network)
        total = 0.05 + 0.8 * sum(table.entries[edge.workload].ratio for edge in edges) - 0.01 * len(edges)
        assert table.predict(network).latency_ms == pytest.approx(0.5 * total, rel=1e-6)


def test_trellis_costs_are_the_predictions():
    table = _table(noise=0.02)
    trellis = Trellis(table.search_space, table)
    networks = trellis.sample(24, seed=1)
    assert [one.latency_ms for one in table.predict_many(networks)] == pytest.approx(
        [trellis.cost(network) for network in networks], rel=1e-6)


def test_held_out_networks_do_not_touch_the_calibration():
    table = _table(noise=0.02)
    spoiled = [replace_sessions(record, ((99.0,),)) if record.role == "held_out" else record for record in table.networks]
    assert replace(table, networks=tuple(spoiled)).calibration == table.calibration


def replace_sessions(record: NetworkRecord, sessions) -> NetworkRecord:
    return NetworkRecord(choices=record.choices, sessions=sessions, role=record.role)


def test_one_bad_session_of_three_does_not_move_an_entry():
    good = EntryRecord(sessions=((1.0, 1.01), (0.99, 1.0), (1.0, 1.0)), label="ok")
    bad = EntryRecord(sessions=((1.0, 1.01), (2.65, 2.65), (1.0, 1.0)), label="noisy")
    assert bad.ratio == pytest.approx(good.ratio, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(19, 60), st.integers(0, 10**6))
def test_conformal_interval_is_the_order_statistic(count, seed):
    errors = np.abs(np.random.default_rng(seed).normal(size=count))
    half = conformal_interval(errors)
    # the definition: the smallest observed error that at least ceil((n + 1) 95 %) errors do not exceed
    enough = [error for error in errors if (errors <= error).sum() >= math.ceil((count + 1) * 0.95)]
    assert half == min(enough)


def test_conformal_interval_covers_new_draws():
    generator = np.random.default_rng(5)
    covered = [abs(generator.standard_t(5)) <= conformal_interval(np.abs(generator.standard_t(5, 24))) for _ in range(4000)]
    assert 0.94 <= np.mean(covered) <= 0.98  # between coverage and coverage + 1 / (n + 1), and the sampling error


@pytest.mark.parametrize("count", [1, 2, 5, 10, 18])
def test_the_interval_of_few_networks_covers_normal_errors(count):
    generator = np.random.default_rng(count)
    errors = np.abs(generator.normal(size=(4000, count + 1)))
    assert np.mean([error[0] <= conformal_interval(error[1:]) for error in errors]) >= 0.94


def _sitting(table, errors):
    """Networks of another hour that are so far off the table's predictions."""
    records = (*table.judging_networks, *table.judging_networks)[:len(errors)]
    ratios = table.predicted_ratios(records) * (1 + np.asarray(errors))
    return SittingRecord(measured_utc="2026-11-22T12:00:00+00:00", anchor_ms=0.5, networks=tuple(
        NetworkRecord(choices=record.choices, sessions=((ratio,),), role="held_out")
        for record, ratio in zip(records, ratios, strict=True)))


@pytest.mark.parametrize("sittings", [0, 1, 4])
def test_intervals_cover_networks_of_another_hour(sittings):
    """Simulated: every hour moves all networks by a normal ratio of its own, whose variance differs from machine to machine."""
    generator = np.random.default_rng(sittings)
    scatter, covered = 0.004, []
    for _ in range(1500):
        shift = 0.0043 * math.sqrt(4 / generator.chisquare(4))
        hours = [generator.normal(generator.normal(0, shift), scatter, 40) for _ in range(sittings + 1)]
        half = judge(np.ones(40), 1 + generator.normal(0, scatter, 40), hours[1:]).interval
        covered.append(np.mean(np.abs(hours[0]) <= half))
    assert 0.94 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("shift", [0.01, 0.05])
def test_sittings_teach_that_hours_differ_by_more_than_is_typical(shift):
    generator = np.random.default_rng(0)
    covered: list[list[float]] = []
    for _ in range(300):
        hours = [generator.normal(generator.normal(0, shift), 0.004, 40) for _ in range(31)]
        halves = [judge(np.ones(40), 1 + generator.normal(0, 0.004, 40), hours[1:count]).interval for count in (1, 5, 31)]
        covered.append([np.mean(np.abs(hours[0]) <= half) for half in halves])
    none, some, many = np.mean(covered, axis=0)
    assert none < some < many and many > 0.92


def test_a_sitting_widens_the_interval_by_what_it_shows_and_nothing_else():
    table = _table(noise=0.01)
    alone = table.held_out
    typical = 0.0043 * stats.t.ppf(0.975, 4)
    assert alone.other_hour_interval == pytest.approx(typical, rel=0.003)
    assert alone.interval == pytest.approx(math.hypot(alone.same_hour_interval, typical), rel=0.003)
    judged = table.with_sitting(_sitting(table, [0.05] * 20))
    usual = float(np.mean(table.errors(table.judging_networks)**2))
    scale = math.sqrt((4 * 0.0043**2 + 0.05**2 - usual) / 5)
    assert judged.held_out.other_hour_interval == pytest.approx(stats.t.ppf(0.975, 5) * scale, rel=0.003)
    assert judged.held_out.interval > alone.interval and judged.held_out.sittings == 1
    for name in ("networks", "mean_error", "max_error", "within_5_percent", "spearman", "same_hour_interval"):
        assert getattr(judged.held_out, name) == getattr(alone, name)
    assert judged.calibration == table.calibration
    ratios = np.array([record.ratio for record in table.judging_networks])
    many_times_the_anchor = 11 / np.median(ratios) * ratios
    for large in (judge(many_times_the_anchor, many_times_the_anchor), judge(ratios, ratios, has_large_inputs=True)):
        assert large.other_hour_interval == pytest.approx(0.012 * stats.t.ppf(0.975, 4), rel=0.003)
    for images in (63, 64):  # 64 of 3x16x16 are as much as one of 3x128x128
        many = replace(table, environment=table.environment | {"batch_size": images}).held_out
        assert (many.other_hour_interval == large.other_hour_interval) is (images == 64)
    quiet = table.with_sitting(_sitting(table, [0.0] * 20)).with_sitting(_sitting(table, [0.0] * 20))
    assert 0 <= quiet.held_out.other_hour_interval < typical and quiet.held_out.interval < alone.interval


def test_a_network_that_was_exported_since_does_not_judge_in_its_sitting_either():
    table = _table(noise=0.02)
    sitting = _sitting(table, [0.5, *[0.0] * 19])
    exported = NetworkRecord(choices=sitting.networks[0].choices, sessions=((1.0,),), role="exported")
    judged = table.with_sitting(sitting).with_networks([exported])
    assert all(record.choices != exported.choices for networks in judged.judging_sittings for record in networks)
    assert table.with_sitting(sitting).held_out.interval > judged.held_out.interval


def test_sittings_are_kept_in_the_file(tmp_path):
    table = _table(noise=0.02)
    judged = table.with_sitting(_sitting(table, [0.01, -0.02]))
    read = load_table(judged.save(tmp_path / "table.json"))
    assert read.sittings == judged.sittings and read.held_out == judged.held_out


def test_a_network_that_joined_the_fit_does_not_judge():
    table = _table(noise=0.02)
    chosen = [record.choices for record in table.networks if record.role == "held_out"][:3]
    refined = table.with_networks([NetworkRecord(choices=dict(reversed(choices.items())), sessions=((9.0,),), role="exported")
                                   for choices in chosen])
    alone = replace(refined, networks=tuple(record for record in refined.networks
                                            if record.role != "held_out" or record.choices not in chosen))
    assert refined.held_out == alone.held_out and 0 < refined.held_out.networks <= table.held_out.networks - 3
    assert refined.calibration == alone.calibration != table.calibration


def test_interval_is_wide_when_nothing_judged_the_table():
    table = _table(held_out=0)
    one = table.predict(Trellis(table.search_space).sample(1)[0])
    assert (one.lower_ms, one.upper_ms) == (0.0, 2 * one.latency_ms)


def test_promise_budget_is_where_the_upper_end_meets_the_budget():
    table = _table(noise=0.03)
    assert table.interval_around(table.promise_budget(0.7)).upper_ms == pytest.approx(0.7)


def test_round_trip(tmp_path):
    table = _table(noise=0.02)
    again = load_table(table.save(tmp_path / "table.json"))
    assert again == table and again.calibration == table.calibration
    assert again.to_dict() == table.to_dict()


def test_new_fields_survive(tmp_path):
    effort = EffortRecord(minutes=2.6, timing_minutes=2.2, sessions=490, planned_sessions=491)
    table = replace(_table(noise=0.02), refused={"b @ 1x1x1": "It crashes.", "a @ 1x1x1": "It is \"large\"."}, effort=effort)
    again = load_table(table.save(tmp_path / "table.json"))
    assert again == table and again.refused == table.refused and again.effort == effort and not again.effort.complete
    assert again.to_dict() == table.to_dict()
    more = again.with_networks(again.networks[:1])
    assert (more.refused, more.effort, len(more.networks)) == (table.refused, effort, len(table.networks) + 1)
    assert effort.model_copy(update={"sessions": 491}).complete
    bare = _table()
    assert bare.refused == {} and bare.effort is None and load_table(bare.save(tmp_path / "bare.json")) == bare


def test_a_table_of_version_1_still_loads(tmp_path):
    """A file that version 1 wrote, with what it derived from the samples."""
    stored = json.loads((Path(__file__).parent / "table_v1.json").read_text())
    table = load_table(Path(__file__).parent / "table_v1.json")
    assert stored["schema"] == "hwnas.latency-table/1" and "refused" not in stored
    assert (table.refused, table.effort) == ({}, None) and table.search_space == _space()
    assert [(key, entry.ratio) for key, entry in table.entries.items()] == [
        (key, row["ratio"]) for key, row in stored["entries"].items()]
    then = stored["held_out"]  # the rank correlation took no heed of ties, and the interval was of the table's hour
    now = vars(table.held_out) | {"interval": table.held_out.same_hour_interval}
    assert {key: now[key] for key in then} == pytest.approx(then, rel=1e-3)
    assert table.calibration.scale == pytest.approx(stored["calibration"]["scale"])
    again = load_table(table.save(tmp_path / "table.json"))
    assert again == table and json.loads((tmp_path / "table.json").read_text())["schema"] == SCHEMA
    stored["environment"]["threads"] = 2  # its hash is still checked
    (tmp_path / "edited.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="edited"):
        load_table(tmp_path / "edited.json")


def test_a_table_of_version_2_still_loads(tmp_path):
    table = _table(noise=0.02)
    stored = {key: value for key, value in table.to_dict().items() if key not in ("sittings", "content_sha256")}
    stored["schema"] = "hwnas.latency-table/2"
    (tmp_path / "table.json").write_text(json.dumps(stored | {"content_sha256": content_sha256(stored)}))
    assert load_table(tmp_path / "table.json") == table and table.sittings == ()


def test_a_table_of_version_3_still_loads(tmp_path):
    table = _table(noise=0.02)
    stored = {key: value for key, value in table.to_dict().items() if key != "content_sha256"}
    stored["schema"] = "hwnas.latency-table/3"
    (tmp_path / "table.json").write_text(json.dumps(stored | {"content_sha256": content_sha256(stored)}))
    assert load_table(tmp_path / "table.json") == table


def test_an_estimate_is_told_from_a_measurement(tmp_path):
    table = _table()
    first, *_ = table.entries
    estimate = EntryRecord(sessions=((table.entries[first].ratio,),), label="estimated")
    estimated = replace(table, entries={**table.entries, first: estimate})
    again = load_table(estimated.save(tmp_path / "table.json"))
    assert again == estimated and not again.missing_workloads() and again.held_out == table.held_out
    assert not estimate.is_measured and estimate.ratio_ci is None and table.entries[first].is_measured

@pytest.mark.parametrize("schema, words", [
    ("hwnas.latency-table/5", "newer hwnas: upgrade"), ("hwnas.latency-table/999999999", "newer hwnas: upgrade"),
    ("hwnas.latency-table/0", "'hwnas.latency-table/1' or"), ("hwnas.latency-table/" + 5000 * "9", "'hwnas.latency-table/1' or"),
    ("hwnas.latency-table/²", "profile the space again"), ("hwnas.space/1", "profile the space again"),
    (None, "None"), (3, "'3'"), (["hwnas.latency-table/1"], "profile"), ({}, "profile")])
def test_other_schemas_are_told_apart(schema, words, tmp_path):
    document = _table(networks=0).to_dict() | {"schema": schema}
    (tmp_path / "table.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=words) as refusal:
        load_table(tmp_path / "table.json")
    assert len(str(refusal.value)) < 400 and str(refusal.value).count(". ") == 0


def test_upgrades_end_at_this_version():
    document = {"schema": "hwnas.latency-table/1"}
    for _ in _UPGRADES:
        document = _UPGRADES[document["schema"]](document)
    assert document["schema"] == SCHEMA not in _UPGRADES


def test_file_has_the_documented_keys(tmp_path):
    document = json.loads(_table().save(tmp_path / "table.json").read_text())
    assert {"schema", "space", "space_hash", "environment", "anchor", "entries", "calibration", "held_out"} <= set(document)
    assert document["space"] == "toy" and document["anchor"]["latency_ms"] == median((0.5, 0.52, 0.48))


def test_the_anchors_spread_and_clock(tmp_path):
    anchor = AnchorRecord(name="a", sha256="0" * 64, sessions_ms=tuple(np.random.default_rng(0).permutation(101) + 1.0))
    assert anchor.spread_ms == (6.0, 96.0) and anchor.clock_mhz is None
    table = replace(_table(), anchor=anchor.model_copy(update={"clocks_mhz": (1755, 1980, 1900, 345)}))
    loaded = load_table(table.save(tmp_path / "table.json"))
    assert loaded == table and loaded.anchor.clock_mhz == (345, 1755, 1980)  # a reading, not the mean of two
    document = json.loads((tmp_path / "table.json").read_text())
    del document["anchor"]["clocks_mhz"]  # as they were written before
    document["content_sha256"] = content_sha256(document)
    (tmp_path / "table.json").write_text(json.dumps(document))
    assert load_table(tmp_path / "table.json").anchor == anchor


def test_missing_entry_names_workload_and_command():
    table = _table()
    workload = next(iter(table.entries))
    short = replace(table, entries={key: entry for key, entry in table.entries.items() if key != workload}, networks=())
    assert short.missing_workloads() == [workload]
    with pytest.raises(InputError, match=r"no entry for .*hwnas profile"):
        Trellis(short.search_space, short)


# Refused blocks


def _without_wide_kernels():
    """A table whose runtime refuses k5 after a wide layer, before which it was measured in some networks."""
    table = _table(noise=0.02)
    step = table.search_space.steps[2]
    workload = next(edge.workload for edge in step.edges if step.options[edge.option] == "k5" and edge.input_shape.channels == 16)
    return replace(table, refused={workload: "It crashes (signal 11)."}), workload


def test_a_refused_block_costs_infinity_and_is_not_missing():
    table, workload = _without_wide_kernels()
    entries = {key: entry for key, entry in table.entries.items() if key != workload}
    for one in (table, replace(table, entries=entries)):  # whether or not it ran before it crashed
        assert one.missing_workloads() == []
        costs = {edge.workload: one.edge_cost(edge) for step in one.search_space.steps for edge in step.edges}
        assert [key for key, cost in costs.items() if cost == math.inf] == [workload]
        networks = Trellis(one.search_space, one).sample(400)
        chosen = {(network.choices["width"], network.choices["body"]) for network in networks}
        assert ("wide", "k5") not in chosen and {("narrow", "k5"), ("wide", "k3"), ("wide", "plain")} <= chosen
        assert [prediction.latency_ms for prediction in one.predict_many(networks[:20])] == pytest.approx(
            [Trellis(one.search_space, one).cost(network) for network in networks[:20]])


def test_a_network_with_a_refused_block_is_not_predicted():
    table, workload = _without_wide_kernels()
    with pytest.raises(InputError, match="option 'k5' of decision 'body'") as refusal:
        table.predict(table.search_space.architecture({"width": "wide", "body": "k5", "tail": "skip"}))
    assert workload in str(refusal.value) and "It crashes (signal 11)" in str(refusal.value)
    stem = next(iter(table.entries))
    with pytest.raises(InputError, match="layer 'stem'"):
        replace(table, refused={stem: "No."}).predict(table.search_space.any_architecture)
    with pytest.raises(InfeasibleError, match="layer 'stem'"):
        Trellis(table.search_space, replace(table, refused={stem: "No."}))


def test_networks_with_a_refused_block_do_not_count():
    table, _ = _without_wide_kernels()
    usable = [record for record in table.networks if (record.choices["width"], record.choices["body"]) != ("wide", "k5")]
    assert 0 < len(usable) < len(table.networks)
    alone = replace(table, networks=tuple(usable), refused={})
    for found, expected in ((table.calibration, alone.calibration), (table.held_out, alone.held_out)):
        numbers = {name: value for name, value in vars(expected).items() if isinstance(value, int | float)}
        assert {name: getattr(found, name) for name in numbers} == pytest.approx(numbers)
    assert Trellis(table.search_space, table).max_cost() <= Trellis(table.search_space, alone).max_cost()


# Damage


def test_truncated_table_is_refused_and_left_alone(tmp_path):
    path = _table().save(tmp_path / "table.json")
    content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(InputError, match="not valid JSON"):
        load_table(path)
    assert path.read_bytes() == content


def test_edited_table_is_refused(tmp_path):
    path = _table().save(tmp_path / "table.json")
    path.write_text(path.read_text().replace('"latency_ms": 0.5', '"latency_ms": 0.4'))
    with pytest.raises(InputError, match="edited"):
        load_table(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "table.json"
    text = json.dumps(_table(networks=4, held_out=2).to_dict())
    start = data.draw(st.integers(0, len(text) - 1))
    damage = data.draw(st.text(max_size=5))
    path.write_text(text[:start] + damage + text[start + data.draw(st.integers(1, 40)):])
    with suppress(HwnasError):  # the only thing that may come out
        load_table(path)


def _places(value, path=()):
    """Every place in a document, as a path of keys."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just("x" * 300),
                     st.sampled_from([10**400, -1, 1e308, 5e-324, [], {}, [[]], {"": None}]))
_VALUES = st.recursive(_SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=4)
_DOCUMENT = replace(_table(networks=24, held_out=19), refused={"a @ 1x1x1": "It crashes."},
                    effort=EffortRecord(minutes=1.0, timing_minutes=0.5, sessions=3, planned_sessions=4)).to_dict()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_hostile_document_is_an_input_error(tmp_path_factory, data):
    """Something else at any place, under a hash that is made anew: it loads, or it is refused in a sentence."""
    document = json.loads(json.dumps(_DOCUMENT))
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from([path for path in _places(document) if path]))
        owner = document
        for key in path:
            owner = owner[key]
        if data.draw(st.integers(0, 4)):
            owner[last] = data.draw(_VALUES)
        else:
            del owner[last]
    document["content_sha256"] = content_sha256(document)
    path = tmp_path_factory.mktemp("hostile") / "table.json"
    path.write_text(json.dumps(document))
    with suppress(InputError):
        table = load_table(path)
        assert isinstance(table.missing_workloads(), list) and table.unit == "ms"
        assert load_table(table.save(path)) == table


@pytest.mark.parametrize("spoil", [
    lambda d: d["entries"].clear() or d["entries"].update({"x": {"sessions": [], "label": "ok", "ratio": 1}}),
    lambda d: d["networks"][0]["choices"].update(body="k9"),
    lambda d: d["networks"][0].update(sessions=[[]]),
    lambda d: d["networks"][0].update(sessions=[[-1.0]]),
    lambda d: d["anchor"].update(sessions_ms=[0.0]),
    lambda d: d["anchor"].update(clocks_mhz=[0]),
    lambda d: d["anchor"].update(clocks_mhz=None),
    lambda d: d.pop("environment"),
    lambda d: d.update(schema="hwnas.latency-table/99"),
    lambda d: d.update(space_hash="0" * 64),
    lambda d: d.pop("refused"),
    lambda d: d.update(refused={"a": 1}),
    lambda d: d.update(refused=["a"]),
    lambda d: d.update(effort={"minutes": -1.0, "timing_minutes": 0.0, "sessions": 1, "planned_sessions": 1}),
    lambda d: d.update(effort={"minutes": 1.0}),
    lambda d: d.update(schema="hwnas.latency-table/1", refused=None, entries=None),
])
def test_consistent_but_impossible_content_is_refused(tmp_path, spoil):
    """The hash is made anew: the checks behind it must hold on their own."""
    document = json.loads(json.dumps(_table(networks=4, held_out=2).to_dict()))
    spoil(document)
    document["content_sha256"] = content_sha256(document)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError):
        load_table(path)
