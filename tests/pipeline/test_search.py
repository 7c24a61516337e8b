"""Searching a real, tiny supernet: the budget holds, scores are reused, a kill changes nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwnas.data import load_dataset
from hwnas.errors import InfeasibleError, InputError, UnavailableError
from hwnas.ir.architecture import load_architecture
from hwnas.ir.costs import MacsCost
from hwnas.ir.space import Decision
from hwnas.ir.trellis import Trellis
from hwnas.pipeline.constraint import Constraint, count_constraint, latency_constraint
from hwnas.pipeline.search import SearchSettings, load_training_data, search_supernet, space_of_supernet
from hwnas.search.evolution import EvolutionConfig
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.evaluate import SupernetEvaluator
from hwnas.supernet.methods import Budget
from hwnas.supernet.supernet import extract
from hwnas.supernet.train import load_supernet, train_supernet
from tests.pipeline.samples import DATA, all_networks, make_space, make_table

ROOT = Path(__file__).parents[2]
TABLE = make_table()
SETTINGS = SearchSettings("evolution", EvolutionConfig(4, 2, 2, 2, 2, 0.3, 1), validation_images=40, calibration_images=64)


def budget_at(share):
    """A budget in the achievable range, for which a promise can be made from about a quarter on."""
    trellis = Trellis(TABLE.search_space, TABLE)
    return trellis.min_cost() + share * (trellis.max_cost() - trellis.min_cost())


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()[1:]]


@pytest.fixture
def search(supernet_dir, dataset):
    def run(output, share=0.7, settings=SETTINGS, **arguments):
        arguments = {"dataset": dataset} | arguments
        return search_supernet(supernet_dir, TABLE.search_space, latency_constraint(TABLE, budget_at(share)), output, settings,
                               **arguments)
    return run


@pytest.mark.parametrize("method", ["evolution", "random"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_every_candidate_keeps_the_budget(search, space, tmp_path, method, share):
    result = search(tmp_path, share, replace(SETTINGS, method=method))
    rows = history(tmp_path)
    assert len(rows) == result.evaluations and 0 < len(rows) <= 8
    for row in rows:
        prediction = TABLE.predict(space.architecture(row["choices"]))
        assert prediction.upper_ms <= budget_at(share) * (1 + 1e-12)
        assert row["cost"] == pytest.approx(prediction.latency_ms, rel=1e-9)
        assert 0 <= row["score"] <= 1
    assert result.best.score == max(row["score"] for row in rows)


def test_what_is_left_on_disk(search, space, tmp_path):
    told = []
    result = search(tmp_path, progress=lambda *progress: told.append(progress))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.json", "history.jsonl", "result.json"]
    assert load_architecture(tmp_path / "best.json") == result.best.architecture
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["method"] == "evolution" and document["evaluations"] == result.evaluations
    assert document["best"]["choices"] == dict(result.best.architecture.choices)
    assert document["constraints"] == {"max_latency_ms": budget_at(0.7), "promised": True,
                                       "search_limit": TABLE.promise_budget(budget_at(0.7))}
    predictions = [TABLE.predict(one).latency_ms for one in all_networks(space)]
    assert document["feasible_range_ms"] == pytest.approx([min(predictions), max(predictions)])
    assert [done for done, _, _ in told] == list(range(1, result.evaluations + 1))
    assert told[-1][2] == result.best


def test_scores_are_those_of_the_evaluator(search, supernet_dir, dataset, space, tmp_path):
    result = search(tmp_path)
    evaluator = SupernetEvaluator(load_supernet(supernet_dir)[0], dataset, validation_images=40, calibration_images=64)
    for candidate in result.history:
        assert evaluator([candidate.architecture]) == [candidate.score]


def test_data_are_found_without_being_given(search, tmp_path):
    assert search(tmp_path / "a").best == search(tmp_path / "b", dataset=None).best


def test_the_same_search_gives_the_same_result(search, tmp_path):
    search(tmp_path / "a")
    search(tmp_path / "b")
    for name in ("best.json", "history.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_few_networks_are_all_scored(search, space, tmp_path):
    result = search(tmp_path, 0.12)
    limit = latency_constraint(TABLE, budget_at(0.12)).search_limit
    allowed = {one for one in all_networks(space) if TABLE.predict(one).latency_ms <= limit}
    assert result.exhaustive and {one.architecture for one in result.history} == allowed and len(allowed) <= 8


# Scores of other budgets


def spoil(folder, score):
    """Gives every network of a journal a score that no evaluator gives, so that a copy of it shows."""
    journal = folder / "history.jsonl"
    header, *lines = journal.read_text().splitlines()
    rows = [json.dumps(json.loads(line) | {"score": score}) for line in lines]
    journal.write_text("\n".join([header, *rows]) + "\n")
    return journal


def test_another_budget_reuses_scores(search, space, tmp_path):
    earlier = search(tmp_path / "a", 0.7)
    journal = spoil(tmp_path / "a", 0.123456)
    search(tmp_path / "b", 0.9, earlier=[journal])
    known = {candidate.architecture for candidate in earlier.history}
    rows = history(tmp_path / "b")
    reused = [row for row in rows if row["score"] == 0.123456]
    assert {space.architecture(row["choices"]) for row in reused} == known & {
        space.architecture(row["choices"]) for row in rows}
    assert 0 < len(reused) < len(rows)


@pytest.mark.parametrize("other", [{"calibration_images": 65}, {"validation_images": 41}, {"batch_norm": "batches"}])
def test_scores_of_another_evaluator_are_not_reused(search, tmp_path, other):
    search(tmp_path / "a", 0.7)
    journal = spoil(tmp_path / "a", 0.123456)
    search(tmp_path / "b", 0.7, replace(SETTINGS, **other), earlier=[journal])
    assert all(row["score"] != 0.123456 for row in history(tmp_path / "b"))


def test_scores_on_other_validation_images_are_not_reused(search, dataset, tmp_path):
    search(tmp_path / "a", 0.7)
    journal = spoil(tmp_path / "a", 0.123456)
    fewer = replace(dataset, validation=replace(dataset.validation, images=dataset.validation.images[10:],
                                                labels=dataset.validation.labels[10:]))
    search(tmp_path / "b", 0.7, dataset=fewer, earlier=[journal])
    assert all(row["score"] != 0.123456 for row in history(tmp_path / "b"))


def test_damaged_and_missing_journals_are_not_reused(search, tmp_path):
    (tmp_path / "damaged.jsonl").write_text("garbage\n")
    result = search(tmp_path / "b", earlier=[tmp_path / "damaged.jsonl", tmp_path / "missing.jsonl"])
    assert result.best == search(tmp_path / "c").best


# Whose statistics batch norm uses


@pytest.fixture(scope="module")
def one_shot_dir(space, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-shot")
    stem, width, *rest = space.layers
    options = {name: width.options[name] for name in ("narrow", "mb")}  # of one shape
    even = replace(space, layers=(stem, Decision("width", options), *rest))
    train_supernet(even, dataset, folder, TrainConfig(method="one-shot", epochs=10, batch_size=32, max_shift=1, threads=1),
                   data_source={"spec": DATA, "seed": 0})
    return folder


def test_scores_with_batch_statistics_are_those_of_batch_norm_in_training_mode(search, supernet_dir, dataset, tmp_path):
    settings = replace(SETTINGS, method="random")
    result = search(tmp_path / "batches", settings=replace(settings, batch_norm="batches"))
    supernet, _ = load_supernet(supernet_dir)
    images = torch.from_numpy(dataset.normalise(dataset.validation.images[:40]))
    for candidate in result.history:
        module = extract(supernet, candidate.architecture).eval()
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train()
        with torch.no_grad():
            right = module(images).argmax(1).numpy() == dataset.validation.labels[:40]
        assert candidate.score == right.mean()
    recalibrated = search(tmp_path / "recalibrated", settings=settings)
    assert [one.score for one in result.history] != [one.score for one in recalibrated.history]


@pytest.mark.parametrize(("folder", "usual", "other"), [("supernet_dir", "recalibrated", "batches"),
                                                        ("one_shot_dir", "batches", "recalibrated")])
def test_only_after_one_shot_training_are_batch_statistics_the_default(folder, usual, other, request, dataset, tmp_path):
    directory = request.getfixturevalue(folder)
    constraint = count_constraint(space_of_supernet(directory), MacsCost(), math.inf)

    def search(output, **changes):
        settings = replace(SETTINGS, method="random", **changes)
        return search_supernet(directory, None, constraint, output, settings, dataset=dataset)

    default = search(tmp_path / "default")
    assert search(tmp_path / "default", batch_norm=usual).history == default.history  # the same search, so it is resumed
    scores = [one.score for one in search(tmp_path / "other", batch_norm=other).history]
    assert scores != [one.score for one in default.history]


def test_images_that_nothing_reads_make_no_other_search(search, tmp_path):
    settings = replace(SETTINGS, method="random", batch_norm="batches")
    search(tmp_path, settings=settings)
    journal = spoil(tmp_path, 0.123456)
    assert search(tmp_path, settings=replace(settings, calibration_images=65)).best.score == 0.123456
    assert all(row["score"] == 0.123456 for row in map(json.loads, journal.read_text().splitlines()[1:]))


# Interruption


def test_a_killed_search_resumes_to_the_same_best(search, supernet_dir, tmp_path):
    """SIGKILL from outside, once the journal has three scores; every evaluation waits a moment to let it."""
    program = textwrap.dedent(f"""
        import time
        from tests.pipeline.test_search import SETTINGS, TABLE, budget_at, latency_constraint, search_supernet
        search_supernet({str(supernet_dir)!r}, TABLE.search_space, latency_constraint(TABLE, budget_at(0.7)),
                        {str(tmp_path / "killed")!r}, SETTINGS, progress=lambda *_: time.sleep(0.2))
    """)
    journal = tmp_path / "killed" / "history.jsonl"
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
            assert child.poll() is None and time.monotonic() < deadline, "the search ended, or never began"
            time.sleep(0.001)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "killed" / "best.json").exists()
    before = journal.read_bytes()
    search(tmp_path / "killed")
    search(tmp_path / "whole")
    assert (tmp_path / "killed" / "best.json").read_bytes() == (tmp_path / "whole" / "best.json").read_bytes()
    assert journal.read_bytes().startswith(before[:before.rfind(b"\n") + 1])
    assert journal.read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()


def test_a_search_of_something_else_is_refused_and_left(search, tmp_path):
    search(tmp_path, 0.7)
    content = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for arguments in ({"share": 0.8}, {"settings": replace(SETTINGS, calibration_images=65)},
                      {"settings": replace(SETTINGS, method="random")}, {"settings": replace(SETTINGS, batch_norm="batches")}):
        with pytest.raises(InputError, match="--overwrite"):
            search(tmp_path, **arguments)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == content
    search(tmp_path, 0.8, overwrite=True)
    assert json.loads((tmp_path / "result.json").read_text())["constraints"]["max_latency_ms"] == budget_at(0.8)


def test_an_interrupted_search_leaves_no_result_of_the_one_that_it_replaces(search, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    search(tmp_path, 0.7)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, 0.8, overwrite=True, progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["history.jsonl"]
    search(tmp_path, 0.8)  # goes on


# What does not fit together


def test_the_table_of_another_space_is_refused(supernet_dir, dataset, tmp_path):
    other = make_space(classes=11)
    table = make_table(other)
    with pytest.raises(InputError, match="space"):
        search_supernet(supernet_dir, other, latency_constraint(table, 1e9), tmp_path / "out", SETTINGS, dataset=dataset)
    with pytest.raises(InputError):
        search_supernet(supernet_dir, None, latency_constraint(table, 1e9), tmp_path / "out", SETTINGS, dataset=dataset)
    assert not (tmp_path / "out").exists()


def test_a_table_that_happens_to_have_the_same_blocks_is_refused(supernet_dir, dataset, tmp_path):
    """The supernet's blocks are all in the table, but it was calibrated on networks of another space."""
    space = make_space()
    larger = replace(space, layers=(*space.layers[:-1], replace(space.layers[3], name="more"), space.layers[-1]))
    table = make_table(larger)
    assert {edge.workload for step in space.steps for edge in step.edges if edge.block.kind != "identity"} <= set(table.entries)
    with pytest.raises(InputError, match="space"):
        search_supernet(supernet_dir, None, latency_constraint(table, 1e9), tmp_path / "out", SETTINGS, dataset=dataset)


def test_other_data_are_refused(search, tmp_path):
    with pytest.raises(InputError, match="train_images"):
        search(tmp_path / "out", dataset=load_dataset(DATA.replace("train=200", "train=190")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"method": "annealing"}, {"validation_images": 61}, {"calibration_images": 0},
                                   {"batch_norm": "frozen"}])
def test_settings_that_cannot_be_are_refused(search, tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        search(tmp_path / "out", settings=replace(SETTINGS, **wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(search, tmp_path, device):
    with pytest.raises(UnavailableError, match=device):
        search(tmp_path / "out", settings=replace(SETTINGS, device=device))
    assert not (tmp_path / "out").exists()


def test_scores_of_the_cpu_are_those_of_searches_that_could_not_choose(search, tmp_path):
    search(tmp_path, settings=replace(SETTINGS, device="cpu"))
    assert "device" not in json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])["context"]


def test_an_infeasible_limit_leaves_nothing(supernet_dir, dataset, tmp_path):
    with pytest.raises(InfeasibleError):
        search_supernet(supernet_dir, None, Constraint(TABLE, 1e-6, 1e-6, True), tmp_path / "out", SETTINGS, dataset=dataset)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_supernet(tmp_path):
    with pytest.raises(InputError):
        space_of_supernet(tmp_path)
    with pytest.raises(InputError):
        search_supernet(tmp_path, None, latency_constraint(TABLE, 1e9), tmp_path / "out", SETTINGS)


def test_a_supernet_tells_its_space_and_data(supernet_dir, space, dataset):
    assert space_of_supernet(supernet_dir) == space
    assert load_training_data({"data_source": {"spec": DATA, "seed": 0}}).train.images.tobytes() == dataset.train.images.tobytes()
    for info in ({}, *({"data_source": source} for source in (
            None, {}, {"spec": 3}, {"spec": DATA, "seed": None}, {"spec": DATA, "seed": "x"}))):
        with pytest.raises(InputError, match="hwnas train"):
            load_training_data(info)


# Other budgets


def test_a_budget_of_macs(supernet_dir, dataset, space, tmp_path):
    macs = sorted(space.network(one).macs for one in all_networks(space))
    constraint = count_constraint(space, MacsCost(), macs[13])
    result = search_supernet(supernet_dir, None, constraint, tmp_path, SETTINGS, dataset=dataset)
    assert all(space.network(one.architecture).macs == one.cost <= macs[13] for one in result.history)
    assert json.loads((tmp_path / "result.json").read_text())["constraints"]["max_macs"] == macs[13]


def test_no_limit(supernet_dir, dataset, tmp_path):
    result = search_supernet(supernet_dir, None, latency_constraint(TABLE, math.inf), tmp_path, SETTINGS, dataset=dataset)
    assert result.evaluations == 8
    assert json.loads((tmp_path / "result.json").read_text())["constraints"] == {
        "max_latency_ms": None, "search_limit": None, "promised": True}


# After a differentiable method


@pytest.fixture(scope="module")
def distribution_dir(space, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fbnet")
    train_supernet(space, dataset, folder, TrainConfig(method="fbnet", epochs=2, batch_size=32, max_shift=1, threads=1),
                   budget=Budget(TABLE, budget_at(0.5)), data_source={"spec": DATA, "seed": 0})
    return folder


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_most_probable_network_within_the_budget_is_found_by_enumeration(distribution_dir, space, dataset, tmp_path, share):
    constraint = latency_constraint(TABLE, budget_at(share))
    result = search_supernet(distribution_dir, None, constraint, tmp_path, replace(SETTINGS, method="dnas"), dataset=dataset)
    probabilities = json.loads((distribution_dir / "architecture_parameters.json").read_text())["probabilities"]
    fitting = [one for one in all_networks(space) if TABLE.predict(one).latency_ms <= constraint.search_limit]
    best = max(fitting, key=lambda one: math.prod(probabilities[name][option] for name, option in one.choices.items()))
    assert result.best.architecture == best and result.method == "dnas" and result.evaluations == 1
    assert load_architecture(tmp_path / "best.json") == best


def test_dnas_needs_architecture_parameters(search, tmp_path):
    with pytest.raises(InputError, match="darts, fbnet or proxyless"):
        search(tmp_path, settings=replace(SETTINGS, method="dnas"))
